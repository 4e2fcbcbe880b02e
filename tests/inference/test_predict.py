import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import toy_bundle
from PIL import Image

from covidnet.data.preprocess import NO_LUNGS, Prepared, Spec, prepare
from covidnet.data.scan import Scan
from covidnet.data.sources import read_scan
from covidnet.errors import CovidnetError
from covidnet.export.bundle import Bundle, Calibration
from covidnet.inference import predict as module
from covidnet.inference.engine import load
from covidnet.inference.predict import interpret, predict


def thorax(lungs: bool = True) -> np.ndarray:
    """HU ``(D, H, W)``: an elliptic body of water with two lungs in it."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (24, 64, 64)), indexing="ij")
    voxels = np.where((y / 0.7) ** 2 + (x / 0.9) ** 2 < 1, 40, -1000)
    for side in (-0.4, 0.4) if lungs else ():
        voxels[(z / 0.8) ** 2 + (y / 0.5) ** 2 + ((x - side) / 0.3) ** 2 < 1] = -800
    return voxels.astype(np.int16)


def save(path: Path, voxels: np.ndarray) -> Path:
    """NIfTI whose indices run from head to feet, front to back and right to left, as a `Scan`'s do."""
    affine = np.array([[0, 0, -6, 0], [0, -6, 0, 0], [-10, 0, 0, 0], [0, 0, 0, 1]], dtype=float)  # to RAS, mm
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("scans") / "DOE_JOHN_19700101.nii.gz", thorax())


def test_each_scan_gets_what_the_engine_says_of_it(toy: Bundle, scan: Path) -> None:
    (result,) = predict([scan], toy.path)
    outputs = load(toy).run(prepare(read_scan(scan), Spec.from_dict(toy.preprocess)).volume[None, None])
    assert result["scan"] == 1
    assert list(result["probabilities"]) == ["NCP", "CP", "Normal"]
    np.testing.assert_allclose(list(result["probabilities"].values()), outputs.probabilities[0], atol=1e-6)
    assert result["label"] == max(result["probabilities"], key=result["probabilities"].get)
    assert result["bundle"] == toy.version
    assert set(result["seconds"]) == {"decode", "preprocess", "inference"}
    assert "overlay" not in result
    json.dumps(result)


def test_an_unreadable_scan_is_reported_and_the_rest_goes_on(toy: Bundle, scan: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no scan")
    results = list(predict([scan, broken, tmp_path / "absent", scan], toy.path))
    assert [result["scan"] for result in results] == [1, 2, 3, 4]
    assert ["error" in result for result in results] == [False, True, True, False]
    assert set(results[1]) == {"scan", "error"}
    assert results[0]["probabilities"] == results[3]["probabilities"]


def test_errors_do_not_carry_the_names_of_single_files(
    toy: Bundle, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Scan:
        raise PermissionError(13, "Permission denied", "/archive/ROE^JANE/1.dcm")

    monkeypatch.setattr(module, "read_scan", refuse)
    (result,) = predict([scan], toy.path)
    assert result["error"] == "the scan can't be read: Permission denied"


def test_novelty_above_the_threshold_is_flagged(toy: Bundle) -> None:
    logits, probabilities = np.array([2.0, 1.0, 0.0], np.float32), np.array([0.5, 0.3, 0.2], np.float32)
    grey = Prepared(np.full(toy_bundle.SIZE, 100, np.uint8), ((0, 1), (0, 1), (0, 1)), {}, ())
    distance = 100 * np.sqrt(32)  # 32 cells of mean 100, no spread, no steps
    for threshold, flags in ((distance * 0.999, ["out-of-distribution"]), (distance * 1.001, [])):
        bundle = replace(toy, calibration=Calibration(1.7, toy_bundle.detector(threshold)))
        found = interpret(logits, probabilities, grey, bundle)
        assert found["novelty"] == pytest.approx(np.log(distance / threshold), abs=1e-9)
        assert found["flags"] == flags
        assert found["label"] == "NCP"
        # -T log sum exp(logits / T), Liu et al. 2020, by hand for T = 1.7
        assert found["energy"] == pytest.approx(-1.7 * np.log(np.exp(2 / 1.7) + np.exp(1 / 1.7) + 1), abs=1e-6)


def test_flags_come_before_remarks(toy: Bundle) -> None:
    remarks = ("one slice was missing and interpolated", NO_LUNGS)
    black = Prepared(np.zeros(toy_bundle.SIZE, np.uint8), ((0, 1), (0, 1), (0, 1)), {}, remarks)
    found = interpret(np.zeros(3, np.float32), np.full(3, 1 / 3, np.float32), black, toy)
    assert found["flags"] == ["no-lungs-found", "one slice was missing and interpolated"]


def test_a_body_without_lungs_is_flagged(toy: Bundle, tmp_path: Path) -> None:
    (result,) = predict([save(tmp_path / "phantom.nii.gz", thorax(lungs=False))], toy.path)
    assert "no-lungs-found" in result["flags"]


def test_overlays_are_named_by_ordinal_and_label(toy: Bundle, scan: Path, tmp_path: Path) -> None:
    results = list(predict([tmp_path / "absent", scan], toy.path, tmp_path / "overlays"))
    names = [p.name for p in (tmp_path / "overlays").iterdir()]
    assert names == [f"0002_{results[1]['label']}.png"]
    assert results[1]["overlay"] == str(tmp_path / "overlays" / names[0])
    with Image.open(results[1]["overlay"]) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] > 800
    assert (np.ptp(pixels, axis=2) > 60).sum() > 500  # coloured: the map was drawn


def test_decoding_runs_ahead_but_not_away(toy: Bundle, scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Path] = []
    second = threading.Event()

    def count(path: Path) -> Scan:
        begun.append(path)
        if len(begun) == 2:
            second.set()
        return read_scan(scan)

    monkeypatch.setattr(module, "read_scan", count)
    results = predict([Path(f"{i}.nii") for i in range(20)], toy.path)
    next(results)
    assert second.wait(timeout=30), "the second scan waits for the first to be consumed"
    assert len(begun) <= 2 * module.DECODERS + load(toy).batch
    assert len(list(results)) == 19


def test_a_damaged_bundle_stops_the_run(toy: Bundle, scan: Path, tmp_path: Path) -> None:
    with pytest.raises(CovidnetError, match="no such folder"):
        next(predict([scan], tmp_path / "nothing"))


def test_no_training_library_is_imported(toy: Bundle, scan: Path, tmp_path: Path, repository: Path) -> None:
    program = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from covidnet.inference.predict import predict\n"
        f"results = list(predict([Path({str(scan)!r})], Path({str(toy.path)!r}), Path({str(tmp_path)!r})))\n"
        "heavy = {'torch', 'monai', 'sklearn', 'matplotlib', 'pandas', 'onnxscript', 'safetensors'}\n"
        "print(json.dumps([len(results), sorted(heavy & set(sys.modules))]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, []]


def test_one_patient_read_from_dicom_and_from_nifti_gets_one_answer(toy: Bundle, real_scans: Path) -> None:
    dicom, nifti = predict(
        [real_scans / "covid-ct-md/dicom/P002", real_scans / "covid-ct-md/nifti_256/NCP_P002.nii.gz"], toy.path
    )
    assert dicom["label"] == nifti["label"]
    np.testing.assert_allclose(list(dicom["probabilities"].values()), list(nifti["probabilities"].values()), atol=0.02)
