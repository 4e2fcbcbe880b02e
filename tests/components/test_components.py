import ast
import builtins
import json
import sys
import typing
from pathlib import Path

import pytest
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
from covidnet import folder
from covidnet.deploy.findings import Findings

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
        "run_id": "r1",
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
    monkeypatch.setattr("covidnet.stages.register", lambda *a: seen.update(told=a[-3:]) or "done")
    register.register.python_func(
        params="{}",
        data_revision="d1",
        code="c1",
        run_id="r1",
        run_name="nightly-1",
        evaluation=artifact(dsl.Artifact, tmp_path / "evaluation"),
        bundle=dsl.Model(name="bundle", uri="s3://models/bundle", metadata={}),
        summary=artifact(dsl.Markdown, tmp_path / "summary"),
    )
    uri, lineage, run = seen["told"]
    assert uri == "s3://models/bundle/bundle"
    assert lineage == {"data_revision": "d1", "code": "c1"}
    assert run == {"id": "r1", "name": "nightly-1"}


def ended(tmp_path, state, message=None):
    """What the last task says."""
    status = dsl.PipelineTaskFinalStatus(state, "run", "stages", error_code=None, error_message=message)
    report.report.python_func("r1", status, artifact(dsl.Markdown, tmp_path / "summary"))
    return (tmp_path / "summary").read_text()


@pytest.mark.parametrize(
    ("state", "message", "expected"),
    [
        ("SUCCEEDED", None, "Run SUCCEEDED.\n\nWhether"),
        ("RUNNING", None, "All tasks have ended.\n\nWhether"),
        ("FAILED", "search failed.", "Run FAILED.\nsearch failed. The log"),
    ],
)
def test_the_last_task_says_how_the_run_ended(tmp_path, monkeypatch, state, message, expected):
    monkeypatch.delenv(folder.WORKSPACE, raising=False)
    assert ended(tmp_path, state, message).startswith(expected)


def test_a_gate_that_is_not_met_ends_the_run_well_with_the_reason_on_its_first_page(tmp_path, monkeypatch):
    """The last task stands at the top of the graph; the gate is two sub-DAGs below."""
    monkeypatch.setenv(folder.WORKSPACE, str(tmp_path))
    found = Findings([(False, "accuracy 0.4000 on the test split (at least 0.5)")])
    monkeypatch.setattr("covidnet.stages.gate", lambda *_: found)
    parts = {name: artifact(dsl.Artifact, tmp_path / name) for name in ("dataset", "evaluation", "winner", "reason")}
    assert gate.gate.python_func(params="{}", run_id="r1", baselines=[], **parts) is False
    other = dsl.PipelineTaskFinalStatus("SUCCEEDED", "run", "stages", error_code=None, error_message=None)
    report.report.python_func("r2", other, artifact(dsl.Markdown, tmp_path / "of another run"))
    assert "accuracy" not in (tmp_path / "of another run").read_text()
    told = ended(tmp_path, "SUCCEEDED")
    assert told.startswith("Run SUCCEEDED.\n\nGate not passed: no bundle is exported.")
    assert "**not met**: accuracy 0.4000 on the test split (at least 0.5)" in told
    assert not list(tmp_path.glob("verdict-*"))


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
