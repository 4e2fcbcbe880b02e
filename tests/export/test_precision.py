"""Lower precision is offered only where it was shown to lose nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_bundle
from safetensors.torch import save_file

from covidnet.data.packed import Packed, Row
from covidnet.errors import CovidnetError
from covidnet.export import bundle
from covidnet.export.bundle import Bundle
from covidnet.export.precision import _judge, quantise, try_precisions
from covidnet.inference import engine
from covidnet.inference.engine import Outputs

PATIENTS = 45


@pytest.fixture(scope="module")
def packed() -> Packed:
    """Validation scans, a third of each class, each with a lesion at one place."""
    scans = np.random.default_rng(2).integers(0, 256, (PATIENTS, *toy_bundle.SIZE), dtype=np.uint8)
    rows = tuple(
        Row(f"s{i}", f"p{i}", toy_bundle.CLASSES[i % 3], "validation", "nifti", "", "1;1;1", 8, "")
        for i in range(PATIENTS)
    )
    lesions = np.zeros_like(scans)
    lesions[:, 2:4, 4:8, 4:8] = 1
    return Packed(scans, rows, lesions)


def test_int8_of_a_network_runs_in_every_cpu_engine(toy: Bundle, packed: Packed, tmp_path: Path) -> None:
    path = tmp_path / "model.int8.onnx"
    quantise(toy.model, path, packed.scans[:16])
    quantise(toy.model, tmp_path / "again.onnx", packed.scans[:16])
    assert path.read_bytes() == (tmp_path / "again.onnx").read_bytes()
    expected = engine.load(toy).run(packed.scans[:4, None])
    for name in engine.installed():
        network = engine.open_model(path, "cpu", name, precision="int8")
        assert network.name == f"{name} (cpu, int8)"
        found = network.run(packed.scans[:4, None])
        difference = np.abs(found.logits - expected.logits).max()
        assert 0 < difference < 0.1 * np.abs(expected.logits).max()


def judge(packed: Packed, wrong: int, miss: int) -> dict:
    """A verdict on outputs that are right but for some scans, whose maps point at the lesion but for some."""
    labels = packed.labels(toy_bundle.CLASSES)
    perfect = np.eye(3, dtype=np.float32)[labels]
    changed = perfect.copy()
    changed[:wrong] = np.roll(changed[:wrong], 1, axis=1)
    cam = np.zeros((PATIENTS, 3, 4, 12, 12), np.float32)
    cam[..., 1, 3, 3] = 1
    moved = cam.copy()
    moved[:miss, ..., 3, 11, 11] = 2
    rows = packed.split("validation")
    return _judge(packed, rows, toy_bundle.CLASSES, Outputs(perfect, perfect, cam), Outputs(changed, changed, moved))


def test_no_change_is_accepted(packed: Packed) -> None:
    verdict = judge(packed, wrong=0, miss=0)
    assert verdict["accepted"]
    assert verdict["accuracy_interval"] == [0.0, 0.0]
    assert verdict["cam_hit_rate"] == verdict["cam_hit_rate_float32"] == 1.0
    json.dumps(verdict)


def test_a_loss_that_the_interval_does_not_exclude_is_refused(packed: Packed) -> None:
    verdict = judge(packed, wrong=1, miss=0)  # 1 of 45 scans: 2.2 points
    assert not verdict["accepted"]
    assert "doesn't exclude a loss above 0.5 points" in verdict["reason"]
    assert verdict["accuracy_difference"] == pytest.approx(-1 / 45)


def test_maps_that_leave_the_lesion_are_refused(packed: Packed) -> None:
    verdict = judge(packed, wrong=0, miss=9)
    assert not verdict["accepted"]
    assert "maps hit the lesion in 80.0% of the scans, 100.0% in float32" in verdict["reason"]


def test_too_few_patients_prove_nothing(packed: Packed) -> None:
    few = replace(packed, rows=tuple(replace(row, split="train") for row in packed.rows[:-9]) + packed.rows[-9:])
    rows = few.split("validation")
    perfect = np.eye(3, dtype=np.float32)[few.labels(toy_bundle.CLASSES)[rows]]
    same = Outputs(perfect, perfect, np.zeros((9, 3, 4, 12, 12), np.float32))
    verdict = _judge(few, rows, toy_bundle.CLASSES, same, same)
    assert not verdict["accepted"]
    assert "too few patients" in verdict["reason"]


@pytest.fixture(scope="module")
def tried(toy: Bundle, packed: Packed) -> tuple[dict, bytes | None]:
    return try_precisions(["int8", "float16", "bfloat16"], toy.model, packed, toy_bundle.CLASSES)


def test_verdicts_and_the_int8_graph_travel_in_the_bundle(
    tried: tuple[dict, bytes | None], toy: Bundle, packed: Packed, tmp_path: Path
) -> None:
    verdicts, _ = tried
    assert list(verdicts) == ["int8", "float16", "bfloat16"]
    assert all({"accepted", "reason"} <= set(verdict) for verdict in verdicts.values())
    quantise(toy.model, tmp_path / "q.onnx", packed.scans[:16])
    accepted = {"int8": {"accepted": True, "reason": "as good"}}
    contents = {bundle.PRECISION: json.dumps(accepted).encode(), bundle.INT8: (tmp_path / "q.onnx").read_bytes()}
    save_file(toy_bundle.model().state_dict(), tmp_path / "w.safetensors")
    written = bundle.write(
        tmp_path / "bundle",
        model=toy.model,
        weights=tmp_path / "w.safetensors",
        genotype=toy.genotype,
        preprocess=toy.preprocess,
        labels=toy.labels,
        calibration=toy.calibration,
        card="# Toy\n",
        extras=contents,
    )
    assert written.version != toy.version
    assert engine.load(written, precision="int8").name == "openvino (cpu, int8)"
    with pytest.raises(CovidnetError, match="this bundle was exported without it"):
        engine.load(written, precision="bfloat16")
    broken = Path(shutil.copytree(written.path, tmp_path / "broken"))
    (broken / bundle.INT8).unlink()
    with pytest.raises(CovidnetError, match=r"model\.int8\.onnx is missing from the bundle"):
        Bundle.load(broken)
