"""Every registered model, exported, against torch: in every engine, at every batch size, on every kind of volume."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from covidnet.data.preprocess import Spec, prepare
from covidnet.data.sources import phantom, read_scan
from covidnet.export.onnx import OPSET, export, parity
from covidnet.inference.engine import Outputs
from covidnet.models import baselines, covidnet3d
from covidnet.models.blocks import Classifier
from covidnet.models.covidnet3d import SPACES
from tests.random_genotype import random_genotype

SIZE = (16, 32, 32)
CLASSES = ("NCP", "CP", "Normal")
SLOW = pytest.mark.slow
CASES = [
    pytest.param("resnet3d101", 1, marks=SLOW),
    pytest.param("densenet3d121", 3, marks=SLOW),
    pytest.param("mc3_18", 1, marks=SLOW),
    pytest.param("S", 3),
    pytest.param("L", 1, marks=SLOW),
]


def test_no_registered_model_is_left_out() -> None:
    names = {case.values[0] for case in CASES}
    assert set(baselines.BASELINES) | set(SPACES) <= names


def build(name: str, channels: int) -> Classifier:
    """With the statistics of a trained network: normalisation that is the identity would hide a fault in folding it."""
    torch.manual_seed(5)
    if name in baselines.BASELINES:
        model = baselines.build(name, channels, len(CLASSES), SIZE)
    else:  # every operation of the space and the identity are in it
        model = covidnet3d.build(random_genotype(name, 1, size=SIZE, channels=channels, classes=CLASSES))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def batches(repository: Path) -> list[np.ndarray]:
    """``uint8 (B, 1, D, H, W)`` for B of 1, 2, 5, 8: real scans where they are here, phantoms, noise, an empty volume."""
    spec = Spec(size=SIZE)
    folder = repository.parent / "shared" / "data" / "covid-ct-md" / "nifti_256"
    scans = [read_scan(path) for path in sorted(folder.glob("*.nii.gz"))[:2]]
    scans += [phantom.generate(label, seed=0, index=9, detail=(24, 64, 64)).scan for label in CLASSES]
    real = np.stack([prepare(scan, spec).volume for scan in scans])[:, None]
    noise = np.random.default_rng(0).integers(0, 256, (16 - len(real), 1, *SIZE), dtype=np.uint8)
    noise[-1] = 0
    return np.split(np.concatenate([real, noise]), [1, 3, 8])


@pytest.mark.parametrize(("name", "channels"), CASES)
def test_exported_files_give_the_numbers_of_torch(
    name: str, channels: int, batches: list[np.ndarray], tmp_path: Path
) -> None:
    model = build(name, channels)
    path, other = tmp_path / "model.onnx", tmp_path / "model.pt2"
    export(model, path, size=SIZE, channels=channels, temperature=1.3, metadata={}, program=other)
    found = parity(model, path, batches, channels=channels, others=[TorchProgram(other)])
    assert [len(batch) for batch in batches] == [1, 2, 5, 8]
    assert found["engines"] == ["openvino (cpu)", "onnxruntime (cpu)", "torch.export (cpu)"]
    assert found["max_abs_logits"] < 1e-4
    assert found["max_abs_cam"] < 1e-3
    assert found["argmax_equal"]
    _check_plain_runtime(model, path, batches, channels)


class TorchProgram:
    """The `torch.export` program as an engine, as a server with torch and without this project runs it."""

    name = "torch.export (cpu)"
    batch = 1
    size = SIZE

    def __init__(self, path: Path) -> None:
        self._module = torch.export.load(path).module()

    def run(self, batch: np.ndarray) -> Outputs:
        with torch.inference_mode():
            outputs: tuple[torch.Tensor, ...] = self._module(torch.from_numpy(batch))
        return Outputs(*(output.numpy() for output in outputs))


def _check_plain_runtime(model: Classifier, path: Path, batches: list[np.ndarray], channels: int) -> None:
    """The file as it is, as any other ONNX server runs it, where ours are given a graph made to measure."""
    graph = onnx.load(path)
    assert graph.opset_import[0].version == OPSET
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in batches:
        logits, probabilities, cam = session.run(["logits", "probabilities", "cam"], {"volume": batch})
        with torch.no_grad():
            volume = torch.from_numpy(batch).float().expand(-1, channels, -1, -1, -1) / 127.5 - 1
            expected, maps = model.explain(volume)
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
        np.testing.assert_allclose(cam, maps.numpy(), atol=1e-3)
        np.testing.assert_allclose(probabilities, torch.softmax(expected / 1.3, dim=1).numpy(), atol=1e-5)
