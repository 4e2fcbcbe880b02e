"""Any network as a bundle, in one call: for benchmarks, tests, and networks that no stage has trained.

`covidnet.export.run` makes the winner's bundle, with parity, lower precision and a card; here nothing is compared.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from covidnet.data.preprocess import Spec
from covidnet.export import bundle, onnx
from covidnet.models.blocks import Classifier
from covidnet.models.saved import Size


def pack(
    model: Classifier,
    directory: Path,
    *,
    size: Size,
    labels: tuple[str, ...],
    genotype: Mapping[str, Any],
    calibration: bundle.Calibration,
    card: str,
    extras: Callable[[Path], Mapping[str, bytes]] = lambda _: {},
) -> bundle.Bundle:
    """Write a bundle and read it back verified.

    Args:
        model: in evaluation mode, of one channel.
        directory: the target, absent or empty.
        size: ``(D, H, W)`` of the prepared scans.
        labels: class names in the order of the logits.
        genotype: JSON values that say what the network is.
        calibration: its temperature becomes a part of the graph.
        card: text of `MODEL_CARD.md`.
        extras: contents of optional files, from the exported ONNX file.

    Raises:
        CovidnetError: the target has files in it.
    """
    preprocess, temperature = Spec(size=size).to_dict(), calibration.temperature
    metadata = bundle.metadata(labels, preprocess, genotype, temperature)
    with tempfile.TemporaryDirectory() as folder:
        exported, weights = Path(folder) / "model.onnx", Path(folder) / "weights.safetensors"
        onnx.export(model, exported, size=size, channels=1, temperature=temperature, metadata=metadata)
        save_file(model.state_dict(), weights)
        return bundle.write(
            directory,
            model=exported,
            weights=weights,
            genotype=genotype,
            preprocess=preprocess,
            labels=labels,
            calibration=calibration,
            card=card,
            extras=extras(exported),
        )
