"""A bundle with a small network of the kind that is exported: strided stem, depthwise block, exact CAM head."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from covidnet.data.preprocess import Spec
from covidnet.evaluation.novelty import FEATURES, Detector
from covidnet.export import bundle, onnx
from covidnet.models.blocks import Classifier

SIZE = (8, 24, 24)
CLASSES = ("NCP", "CP", "Normal")
TEMPERATURE = 1.7
GENOTYPE = {"name": "toy", "classes": list(CLASSES), "channels": 1, "size": list(SIZE)}


def detector(threshold: float) -> Detector:
    """A scan's distance is the length of its features: a few hundred grey levels, 0 for a black volume."""
    return Detector(np.zeros(FEATURES), np.eye(FEATURES), threshold, 0.05)


CALIBRATION = bundle.Calibration(TEMPERATURE, detector(1e9))  # flags nothing

REFERENCE = {
    "features": {"slices": {"scans": 4, "values": [20.0, 30.0, 30.0, 40.0]}},
    "predictions": {"NCP": 2, "CP": 1, "Normal": 1},
}


class Block(nn.Module):
    """A depthwise convolution with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(width, width, 5, padding=2, groups=width, bias=False)
        self.bn = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.relu6(self.bn(self.depthwise(x)))


def model(channels: int = 1) -> Classifier:
    """The same weights each time, with the statistics of a trained network: no normalisation is the identity."""
    torch.manual_seed(3)
    stem = nn.Sequential(nn.Conv3d(channels, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU6())
    toy = Classifier(nn.Sequential(stem, Block(8), nn.Conv3d(8, 16, 1), nn.ReLU6()), nn.Linear(16, len(CLASSES)))
    for module in toy.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return toy.eval()


def write(folder: Path, calibration: bundle.Calibration = CALIBRATION) -> bundle.Bundle:
    """Export the network and write its bundle to ``folder / "bundle"``."""
    preprocess = Spec(size=SIZE).to_dict()
    metadata = bundle.metadata(CLASSES, preprocess, GENOTYPE, TEMPERATURE)
    toy = model()
    onnx.export(toy, folder / "toy.onnx", size=SIZE, channels=1, temperature=TEMPERATURE, metadata=metadata)
    save_file(toy.state_dict(), folder / "toy.safetensors")
    return bundle.write(
        folder / "bundle",
        model=folder / "toy.onnx",
        weights=folder / "toy.safetensors",
        genotype=GENOTYPE,
        preprocess=preprocess,
        labels=CLASSES,
        calibration=calibration,
        card="# Toy\n",
        extras={"reference.json": json.dumps(REFERENCE).encode()},
    )


if __name__ == "__main__":
    write(Path(sys.argv[1]))
