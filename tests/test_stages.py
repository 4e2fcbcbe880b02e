"""The whole chain on a few phantoms, as `dvc repro` runs it; what comes out is the contract of the design document."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

PARAMS = {
    "data": {"phantom": {"patients": 90, "detail": [24, 64, 64]}, "size": [16, 32, 32]},
    "training": {"tmacs": 0.01, "evaluations": 2},
    "search": {"size": [16, 32, 32], "warmup_steps": 3, "steps": 3, "candidates": 2, "random": 2},
    "baselines": ["densenet3d121"],
    "evaluate": {"bootstrap": 100, "overlays": 1},
}
REPOSITORY = Path(__file__).parent.parent


def start(arguments, cwd):
    command = [sys.executable, "-m", "covidnet", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(arguments, cwd):
    process = start(arguments, cwd)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out, err


def dvc(*arguments, cwd):
    """What a user's `dvc …` prints in that folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(cwd), "PATH": path}
    command = [sys.executable, "-m", "dvc", *arguments]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A clone with a small configuration, in which `dvc repro` has run once."""
    folder = tmp_path_factory.mktemp("chain")
    for name in ("covidnet", ".dvc/config", ".dvcignore", ".gitignore", "dvc.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPOSITORY / name, folder / name)
    params = merge(yaml.safe_load((REPOSITORY / "params.yaml").read_text()), PARAMS)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "clone"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    dvc("repro", cwd=folder)
    return folder


def merge(base, changes):
    """``base`` with nested values replaced."""
    return {
        **base,
        **{key: merge(base[key], value) if isinstance(value, dict) else value for key, value in changes.items()},
    }


pytestmark = pytest.mark.slow


def test_every_stage_leaves_metrics_and_provenance(chain):
    for name in ("dataset", "baseline/densenet3d121", "search/S", "retrain/S", "evaluate", "export"):
        out = chain / "results" / name
        metrics = json.loads((out / "metrics.json").read_text())
        assert all(isinstance(value, int | float | str | type(None)) for value in metrics.values()), name
        told = json.loads((out / "provenance.json").read_text())
        assert {"stage", "parameters", "inputs", "versions", "git_revision", "seconds", "peak_memory_mib"} <= set(told)
    assert not list(chain.rglob("*.partial"))


def test_the_packed_dataset_is_as_designed(chain):
    dataset = chain / "results" / "dataset"
    scans = np.load(dataset / "scans.npy", mmap_mode="r", allow_pickle=False)
    assert scans.dtype == np.uint8
    assert scans.shape == (90, 16, 32, 32)
    with (dataset / "manifest.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0])[:9] == [
        "scan_id", "patient_id", "label", "split", "source", "sha256", "spacing", "slices", "warnings",
    ]  # fmt: skip
    splits = {
        split: {r["patient_id"] for r in rows if r["split"] == split} for split in ("train", "validation", "test")
    }
    assert not splits["train"] & splits["test"]
    assert not splits["validation"] & splits["test"]
    assert (dataset / "rejected.csv").read_text().splitlines() == ["path,reason"]
    assert (dataset / "contact_sheet.png").stat().st_size > 10_000


def test_the_found_network_keeps_to_the_budget_and_is_the_one_that_was_retrained(chain):
    found = json.loads((chain / "results/search/S/metrics.json").read_text())
    retrained = json.loads((chain / "results/retrain/S/metrics.json").read_text())
    assert found["size_mib"] <= 4.0
    assert retrained["size_mib"] == pytest.approx(found["size_mib"], abs=1e-9)
    assert (chain / "results/search/S/architecture.svg").read_text().startswith("<svg")
    assert (chain / "results/search/S/probabilities.png").read_bytes().startswith(b"\x89PNG")


def test_models_were_given_the_same_compute(chain):
    spent = [
        json.loads((chain / "results" / name / "metrics.json").read_text())
        for name in ("baseline/densenet3d121", "retrain/S")
    ]
    for metrics in spent:
        one_batch = 16 * metrics["macs"] / 1e12
        assert metrics["training_tmacs"] <= max(0.01, one_batch) * 1.001
    assert spent[1]["scans_seen"] > 5 * spent[0]["scans_seen"]


def test_the_report_names_the_winner_and_asks_for_nothing_from_elsewhere(chain):
    report = (chain / "results/evaluate/report.html").read_text()
    results = json.loads((chain / "results/evaluate/results.json").read_text())
    assert results["winner"]["folder"] in ("retrain/S", "baseline/densenet3d121")
    assert "diagnosis" in report
    assert "trained with CutMix" in report  # and the baselines not, which whoever compares them has to know
    assert 'src="http' not in report
    assert 'href="http' not in report.replace('href="https://arxiv', "")


def test_predict_runs_from_the_bundle_alone_without_torch(chain, tmp_path):
    import nibabel

    rng = np.random.default_rng(0)
    image = nibabel.Nifti1Image(rng.integers(-1000, 200, (64, 64, 24)).astype(np.int16), np.diag([5.0, 5.0, 8.0, 1.0]))
    nibabel.save(image, tmp_path / "scan.nii.gz")
    code = (
        "import sys; sys.argv = ['covidnet', 'predict', 'scan.nii.gz', '--bundle', sys.argv[1], '--explain', 'maps'];"
        "import covidnet.cli\n"
        "try: covidnet.cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    bundle = chain / "results/export/bundle"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [sys.executable, "-c", code, str(bundle)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert len(list((tmp_path / "maps").glob("*.png"))) == 1


def test_a_stage_that_is_complete_says_so_and_does_nothing(chain):
    before = (chain / "results/search/S/search.json").stat().st_mtime_ns
    _, err = run(["search"], chain)
    assert "nothing to do" in err
    assert (chain / "results/search/S/search.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_search_leaves_nothing_whole_and_ends_right_when_run_again(chain, tmp_path, how):
    """The same result as the uninterrupted one, to the last digit."""
    shutil.copytree(chain / "results/dataset", tmp_path / "results/dataset")
    (tmp_path / "params.yaml").write_text((chain / "params.yaml").read_text())
    process = start(["search"], tmp_path)
    partial = tmp_path / "results/search/S.partial"
    for _ in range(600):
        if partial.is_dir() or process.poll() is not None:
            break
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(how)
    process.wait(timeout=120)
    assert not (tmp_path / "results/search/S").exists()
    run(["search"], tmp_path)
    for name in ("genotype.json", "search.json"):
        assert (tmp_path / "results/search/S" / name).read_bytes() == (chain / "results/search/S" / name).read_bytes()


@pytest.mark.parametrize(
    ("verb", "name", "files"),
    [
        ("baseline --model densenet3d121", "baseline/densenet3d121", ["model.safetensors", "metrics.json"]),
        ("retrain", "retrain/S", ["model.safetensors", "metrics.json"]),
        ("evaluate", "evaluate", ["test-covidnet3d-s.csv", "metrics.json"]),
        ("export", "export", ["bundle/SHA256SUMS"]),
    ],
)
def test_any_other_stage_may_be_killed_and_ends_right_when_run_again(chain, tmp_path, verb, name, files):
    """As for the search above; `ingest` has a test of its own. No other result is touched."""
    shutil.copytree(chain / "results", tmp_path / "results", ignore=shutil.ignore_patterns("logs"))
    shutil.rmtree(tmp_path / "results" / name)
    others = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").glob("**/*.safetensors")}
    (tmp_path / "params.yaml").write_text((chain / "params.yaml").read_text())
    process = start(verb.split(), tmp_path)
    partial = tmp_path / "results" / f"{name}.partial"
    while not partial.is_dir():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)
    process.kill()
    process.wait(timeout=60)
    assert not (tmp_path / "results" / name).exists()
    run(verb.split(), tmp_path)
    for file in files:
        assert (tmp_path / "results" / name / file).read_bytes() == (chain / "results" / name / file).read_bytes()
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert not list((tmp_path / "results").rglob("*.partial"))


def test_a_changed_parameter_of_one_stage_leaves_the_others_complete(chain):
    _, err = run(["retrain", "-S", "evaluate.bootstrap=150"], chain)
    assert "nothing to do" in err


EVERY_MODEL = {"baseline@densenet3d121", "retrain@S"}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ({"data": {"min_slices": 9}}, {"ingest", "evaluate", "export"}),
        ({"training": {"lr": 0.001}}, {*EVERY_MODEL, "evaluate"}),
        ({"search": {"alpha_lr": 0.01}}, {"search@S"}),
        ({"augment": {"noise": 0.0}}, {*EVERY_MODEL, "search@S"}),
        ({"evaluate": {"bootstrap": 150}}, {"evaluate"}),
        ({"export": {"false_alarm_rate": 0.1}}, {"evaluate", "export"}),
    ],
)
def test_a_parameter_is_declared_by_the_stages_that_read_it(chain, change, stages):
    """What else must run follows from the outputs: a stage whose inputs come out the same is skipped."""
    assert json.loads(dvc("status", "--json", cwd=chain)) == {}
    kept = (chain / "params.yaml").read_text()
    try:
        (chain / "params.yaml").write_text(yaml.safe_dump(merge(yaml.safe_load(kept), change), sort_keys=False))
        assert set(json.loads(dvc("status", "--json", cwd=chain))) == stages
    finally:
        (chain / "params.yaml").write_text(kept)


def test_an_experiment_reruns_only_what_depends_on_its_parameter_and_can_be_compared(chain, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(chain, clone)
    told = dvc("exp", "run", "-S", "evaluate.bootstrap=150", cwd=clone)
    assert set(re.findall(r"Running stage '(.+)'", told)) == {"evaluate", "export"}
    assert "'search@S' didn't change, skipping" in told
    changed = json.loads(dvc("params", "diff", "--json", cwd=clone))
    assert changed == {"params.yaml": {"evaluate.bootstrap": {"old": 100, "new": 150, "diff": 50}}}
    shown = json.loads(dvc("metrics", "show", "--json", cwd=clone))[""]["data"]
    assert {Path(name).parent.name for name in shown} == {"evaluate", "S", "export"}
    page = Path(dvc("plots", "show", "--out", "plots", cwd=clone).strip().removeprefix("file://")).read_text()
    for column in ("false_positive_rate", "predicted", "expected_size_mib"):
        assert column in page
