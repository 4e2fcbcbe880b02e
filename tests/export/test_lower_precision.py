"""From `export.precisions` to `covidnet predict --precision`: what was tried, what the bundle says of it, and what runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from covidnet import config, folder
from covidnet.data.packed import Row, write_manifest
from covidnet.data.preprocess import Spec
from covidnet.evaluation.metrics import Predictions
from covidnet.export import run
from covidnet.export.bundle import Bundle
from covidnet.inference import engine
from covidnet.models import covidnet3d, saved
from covidnet.models.blocks import Classifier, ScaleInput
from tests.random_genotype import random_genotype

SIZE, CLASSES = (16, 32, 32), ("NCP", "CP", "Normal")
PATIENTS = 45  # 30 of them in validation
GENOTYPE = random_genotype("S", 1, size=SIZE, classes=CLASSES, strides=(2, 2, 1, 1, 1, 1))
NAMES: list[engine.Precision] = ["int8", "bfloat16", "float16"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `covidnet export` leaves of a network that is right about every scan, with maps on every lesion."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("precisions")
    dataset, winner, evaluated, work = (root / name for name in ("dataset", "winner", "evaluate", "export"))
    for path in (dataset, winner, evaluated, work):
        path.mkdir()
    noise = np.random.default_rng(0).integers(0, 60, (PATIENTS, *SIZE))
    labels = np.arange(PATIENTS) % 3
    scans = (noise + 90 * labels[:, None, None, None]).astype(np.uint8)
    model = knowing(scans, labels)
    with torch.no_grad():
        logits, cams = model.explain(ScaleInput(1)(torch.from_numpy(scans)[:, None]))
    assert (logits.argmax(1).numpy() == labels).all()

    rows = tuple(
        Row(f"s{i}", f"p{i}", CLASSES[i % 3], "train" if i < 15 else "validation", "nifti", "", "1;1;1", 16, "")
        for i in range(PATIENTS)
    )
    lesions = np.stack([voxels_of_peak(cams[i, labels[i]].numpy()) for i in range(PATIENTS)])
    np.save(dataset / "scans.npy", scans)
    np.save(dataset / "lesions.npy", lesions)
    write_manifest(dataset / "manifest.csv", rows)
    folder.write_json(dataset / "preprocess.json", Spec(size=SIZE).to_dict())
    saved.save(winner, model, saved.of_genotype(GENOTYPE, SIZE))
    held_out = range(15, PATIENTS)
    ids, patients = tuple(f"s{i}" for i in held_out), tuple(f"p{i}" for i in held_out)
    Predictions(ids, patients, labels[15:], logits[15:].double().numpy(), CLASSES).save(winner / "validation.csv")
    folder.write_json(winner / "metrics.json", {"parameters": 1, "size_mib": 1.0, "macs": 1})
    name = saved.describe(winner).name
    folder.write_json(evaluated / "results.json", {"metrics": {name: {"accuracy": 1.0}}, "intervals": {name: {}}})
    told = {"parameters": {"evaluate": {"confidence": 0.95}}, "versions": {"torch": torch.__version__}}
    folder.write_json(evaluated / folder.PROVENANCE, told)
    params = Path(__file__).parents[2] / "params.yaml"
    settings = config.load(str(params), [f"export.precisions=[{', '.join(NAMES)}]"])
    run.run(settings, dataset, winner, evaluated, work)
    return work


def knowing(scans: np.ndarray, labels: np.ndarray) -> Classifier:
    """A found network that has learned nothing but its head, which tells these scans apart."""
    model = covidnet3d.build(GENOTYPE).train()
    volumes = ScaleInput(1)(torch.from_numpy(scans)[:, None])
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.momentum = 1.0  # its statistics are those of one pass
        model.features(volumes)
        pooled = model.eval().features(volumes).mean(dim=(2, 3, 4))  # (N, F), fewer scans than features
        wanted = 8 * torch.eye(3)[labels] - 4
        model.head.weight.copy_(torch.linalg.lstsq(pooled, wanted, driver="gelsd").solution.T)
        model.head.bias.zero_()
    return model


def voxels_of_peak(cam: np.ndarray) -> np.ndarray:
    """The part of the volume that the strongest voxel of a map stands for."""
    only = np.zeros(cam.shape, np.uint8)
    only[np.unravel_index(int(cam.argmax()), cam.shape)] = 1
    for axis, (n, size) in enumerate(zip(cam.shape, SIZE, strict=True)):
        only = np.repeat(only, size // n, axis=axis)
    return only


def test_each_verdict_follows_from_its_figures(exported: Path) -> None:
    bundle = Bundle.load(exported / "bundle")
    assert list(bundle.precisions) == NAMES
    metrics = json.loads((exported / "metrics.json").read_text())
    for name, verdict in bundle.precisions.items():
        if verdict["reason"].startswith("not tried"):
            assert name == "bfloat16"  # this CPU has none
            continue
        assert verdict["scans"] == 30
        assert verdict["cam_hit_rate_float32"] == 1.0
        assert 0 <= verdict["cam_hit_rate"] <= 1
        assert verdict["max_abs_logits"] > 0
        keeps = verdict["accuracy_interval"][0] >= -0.005 and verdict["cam_hit_rate"] >= 0.995
        assert verdict["accepted"] == keeps == bool(metrics[f"{name}_accepted"])
    assert bundle.precisions["float16"]["max_abs_logits"] < 0.5
    assert (bundle.path / "model.int8.onnx").exists() == bundle.precisions["int8"]["accepted"]
    card = (bundle.path / "MODEL_CARD.md").read_text()
    assert all(
        f"| {name} | {'accepted' if v['accepted'] else 'refused'}" in card for name, v in bundle.precisions.items()
    )


@pytest.mark.parametrize("precision", NAMES)
def test_predict_runs_what_was_accepted_and_says_why_not(exported: Path, precision: str, tmp_path: Path) -> None:
    verdict = Bundle.load(exported / "bundle").precisions[precision]
    np.save(tmp_path / "scan.npy", np.load(exported.parent / "dataset/scans.npy")[15])
    command = [sys.executable, "-m", "covidnet", "predict", "scan.npy", "--bundle", exported / "bundle"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*command, "--precision", precision], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    if not verdict["accepted"]:
        assert done.returncode == 2
        assert f"precision {precision}: refused when the bundle was exported: {verdict['reason']}" in done.stderr
    elif precision == "float16":
        assert done.returncode == 2
        assert "precision float16: no engine has it on cpu" in done.stderr
    else:
        answer = json.loads(done.stdout)
        assert (answer["label"], answer["precision"]) == ("NCP", precision)
