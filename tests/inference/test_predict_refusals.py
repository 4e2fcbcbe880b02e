"""What `covidnet predict` answers to a bundle, an engine or a scan that won't do: a message, an exit code, and no answer."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import toy_bundle

from covidnet import cli
from covidnet.export.bundle import Bundle

NO_GPU = pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    np.save(tmp_path / "scan.npy", np.zeros(toy_bundle.SIZE, np.uint8))
    return tmp_path / "scan.npy"


def told(
    arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the verb."""
    monkeypatch.setattr(sys, "argv", ["covidnet", "predict", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        pytest.param(["--device", "gpu"], 2, "use device cpu, or install NVIDIA's driver", marks=NO_GPU),
        (
            ["--device", "gpu", "--engine", "tensorrt"],
            2,
            "engine tensorrt is not installed; pip install onnxruntime-gpu",
        ),
        (["--device", "gpu", "--engine", "openvino"], 2, "engine openvino runs on CPU here"),
        (["--engine", "caffe"], 2, "expected auto, openvino, onnxruntime or tensorrt"),
        (["--precision", "int8"], 2, "this bundle was exported without it"),
        (["--bundle", "nowhere"], 1, "nowhere"),
    ],
)
def test_what_is_not_there(
    toy: Bundle, scan: Path, options: list[str], code: int, message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found, out, err = told([scan, "--bundle", toy.path, *options], monkeypatch, capsys)
    assert (found, out) == (code, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "labels.json").unlink(), "labels.json is missing from the bundle"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"another"), "model.onnx"),
        (lambda folder: (folder / "SHA256SUMS").write_text("0" * 64 + "  model.onnx\n"), "SHA256SUMS"),
    ],
)
def test_a_damaged_bundle_answers_nothing(
    toy: Bundle, scan: Path, damage: object, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = Path(shutil.copytree(toy.path, tmp_path / "bundle"))
    damage(folder)  # type: ignore[operator]
    found, out, err = told([scan, "--bundle", folder], monkeypatch, capsys)
    assert (found, out) == (1, "")
    assert message in err


def test_a_volume_of_another_shape_is_named_and_the_others_are_answered(
    toy: Bundle, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "large.npy", np.zeros((9, 24, 24), np.uint8))
    found, out, _ = told([tmp_path / "large.npy", scan, "--bundle", toy.path], monkeypatch, capsys)
    first, second = out.splitlines()
    assert found == 1
    assert "expected a prepared volume of uint8 (8, 24, 24) in the .npy file, found uint8 (9, 24, 24)" in first
    assert '"label"' in second
