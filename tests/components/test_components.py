import ast
import builtins
import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml
from kfp import dsl

from components import (
    audit,
    baseline,
    configure,
    deploy,
    evaluate,
    export,
    gate,
    ingest,
    ingest_shard,
    register,
    release,
    report,
    retrain,
    search,
    smoke_test,
)  # fmt: skip
from covidnet import config, folder
from covidnet.deploy.findings import Findings
from covidnet.errors import UsageError

STAGES = [
    audit,
    baseline,
    deploy,
    evaluate,
    export,
    gate,
    ingest,
    ingest_shard,
    register,
    release,
    retrain,
    search,
    smoke_test,
]
MODULES = [*STAGES, configure, report]


def name_of(module):
    return module.__name__.rpartition(".")[2]


def function_of(module):
    return getattr(module, name_of(module))


def tree_of(module):
    return ast.parse(Path(module.__file__).read_text())


def imports(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def test_every_component_is_under_test(repository):
    files = {file.stem for file in (repository / "components").glob("*.py")} - {"__init__"}
    assert files == {name_of(module) for module in MODULES}


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_only_standard_library_and_kfp_at_module_top(module):
    found = set(imports(tree_of(module).body))
    assert found <= set(sys.stdlib_module_names) | {"kfp", "components"}


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_component_and_each_of_its_inputs_explains_itself_in_the_ui(module):
    spec = function_of(module).component_spec
    assert spec.description
    described = ast.get_docstring(tree_of(module).body[-1])
    assert all(f"{name}:" in described for name in [*(spec.inputs or {})])
    assert all(
        f"{name}:" in described for name, output in (spec.outputs or {}).items() if output.type.startswith("system.")
    )


@pytest.mark.parametrize("module", STAGES, ids=name_of)
def test_a_stage_component_makes_one_use_of_the_stage_of_its_name(module):
    """Called, or handed to `train_job.run`, which calls it here or in a TrainJob."""
    used = [
        node.attr
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "stages"
        and not node.attr.endswith("_of")  # where folders lie
    ]
    assert used == [name_of(module)]


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_the_body_stands_alone_once_kfp_has_cut_it_out(module):
    """KFP runs the function's source without its module, below `from kfp import dsl` and `from typing import *`."""
    function = tree_of(module).body[-1]
    stored = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    given = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    local = {node.name for node in ast.walk(function) if isinstance(node, ast.FunctionDef)}
    loaded = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    assert loaded - stored - imported - given - local - set(dir(builtins)) <= {"dsl", "IMAGE", *typing.__all__}


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
        found = set(json.loads(getattr(parts, part_of.get(name, name))))
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


def artifact(kind, path, **metadata):
    return kind(name=path.name, uri=str(path), metadata=metadata)


@pytest.fixture
def audited(tmp_path):
    """Run the audit on a packed dataset of the given (patient, split) rows."""
    import numpy as np

    from covidnet.data import packed

    def run(*rows, allow=()):
        dataset = tmp_path / "dataset"
        with folder.write(dataset, "ingest", {}, {}) as work:
            np.save(work / "scans.npy", np.zeros((len(rows), 8, 16, 16), np.uint8))
            packed.write_manifest(
                work / "manifest.csv",
                [
                    packed.Row(f"s{i}", patient, "NCP", split, "phantom", f"sha{i}", "1;1;1", 8, "")
                    for i, (patient, split) in enumerate(rows)
                ],
            )
        metrics, findings = dsl.Metrics(), artifact(dsl.Markdown, tmp_path / "findings")
        try:
            params = json.dumps({"data": {"allow": allow}})
            audit.audit.python_func(params, artifact(dsl.Dataset, dataset), metrics, findings)
        finally:
            run.findings = (tmp_path / "findings").read_text()
        return metrics.metadata

    return run


def test_a_clean_dataset_passes_the_audit(audited):
    metrics = audited(("a", "train"), ("a", "train"), ("b", "validation"), ("c", "test"))
    assert metrics["patients_train"] == 1
    assert metrics["scans_train"] == 2
    assert "No leak found." in audited.findings


LEAKING = (("a", "train"), ("b", "train"), ("a", "test"), ("c", "test"))


@pytest.mark.parametrize("allow", [(), ("duplicate-scan",)])
def test_a_leak_ends_the_run_and_is_told_in_the_ui(audited, allow):
    with pytest.raises(ValueError, match="1 patient"):
        audited(*LEAKING, allow=allow)
    assert "**leak**: " in audited.findings
    assert "both in train and in test" in audited.findings


def test_a_leak_that_the_configuration_allows_by_name_is_told_and_passes(audited):
    audited(*LEAKING, allow=["patient-overlap"])
    assert "**leak**, allowed: " in audited.findings


@pytest.mark.parametrize(
    ("module", "stage", "file", "good", "bad"),
    [
        (gate, "gate", "reason", "Gate passed: the winner is exported.", "Gate not passed: no bundle is exported."),
        (smoke_test, "smoke_test", "findings", "Smoke test passed.", "Smoke test failed: the canary is taken back."),
        (release, "release", "findings", "Released.", "Rolled back: the model before serves on."),
    ],
    ids=["gate", "smoke_test", "release"],
)
@pytest.mark.parametrize("met", [True, False])
def test_a_verdict_is_the_tasks_output_and_its_reasons_are_in_the_ui(
    tmp_path, monkeypatch, module, stage, file, good, bad, met
):
    monkeypatch.setattr(f"covidnet.stages.{stage}", lambda *_: Findings([(True, "one thing"), (met, "another")]))
    given = {
        "evaluation": artifact(dsl.Artifact, tmp_path / "e"),
        "winner": artifact(dsl.Model, tmp_path / "w"),
        "bundle": artifact(dsl.Model, tmp_path / "b"),
        "dataset": artifact(dsl.Dataset, tmp_path / "d"),
        "baselines": [],
        "params": "{}",
        "passed": True,
        file: artifact(dsl.Markdown, tmp_path / file),
    }
    wanted = {*function_of(module).component_spec.inputs, file}
    assert function_of(module).python_func(**{name: given[name] for name in wanted}) is met
    text = (tmp_path / file).read_text()
    assert text.startswith(good if met else bad)
    assert "- met: one thing" in text
    assert f"- {'met' if met else '**not met**'}: another" in text


def test_the_cluster_loads_the_bundle_from_where_kubeflow_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr("covidnet.stages.deploy", lambda settings, path, uri: f"{path.name} from {uri}")
    bundle = dsl.Model(name="bundle", uri="minio://mlpipeline/v2/run/bundle", metadata={})
    deploy.deploy.python_func(params="{}", bundle=bundle, summary=artifact(dsl.Markdown, tmp_path / "summary"))
    assert (tmp_path / "summary").read_text() == "bundle from s3://mlpipeline/v2/run/bundle/bundle\n"


def test_a_bundle_is_registered_with_where_it_comes_from(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("covidnet.stages.register", lambda *a: seen.update(lineage=a[-1], uri=a[-2]) or "done")
    register.register.python_func(
        params="{}",
        data_revision="d1",
        code="c1",
        run_id="r1",
        evaluation=artifact(dsl.Artifact, tmp_path / "evaluation"),
        bundle=dsl.Model(name="bundle", uri="s3://models/bundle", metadata={}),
        summary=artifact(dsl.Markdown, tmp_path / "summary"),
    )
    assert seen["lineage"] == {"data_revision": "d1", "code": "c1", "kfp_run_id": "r1"}
    assert seen["uri"] == "s3://models/bundle/bundle"


@pytest.mark.parametrize(
    ("state", "message", "expected"),
    [("SUCCEEDED", None, "Run SUCCEEDED. Whether"), ("FAILED", "search failed.", "Run FAILED. search failed. The log")],
)
def test_the_last_task_says_how_the_run_ended(tmp_path, state, message, expected):
    status = dsl.PipelineTaskFinalStatus(state, "run", "stages", error_code=None, error_message=message)
    report.report.python_func(status, artifact(dsl.Markdown, tmp_path / "summary"))
    assert (tmp_path / "summary").read_text().startswith(expected)


@pytest.fixture
def candidates(tmp_path):
    """Artifacts as a run leaves them: every folder has the same name, only metadata tells them apart."""

    def made(kind, place):
        folder = tmp_path / "artifacts" / place.replace("/", "-") / "model"
        folder.mkdir(parents=True)
        (folder / "name.txt").write_text(place)
        return artifact(kind, folder, folder=place)

    return {
        "baselines": [made(dsl.Model, "baseline/mc3_18"), made(dsl.Model, "baseline/resnet3d101")],
        "genotypes": [made(dsl.Artifact, "search/S")],
        "retrained": [made(dsl.Model, "retrain/S")],
    }


def test_evaluate_sees_candidates_as_under_results_and_hands_on_the_winner(tmp_path, monkeypatch, candidates):
    seen = {}

    def stage(settings, dataset, paths, out):
        seen["names"] = [f"{path.parent.name}/{path.name}" for path in paths]
        seen["contents"] = [(path / "name.txt").read_text() for path in paths]
        seen["search"] = (paths[0].parent.parent / "search" / "S" / "name.txt").read_text()
        (out / "plots").mkdir(parents=True)
        (out / "results.json").write_text(json.dumps({"winner": {"folder": "baseline/mc3_18"}}))
        (out / "plots" / "confusion.csv").write_text("actual,predicted\nNCP,NCP\nNCP,CP\nCP,CP\nNormal,NCP\n")
        (out / "plots" / "roc.csv").write_text(
            "class,false_positive_rate,sensitivity,threshold\nNCP,0,0,1\nNCP,1,1,0.2\nCP,0,0.5,0.4\n"
        )
        (out / "report.html").write_text("<h1>report</h1>")
        (out / "summary.md").write_text("**found**")
        return {"accuracy": 0.5, "winner": "mc3_18", "kappa": None}

    monkeypatch.setattr("covidnet.stages.evaluate", stage)
    outputs = {
        "evaluation": artifact(dsl.Artifact, tmp_path / "evaluation"),
        "winner": artifact(dsl.Model, tmp_path / "winner"),
        "metrics": artifact(dsl.Metrics, tmp_path / "metrics"),
        "confusion": artifact(dsl.ClassificationMetrics, tmp_path / "confusion"),
        "report": artifact(dsl.HTML, tmp_path / "report"),
        "summary": artifact(dsl.Markdown, tmp_path / "summary"),
    }
    dataset = artifact(dsl.Dataset, tmp_path / "dataset")
    evaluate.evaluate.python_func(params="{}", code="", dataset=dataset, **candidates, **outputs)

    assert seen["names"] == seen["contents"] == ["retrain/S", "baseline/mc3_18", "baseline/resnet3d101"]
    assert seen["search"] == "search/S"
    assert (tmp_path / "winner" / "name.txt").read_text() == "baseline/mc3_18"
    assert outputs["metrics"].metadata == {"accuracy": 0.5}
    matrix = outputs["confusion"].metadata["confusionMatrix"]
    assert [spec["displayName"] for spec in matrix["annotationSpecs"]] == ["NCP", "CP", "Normal"]
    assert [row["row"] for row in matrix["rows"]] == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    curve = outputs["confusion"].metadata["confidenceMetrics"]
    assert [(p["falsePositiveRate"], p["recall"], p["confidenceThreshold"]) for p in curve] == [(0, 0, 1), (1, 1, 0.2)]
    assert (tmp_path / "report").read_text() == "<h1>report</h1>"
    assert (tmp_path / "summary").read_text() == "**found**"


def test_export_gets_the_winner_under_its_own_name(tmp_path, monkeypatch, candidates):
    def stage(settings, dataset, evaluated, paths, out):
        assert [(f"{path.parent.name}/{path.name}", (path / "name.txt").read_text()) for path in paths] == [
            ("retrain/S", "retrain/S")
        ]
        (out / "bundle").mkdir(parents=True)
        (out / "bundle" / "MODEL_CARD.md").write_text("# Card\n")
        return {"onnx_max_difference": 1e-6}

    monkeypatch.setattr("covidnet.stages.export", stage)
    bundle, metrics = artifact(dsl.Model, tmp_path / "bundle"), artifact(dsl.Metrics, tmp_path / "metrics")
    export.export.python_func(
        params="{}",
        code="",
        dataset=artifact(dsl.Dataset, tmp_path / "dataset"),
        evaluation=artifact(dsl.Artifact, tmp_path / "evaluation", winner="retrain/S"),
        winner=candidates["retrained"][0],
        bundle=bundle,
        metrics=metrics,
        model_card=artifact(dsl.Markdown, tmp_path / "card"),
    )
    assert metrics.metadata == {"onnx_max_difference": 1e-6}
    assert (tmp_path / "card").read_text() == "# Card\n"
