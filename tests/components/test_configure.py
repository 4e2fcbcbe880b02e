"""The first task of the graph: parameters, the sections that each task gets, the revision of the data."""

import json
import subprocess

import pytest
import yaml

from components import configure
from covidnet import config
from covidnet.errors import UsageError

KNOBS = {
    "shards": 1,
    "nodes": 1,
    "gpus": 0,
    "gpu_type": "nvidia.com/gpu",
    "data_revision": "",
    "gate_margin": "",
    "gate_at_least": "",
    "gate_at_most": "",
    "service": "",
    "namespace": "",
    "profile": "",
    "data_source": "",
    "data_root": "",
    "data_labels": "",
    "search_size_mib": "",
    "search_steps": "",
    "training_budget": "",
    "training_tmacs": "",
    "training_epochs": "",
}


def configured(params="", overrides=(), baselines=("mc3_18",), variants=("S",), **knobs):
    return configure.configure.python_func(
        params=params,
        overrides=list(overrides),
        baselines=list(baselines),
        variants=list(variants),
        **{**KNOBS, **knobs},
    )


def test_knobs_go_over_params_and_overrides_over_knobs():
    params = "search: {steps: 5, warmup_steps: 6}\n"
    assert json.loads(configured(params).search)["search"]["steps"] == 5
    parts = configured(params, search_steps="7", search_size_mib="2.5")
    assert config.parse(json.loads(parts.search)).search.steps == 7
    assert config.parse(json.loads(parts.search)).search.warmup_steps == 6
    assert config.parse(json.loads(parts.search)).search.budget.size_mib == 2.5
    parts = configured(params, overrides=["search.steps=8"], search_steps="7")
    assert config.parse(json.loads(parts.search)).search.steps == 8


def test_every_stage_gets_the_sections_that_dvc_tracks_for_it(repository):
    stages = yaml.safe_load((repository / "dvc.yaml").read_text())["stages"]
    parts = configured((repository / "params.yaml").read_text())
    part_of = {"baseline": "training", "retrain": "training", "evaluate": "whole", "export": "whole"}
    for name, stage in stages.items():
        given = json.loads(getattr(parts, part_of.get(name, name)))
        found = set(given) | {f"{section}.{key}" for section, of in given.items() if isinstance(of, dict) for key in of}
        assert set(stage["params"]) - {"profile", "profiles"} <= found, name


def test_a_part_holds_the_values_of_the_whole(repository):
    file = repository / "params.yaml"
    whole = config.load(file, ["profile=paper", "baselines=[mc3_18]", "search.variants=[S]"])
    parts = configured(file.read_text(), profile="paper")
    assert config.parse(json.loads(parts.ingest)).data == whole.data
    assert config.parse(json.loads(parts.training)).training == whole.training
    assert config.parse(json.loads(parts.training)).channels == whole.channels == 3
    assert config.parse(json.loads(parts.search)).search == whole.search
    assert config.parse(json.loads(parts.rollout)).gate == whole.gate
    assert config.parse(json.loads(parts.rollout)).deploy == whole.deploy
    told = config.parse(json.loads(parts.whole))
    assert told == whole.model_copy(update={"gate": told.gate, "deploy": told.deploy, "results": told.results})


def test_what_a_stage_does_not_depend_on_leaves_its_cache_key_alone():
    before, after = configured(), configured(overrides=["evaluate.bootstrap=500"])
    assert before.whole != after.whole
    assert (before.ingest, before.training, before.search) == (after.ingest, after.training, after.search)


def test_another_gate_or_service_trains_and_evaluates_nothing_again():
    params = "gate: {at_least: {accuracy: 0.5}}"
    before = configured(params)
    after = configured(params, gate_margin="0.1", gate_at_least="{kappa: 0.3}", service="lungs")
    assert before.rollout != after.rollout
    told = config.parse(json.loads(after.rollout))
    assert (told.gate.margin, told.gate.at_least, told.deploy.service) == (
        0.1,
        {"accuracy": 0.5, "kappa": 0.3},
        "lungs",
    )
    names = ("ingest", "training", "search", "whole", "data_revision", "code")
    assert [getattr(before, name) for name in names] == [getattr(after, name) for name in names]


def test_no_service_is_an_empty_text_that_the_graph_can_ask_for():
    assert configured().service == "covidnet"
    assert configured(service="null").service == ""


def test_gpus_are_those_of_the_pod_or_of_its_train_job(monkeypatch):
    assert (configured(gpus=2).pod_gpus, configured(gpus=2).job) == (2, "")
    with pytest.raises(UsageError, match="needs a volume that all pods share: give --workspace-claim"):
        configured(gpus=2, nodes=4)
    monkeypatch.setenv("COVIDNET_WORKSPACE", "/workspace")
    parts = configured(gpus=2, nodes=4)
    assert parts.pod_gpus == 0
    assert json.loads(parts.job) == {"nodes": 4, "gpus": 2, "gpu_type": "nvidia.com/gpu"}


def test_the_data_revision_changes_with_the_scans_and_is_checked(tmp_path):
    raw = {"data_source": "nifti", "data_root": str(tmp_path)}
    (tmp_path / "a.nii.gz").write_bytes(b"1")
    first = configured(**raw).data_revision
    assert configured(**raw, data_revision=first).data_revision == first
    (tmp_path / "b.nii.gz").write_bytes(b"2")
    second = configured(**raw).data_revision
    assert second != first
    with pytest.raises(UsageError, match=f"data revision {first} is not here: data.root .* has revision {second}"):
        configured(**raw, data_revision=first)
    with pytest.raises(UsageError, match="no such folder"):
        configured(data_source="nifti", data_root=str(tmp_path / "nowhere"))


def test_a_branch_becomes_the_commit_that_every_task_then_reads(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=test", "-c", "user.email=test")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.nii.gz").write_bytes(b"1")
    git("init", "-q", "-b", "main")
    git("add", "raw")
    git("commit", "-qm", "scans")
    raw = {"data_source": "nifti", "data_root": f"{tmp_path}//raw", "overrides": ["data.revision=main"]}
    first = configured(**raw)
    data = config.parse(json.loads(first.ingest)).data
    assert data.revision == git("rev-parse", "HEAD").strip()
    assert configured(**raw, data_revision=first.data_revision).data_revision == first.data_revision
    with pytest.raises(UsageError, match=r"data.revision v7: .*give a branch, tag or commit that the repository has"):
        configured(**{**raw, "overrides": ["data.revision=v7"]})
    (tmp_path / "raw" / "a.nii.gz").write_bytes(b"2")
    git("commit", "-qam", "others")
    with pytest.raises(UsageError, match=f"data revision {first.data_revision} is not here: data.revision "):
        configured(**raw, data_revision=first.data_revision)


def test_the_phantoms_revision_is_that_of_their_parameters():
    fewer = configured(overrides=["data.phantom.patients=30"])
    assert configured().data_revision == configured(search_steps="9").data_revision != fewer.data_revision


def test_other_classes_pass_through_every_part():
    parts = configured("classes: [covid, normal]\nevaluate: {positive: covid}\n")
    told = [getattr(parts, name) for name in ("ingest", "training", "search", "whole", "rollout")]
    assert all(config.parse(json.loads(part)).classes == ("covid", "normal") for part in told)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"search_steps": "0"}, "search.steps"),
        ({"search_steps": "many"}, "search.steps"),
        ({"profile": "papr"}, "profile 'papr'"),
        ({"overrides": ["search.step=3"]}, "did you mean search.steps"),
        ({"baselines": ["resnet"]}, "baselines"),
        ({"variants": ["M"]}, "search.variants"),
        ({"data_source": "dicom"}, "set data.root"),
        ({"gate_margin": "2"}, "gate.margin"),
        ({"gate_at_least": "[accuracy]"}, "gate.at_least"),
        ({"service": "Not A Name"}, "deploy.service"),
        ({"overrides": ["deploy.registry=model-registry-service:8080"]}, "deploy.registry"),
        ({"nodes": 0}, "expected nodes of 1 to 256"),
        ({"shards": 0}, "expected shards of 1 to 256"),
        ({"gpus": -1}, "gpus of 0 to 16"),
    ],
)
def test_a_wrong_parameter_is_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        configured(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overrides": ["baselines=[mc3_18, resnet3d101]"]}, "not by `overrides`"),
        ({"overrides": ["search.variants=[L]"]}, "not by `overrides`"),
        ({"baselines": []}, "at least one"),
        ({"variants": []}, "at least one"),
    ],
)
def test_branches_that_the_graph_could_not_follow_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        configured(**arguments)
