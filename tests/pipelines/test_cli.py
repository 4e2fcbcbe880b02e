import pytest
from typer.testing import CliRunner

from pipelines import __main__ as cli

SERVER = ["--host", "http://127.0.0.1:9"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-S", "search.steps=0"], "search.steps"),
        (["-S", "search.step=5"], "did you mean search.steps?"),
        (["-S", "baselines=[resnet]"], "baselines"),
        (["-S", "baselines=[]"], "at least one of `baselines`"),
        (["-S", "data.source=nifti"], "set data.root"),
        (["--params", "nowhere.yaml"], "no such file: nowhere.yaml"),
        (["-S", "gate.margin=2"], "gate.margin"),
        (["-S", "deploy.steps=[50, 10]"], "deploy.steps must rise"),
    ],
)
@pytest.mark.parametrize("verb", [["run"], ["submit", *SERVER], ["schedule", *SERVER]], ids=lambda verb: verb[0])
def test_a_wrong_parameter_ends_before_anything_runs(repository, monkeypatch, capsys, verb, arguments, message):
    monkeypatch.chdir(repository)
    monkeypatch.setattr("sys.argv", ["pipelines", *verb, *arguments])
    monkeypatch.setattr(cli.local, "run", lambda *_: pytest.fail("a task was started"))
    for verb_of_server in ("submit", "schedule"):
        monkeypatch.setattr(cli.Server, verb_of_server, lambda *_, **__: pytest.fail("a run was submitted"))
    with pytest.raises(SystemExit) as exit_of:
        cli.main()
    assert exit_of.value.code == 2
    assert message in capsys.readouterr().err


def test_arguments_carry_the_configuration_and_name_the_branches(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("baselines: [mc3_18]\nprofiles: {paper: {search: {variants: [S, L]}}}\n")
    arguments = cli._arguments(params, ["profile=paper", "seed=7"])
    assert arguments == {
        "params": params.read_text(),
        "overrides": ["profile=paper", "seed=7"],
        "baselines": ["mc3_18"],
        "variants": ["S", "L"],
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "2"], "nodes=2 needs a volume that all pods share: give --workspace-claim NAME"),
        (["--nodes", "0"], "expected nodes of 1 to 256"),
        (["--gpus", "17"], "gpus of 0 to 16"),
        (["--node-selector", "a100"], "--node-selector a100: expected KEY=VALUE"),
    ],
)
def test_a_placement_that_can_not_be_is_refused_before_anything_is_sent(
    repository, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(repository)
    monkeypatch.setattr("sys.argv", ["pipelines", "submit", *SERVER, *arguments])
    with pytest.raises(SystemExit) as exit_of:
        cli.main()
    assert exit_of.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["compile", "run", "submit", "schedule"])
def test_every_verb_shows_an_example(verb):
    result = CliRunner().invoke(cli.app, [verb, "--help"])
    assert f"$ python -m pipelines {verb} " in result.output
