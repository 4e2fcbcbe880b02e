import json
import resource
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from covidnet.cli import app
from docs.generate.commands import commands

VERBS = [name.removeprefix("covidnet ") for name, _ in commands(get_command(app), "covidnet")]


def covidnet(*arguments, cwd=None):
    command = [sys.executable, "-m", "covidnet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(verb):
    result = CliRunner().invoke(app, [*verb.split(), "--help"])
    assert result.exit_code == 0
    assert f"$ covidnet {verb}" in result.output


def test_help_lists_every_verb_imports_nothing_heavy_and_comes_at_once():
    code = (
        "import sys, covidnet.cli; from typer.testing import CliRunner;"
        "print(CliRunner().invoke(covidnet.cli.app, ['--help']).output);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'scipy', 'pydantic')))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0, "covidnet --help imported a heavy package"
    assert all(verb.split()[0] in result.stdout for verb in VERBS)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # whatever else the machine does
    assert seconds < 0.5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "-S", "search.step=3"], 2, "did you mean search.steps?"),
        (["search", "-S", "search.steps=0"], 2, "search.steps"),
        (["search", "--sweep", "small"], 2, "expected sizes in MiB"),
        (["search", "--variant", "M"], 2, "S, L"),
        (["latency", "--input", "16x64x64"], 2, "expected D,H,W"),
        (["latency", "--engine", "tensorrt"], 2, "engine tensorrt needs device gpu"),
        (["baseline", "--model", "resnet"], 2, "resnet3d101, densenet3d121, mc3_18"),
        (["models", "--input", "16x64x64"], 2, "expected D,H,W"),
        (["retrain"], 1, "run `covidnet search --variant S` first"),
        (["search"], 1, "run `covidnet ingest` first"),
        (["evaluate"], 1, "run `covidnet ingest` first"),
        (["export"], 1, "run `covidnet evaluate` first"),
        (["audit", "nowhere"], 1, "not a packed dataset"),
        (["audit", ".", "--splits", "a.json"], 2, "expected two or three files"),
        (["ingest", "--params", "nowhere.yaml"], 2, "no such file: nowhere.yaml"),
        (["ingest", "-S", "data.source=nifti", "-S", "data.root=nowhere"], 2, "no such folder: nowhere"),
        (["inspect", "nowhere.nii.gz"], 2, "no such file or folder"),
        (["predict", "nowhere.nii.gz", "--bundle", "nowhere"], 1, "nowhere"),
        (["evaluate", "--unknown"], 2, "No such option"),
    ],
)
def test_faults_end_with_a_message_a_code_and_no_traceback(tmp_path, arguments, code, message):
    result = covidnet(*arguments, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_models_prints_one_json_document(tmp_path):
    result = covidnet("models", "--json", "--channels", 3, "--input", "32,128,128", cwd=tmp_path)
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows["densenet3d121"]["size_mib"] == pytest.approx(43.06, rel=0.002)
    assert {"covidnet3d-s", "covidnet3d-l"} < set(rows)


def test_audit_of_leaking_split_files_exits_with_one(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps({"NCP": {"1": {"s": ["0.png"]}}}))
    (tmp_path / "test.json").write_text(json.dumps({"NCP": {"1": {"t": ["0.png"]}}}))
    result = covidnet("audit", ".", "--splits", "train.json", "test.json", "--json", cwd=tmp_path)
    assert result.returncode == 1
    assert json.loads(result.stdout)["leaks"] is True


def test_doctor_reports_what_is_installed():
    rows = {row["part"]: row for row in json.loads(covidnet("doctor", "--json").stdout)}
    assert rows["python"]["found"].startswith("3.")
    assert rows["torch"]["found"]
