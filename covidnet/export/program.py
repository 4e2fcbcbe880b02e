"""The `torch.export` program that `covidnet.export.onnx.export` writes on request, run as an engine.

For servers that have torch and not this project: uint8 voxels to logits, calibrated probabilities and maps, from the same
weights and trace as the ONNX file. TorchScript, its predecessor, is deprecated.
"""

from pathlib import Path

import numpy as np
import torch

from covidnet.errors import CovidnetError
from covidnet.inference.engine import Outputs, check


class TorchProgram:
    """A loaded program with the interface of an `Engine`.

    Raises:
        CovidnetError: the file is no program.
    """

    name = "torch.export (cpu)"
    batch = 1

    def __init__(self, path: Path) -> None:
        try:
            program = torch.export.load(path)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise CovidnetError(f"{path} is no torch.export program ({type(error).__name__}); export again") from None
        self._module = program.module()
        depth, height, width = program.example_inputs[0][0].shape[2:]
        self.size = (int(depth), int(height), int(width))

    def run(self, batch: np.ndarray) -> Outputs:
        check(batch, self.size)
        with torch.inference_mode():
            outputs: tuple[torch.Tensor, ...] = self._module(torch.from_numpy(batch))
        return Outputs(*(output.numpy() for output in outputs))
