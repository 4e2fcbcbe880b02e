import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import toy_bundle

from covidnet.errors import CovidnetError
from covidnet.export import bundle
from covidnet.export.bundle import Bundle

ALL = (*bundle.FILES, bundle.SUMS)


@pytest.fixture
def copy(toy: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy.path, tmp_path / "copy"))


def sign(folder: Path) -> None:
    """Make the sums fit again, as one who alters a bundle on purpose would."""
    names = sorted(path.name for path in folder.iterdir() if path.name != bundle.SUMS)
    lines = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, text=True, check=True).stdout
    (folder / bundle.SUMS).write_text(lines)


def test_contents_are_what_was_written(toy: Bundle) -> None:
    listing = " ".join(sorted(p.name for p in toy.path.iterdir() if p.suffix != ".json"))
    assert listing == "MODEL_CARD.md SHA256SUMS model.onnx weights.safetensors"
    listing = " ".join(sorted(p.name for p in toy.path.glob("*.json")))
    assert listing == "calibration.json genotype.json labels.json preprocess.json reference.json"
    assert toy.labels == ("NCP", "CP", "Normal")
    assert toy.calibration.to_dict() == toy_bundle.CALIBRATION.to_dict()
    assert toy.preprocess["size"] == [8, 24, 24]
    assert toy.genotype == toy_bundle.GENOTYPE
    assert toy.reference == toy_bundle.REFERENCE


def test_sums_are_those_of_sha256sum(toy: Bundle) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", bundle.SUMS], cwd=toy.path, check=True, capture_output=True)
    whole = subprocess.run(["sha256sum", bundle.SUMS], cwd=toy.path, check=True, capture_output=True, text=True)
    assert whole.stdout.startswith(toy.version)
    assert len(toy.version) == 12


def test_another_process_in_another_folder_writes_the_same_bytes(toy: Bundle, tmp_path: Path, repository: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(
        [sys.executable, str(repository / "tests" / "toy_bundle.py"), str(tmp_path)],
        cwd=tmp_path / "elsewhere",
        env={"PYTHONPATH": str(repository), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    for name in ALL:
        assert (tmp_path / "bundle" / name).read_bytes() == (toy.path / name).read_bytes(), name


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("bit", [0x01, 0x20])
def test_an_altered_byte_is_refused(copy: Path, name: str, position: float, bit: int) -> None:
    content = bytearray((copy / name).read_bytes())
    content[int(position * (len(content) - 1))] ^= bit
    (copy / name).write_bytes(content)
    # A damaged sum accuses the file that it stands for: which of the two is right can't be known.
    with pytest.raises(CovidnetError, match=r"altered.*copy the whole bundle again") as refused:
        Bundle.load(copy)
    assert name in str(refused.value) or name == bundle.SUMS


@pytest.mark.parametrize("name", ALL)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CovidnetError, match=rf"{name} is missing from the bundle; copy"):
        Bundle.load(copy)


def test_an_unlisted_file_is_refused(copy: Path) -> None:
    (copy / "handler.py").write_text("print('run me')")
    with pytest.raises(CovidnetError, match=r"handler\.py doesn't belong to the bundle .*; remove it"):
        Bundle.load(copy)


def test_a_listed_extra_file_is_refused(copy: Path) -> None:
    (copy / "weights.pkl").write_bytes(b"")
    with (copy / bundle.SUMS).open("a") as stream:
        stream.write(f"{'0' * 64}  weights.pkl\n")
    with pytest.raises(CovidnetError, match=r"weights\.pkl doesn't belong"):
        Bundle.load(copy)


def test_no_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(CovidnetError, match="no such folder; give the bundle that `covidnet export` wrote"):
        Bundle.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("labels.json", lambda _: ["CP", "NCP", "Normal"], r"labels\.json doesn't match model\.onnx"),
        ("labels.json", lambda _: {"classes": []}, r"labels\.json: expected a JSON list of at least two class names"),
        ("preprocess.json", lambda tree: {**tree, "crop": "body"}, r"preprocess\.json doesn't match model\.onnx"),
        ("preprocess.json", lambda _: [], r"preprocess\.json: expected a JSON object, found list"),
        ("genotype.json", lambda tree: {**tree, "channels": 3}, r"genotype\.json doesn't match model\.onnx"),
        ("calibration.json", lambda tree: {**tree, "temperature": 1.0}, r"expected temperature 1\.7, found 1\.0"),
        (
            "calibration.json",
            lambda _: {"temperature": 1.7},
            r"calibration\.json: expected the number temperature",
        ),
        (
            "calibration.json",
            lambda tree: {**tree, "novelty": {**tree["novelty"], "mean": [0]}},
            r"calibration\.json: novelty: expected 67 finite means",
        ),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    copy: Path, name: str, change: Callable[[object], object], message: str
) -> None:
    tree = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(change(tree)))
    sign(copy)
    with pytest.raises(CovidnetError, match=message):
        Bundle.load(copy)


def test_weights_outside_of_the_model_are_refused(copy: Path) -> None:
    model = onnx.load(copy / "model.onnx")
    tensor = max(model.graph.initializer, key=lambda initializer: len(initializer.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    (copy / "model.onnx").write_bytes(model.SerializeToString())
    sign(copy)
    with pytest.raises(CovidnetError, match=r"model\.onnx refers to weights outside of the file, which is refused"):
        Bundle.load(copy)


@pytest.mark.parametrize("content", [b"", b"\xff\xff not an ONNX file"])
def test_what_is_no_model_is_refused(copy: Path, content: bytes) -> None:
    (copy / "model.onnx").write_bytes(content)
    sign(copy)
    with pytest.raises(CovidnetError, match=r"model\.onnx"):
        Bundle.load(copy)


def test_a_bundle_is_not_written_over_other_files(toy: Bundle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CovidnetError, match="is not empty"):
        bundle.write(
            tmp_path,
            model=toy.model,
            weights=toy.path / "weights.safetensors",
            genotype=toy.genotype,
            preprocess=toy.preprocess,
            labels=toy.labels,
            calibration=toy.calibration,
            card="",
        )


def test_fingerprint_ignores_key_order_and_tuples() -> None:
    assert bundle.fingerprint({"a": (1, 2), "b": None}) == bundle.fingerprint({"b": None, "a": [1, 2]})
    assert bundle.fingerprint({"a": 1}) != bundle.fingerprint({"a": 2})


def test_a_bundle_without_a_reference_profile_is_read(toy: Bundle, tmp_path: Path) -> None:
    older = shutil.copytree(toy.path, tmp_path / "older")
    (older / "reference.json").unlink()
    lines = (older / bundle.SUMS).read_text().splitlines(keepends=True)
    (older / bundle.SUMS).write_text("".join(line for line in lines if "reference.json" not in line))
    assert Bundle.load(older).reference is None
