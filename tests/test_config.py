import pytest
import yaml

from covidnet.config import Config, load
from covidnet.errors import UsageError


def test_the_committed_params_are_the_defaults(repository):
    tree = yaml.safe_load((repository / "params.yaml").read_text())
    tree.pop("profiles")
    assert Config.model_validate(tree) == Config()
    missing = leaves(Config().model_dump()) - leaves(tree)
    # gate and deploy have rare ones that a cluster may need; all others are to be found in the file
    assert {section for section, *_ in missing} <= {"gate", "deploy"}


def leaves(tree, path=()):
    if not isinstance(tree, dict):
        return {path}
    return set().union(*(leaves(value, (*path, key)) for key, value in tree.items()))


def test_paper_profile_has_the_papers_settings(repository):
    config = load(repository / "params.yaml", ["profile=paper"])
    assert config.search.size == (16, 64, 64)
    assert config.training.epochs == 200
    assert config.training.budget == "epochs"
    assert config.search.variants == ("S", "L")


def test_an_override_beats_the_profile(repository):
    config = load(repository / "params.yaml", ["profile=paper", "training.epochs=3"])
    assert config.training.epochs == 3
    assert config.training.batch == 32


@pytest.mark.parametrize(
    ("override", "key", "hint"),
    [
        ("serach.steps=3", "unknown key serach", "did you mean search"),
        ("search.step=3", "unknown key search.step", "did you mean search.steps"),
        ("data.phantom.patient=9", "unknown key data.phantom.patient", "data.phantom.patients"),
        ("search.steps=-1", "search.steps", "found -1"),
        ("search.steps=many", "search.steps", "found 'many'"),
        ("search.steps", "key.sub=value", ""),
        ("profile=papr", "'papr'", "demo, paper"),
        ("data.source=dicom", "data.root", "folder"),
        ("evaluate.positive=COVID", "'COVID'", "NCP"),
        ("data.validation=0.75", "data.validation", ""),
        ("classes=[NCP]", "at least two", ""),
    ],
)
def test_a_wrong_parameter_is_named_with_the_way_out(repository, override, key, hint):
    with pytest.raises(UsageError) as error:
        load(repository / "params.yaml", [override])
    assert key in str(error.value)
    assert hint in str(error.value)


def test_a_missing_or_malformed_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(UsageError, match="not valid YAML"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- a")
    with pytest.raises(UsageError, match="found list"):
        load(tmp_path / "params.yaml")
