"""A trained network as one ONNX file that takes packed voxels and gives logits, calibrated probabilities and maps."""

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from covidnet import __version__
from covidnet.errors import CovidnetError
from covidnet.inference import engine
from covidnet.models.blocks import Classifier, ScaleInput

OPSET = 20
LOGITS_TOLERANCE, CAM_TOLERANCE = 1e-4, 1e-3  # of the largest magnitude, at least 1
_OVERHEAD = 0.01, 65_536  # share and bytes that a graph may hold beyond its weights: constants, fused biases


class Exported(nn.Module):
    """What an exported file computes: ``uint8 (B, 1, D, H, W)`` to logits, probabilities and maps."""

    def __init__(self, model: Classifier, channels: int, temperature: float) -> None:
        super().__init__()
        self.scale = ScaleInput(channels)
        self.model = model
        self.temperature = temperature

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, cam = self.model.explain(self.scale(volume))  # (B, K), (B, K, d, h, w)
        return logits, torch.softmax(logits / self.temperature, dim=1), cam


def export(
    model: Classifier,
    path: Path,
    *,
    size: tuple[int, int, int],
    channels: int,
    temperature: float,
    metadata: Mapping[str, str],
    program: Path | None = None,
) -> None:
    """Write a network as a single ONNX file with the input scaling and the calibration inside.

    Input ``volume`` uint8 ``(B, 1, D, H, W)``, B dynamic; outputs ``logits (B, K)``, ``probabilities (B, K)`` and
    ``cam (B, K, d, h, w)``. The same weights give the same bytes, on any machine with the same versions.

    Args:
        model: left as it is; exported in evaluation mode.
        path: file to write.
        size: ``(D, H, W)`` of the input.
        channels: input channels of the model.
        temperature: see `covidnet.export.bundle.Calibration`.
        metadata: `covidnet.export.bundle.metadata`; versions are added.
        program: ``.pt2`` file to write the same network to as a `torch.export` program, for servers that run torch.

    Raises:
        CovidnetError: the temperature isn't positive, the weights aren't finite, or the graph holds copies of them.
    """
    exported = exportable(model, channels, temperature)
    volume = torch.zeros(2, 1, *size, dtype=torch.uint8)  # a batch of 1 would be baked in as a constant
    with _quiet(), torch.no_grad():
        traced = torch.export.export(exported, (volume,), dynamic_shapes={"volume": {0: torch.export.Dim.DYNAMIC}})
        if program is not None:
            torch.export.save(traced, program)
        converted = torch.onnx.export(
            traced,
            input_names=["volume"],
            output_names=list(engine.OUTPUTS),
            dynamic_shapes={"volume": {0: "batch"}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if converted is None:
        raise CovidnetError("torch.onnx.export gave no program; expected torch 2.10 or later")
    graph = converted.model_proto
    _strip(graph)
    versions = {"covidnet": __version__, "torch": torch.__version__, "opset": str(OPSET)}
    onnx.helper.set_model_props(graph, dict(sorted({**metadata, **versions}.items())))
    _check_weights(graph, exported)
    onnx.checker.check_model(graph, full_check=True)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def exportable(model: Classifier, channels: int, temperature: float) -> Exported:
    """A copy of a network as it is exported.

    Raises:
        CovidnetError: the temperature isn't positive, or the weights aren't finite.
    """
    if not temperature > 0:
        raise CovidnetError(f"temperature: expected a positive number, found {temperature}; calibrate the model again")
    exported = Exported(copy.deepcopy(model).cpu(), channels, temperature).eval()
    broken = [name for name, value in exported.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise CovidnetError(f"{len(broken)} weights aren't finite, the first is {broken[0]}; train the model again")
    return exported


def parity(
    model: Classifier,
    path: Path,
    batches: Iterable[np.ndarray],
    *,
    channels: int,
    others: Sequence[engine.Engine] = (),
) -> dict[str, Any]:
    """Compare an exported file with its torch network in every engine installed here.

    Args:
        model: the network that was exported.
        path: the ONNX file.
        batches: ``uint8 (B, 1, D, H, W)`` each.
        channels: input channels of the model.
        others: loaded from other files of the same network, to be compared as well.

    Returns:
        ``max_abs_logits`` and ``max_abs_cam`` over all engines, ``argmax_equal`` (same class everywhere), the number of
        ``batches``, and the ``engines`` compared.

    Raises:
        CovidnetError: an engine differs by more than 1e-4 of the largest logit or 1e-3 of the largest map value (at
            least 1), or there was nothing to compare.
    """
    engines = [*(engine.open_model(path, "cpu", name) for name in engine.installed()), *others]
    exported = exportable(model, channels, temperature=1.0)
    worst = {"logits": 0.0, "cam": 0.0}
    argmax_equal, count = True, 0
    for batch in batches:
        count += 1
        with torch.no_grad():
            logits, _, cam = (output.numpy() for output in exported(torch.from_numpy(batch)))
        for other in engines:
            found = other.run(batch)
            differences = {"logits": _difference(logits, found.logits), "cam": _difference(cam, found.cam)}
            _require(differences["logits"], logits, LOGITS_TOLERANCE, f"logits of {other.name}", path)
            _require(differences["cam"], cam, CAM_TOLERANCE, f"cam of {other.name}", path)
            worst = {name: max(worst[name], differences[name]) for name in worst}
            argmax_equal = argmax_equal and bool((logits.argmax(1) == found.logits.argmax(1)).all())
    if not count or not engines:
        raise CovidnetError(f"parity of {path}: nothing to compare, found {count} batches and {len(engines)} engines")
    return {
        "max_abs_logits": worst["logits"],
        "max_abs_cam": worst["cam"],
        "argmax_equal": argmax_equal,
        "batches": count,
        "engines": [other.name for other in engines],
    }


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.abs(expected - found).max())


def _require(difference: float, expected: np.ndarray, tolerance: float, what: str, path: Path) -> None:
    allowed = tolerance * max(1.0, float(np.abs(expected).max()))
    if not difference <= allowed:  # NaN fails too
        raise CovidnetError(
            f"{path}: {what} differ from torch by {difference:.2e}, expected at most {allowed:.1e}; "
            "export again, and if it stays so, report the versions of torch and of the engine"
        )


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about where the model came from: stack traces with paths of this machine."""
    graph = model.graph
    del model.metadata_props[:]
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.ClearField("doc_string")


def _check_weights(model: onnx.ModelProto, exported: nn.Module) -> None:
    share, slack = _OVERHEAD
    expected = sum(value.numel() * value.element_size() for value in exported.state_dict().values())
    found = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    if found > expected * (1 + share) + slack:
        raise CovidnetError(
            f"the ONNX graph holds {found:,} bytes of weights, expected about {expected:,}: the exporter copied some; "
            "export with the torch version of the constraints file"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about torchvision and its own deprecations, which a user can't act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
