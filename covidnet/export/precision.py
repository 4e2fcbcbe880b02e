"""Lower precision, tried on the validation scans and accepted only where it demonstrably costs nothing.

A precision is accepted if the interval of its accuracy less float32's, over resampled patients, lies above -0.5 points, and
its maps hit the lesions as often, to the same half point. Everything that was found is written into the bundle; engines
refuse a precision that wasn't accepted.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from covidnet.data.packed import Packed
from covidnet.errors import CovidnetError, UsageError
from covidnet.evaluation.bootstrap import paired_difference
from covidnet.evaluation.cam import lesion_hit
from covidnet.evaluation.metrics import Predictions
from covidnet.inference.engine import Engine, Outputs, Precision, open_model
from covidnet.inference.variants import half

LARGEST_LOSS = 0.005  # of accuracy, and of the share of maps that hit the lesion
CALIBRATION_SCANS = 64  # validation scans from which int8's ranges are taken, evenly spread
BATCH = 8


def try_precisions(
    names: Sequence[Precision], model: Path, packed: Packed, classes: tuple[str, ...]
) -> tuple[dict[str, dict[str, Any]], bytes | None]:
    """Verdicts by precision, and the int8 graph where it was accepted.

    Args:
        names: precisions to try beside float32.
        model: the exported float32 file.
        packed: the dataset, of which the validation split is used.
        classes: in the order of the logits.
    """
    rows = packed.split("validation")
    reference = _outputs(open_model(model, "cpu"), packed, rows)
    verdicts: dict[str, dict[str, Any]] = {}
    int8: bytes | None = None
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            lowered = Path(folder) / f"{name}.onnx"
            try:
                engine = _lowered(name, model, lowered, packed.scans[_spread(rows)])
            except UsageError as error:  # this machine can't compute it
                verdicts[name] = {"accepted": False, "reason": f"not tried: {error}"}
                continue
            verdict = _judge(packed, rows, classes, reference, _outputs(engine, packed, rows))
            verdicts[name] = {**verdict, "engine": engine.name}
            if name == "int8" and verdict["accepted"]:
                int8 = lowered.read_bytes()
    return verdicts, int8


def quantise(model: Path, out: Path, scans: np.ndarray) -> None:
    """Write a graph whose convolutions compute in 8 bits: weights int8 per channel, activations uint8, ranges measured.

    Args:
        model: float32 ONNX file.
        out: file to write.
        scans: ``uint8 (N, D, H, W)`` that show what values occur.

    Raises:
        UsageError: ONNX Runtime, whose quantiser is used, isn't installed.
    """
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ModuleNotFoundError:
        raise UsageError("int8 is made with ONNX Runtime's quantiser; pip install onnxruntime-gpu") from None

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = ({"volume": batch} for batch in _batches(scans))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    with _without_advice():
        quantize_static(
            model,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],  # what is around them costs nothing
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    graph = onnx.load(out)
    onnx.helper.set_model_props(graph, {entry.key: entry.value for entry in onnx.load(model).metadata_props})
    out.write_bytes(graph.SerializeToString(deterministic=True))


@contextmanager
def _without_advice() -> Iterator[None]:
    """The quantiser advises, on the root logger, to fuse operators first, which the exporter has done."""
    root = logging.getLogger()
    handlers, silent = root.handlers, logging.NullHandler()
    root.handlers = [silent]  # else `logging.warning` gives the process a handler of its own
    try:
        yield
    finally:
        root.handlers = handlers


def _lowered(name: Precision, model: Path, lowered: Path, scans: np.ndarray) -> Engine:
    """An engine that computes in this precision, or rounds as it does."""
    if name == "int8":
        quantise(model, lowered, scans)
        return open_model(lowered, "cpu", precision="int8")
    if name == "float16":  # on a GPU; a CPU rounds every result to float16 alike
        lowered.write_bytes(half(onnx.load(model)).SerializeToString())
        return open_model(lowered, "cpu", "onnxruntime")
    return open_model(model, "cpu", precision=name)


def _judge(
    packed: Packed, rows: np.ndarray, classes: tuple[str, ...], reference: Outputs, found: Outputs
) -> dict[str, Any]:
    before, after = (_predictions(packed, rows, classes, outputs.logits) for outputs in (reference, found))
    difference = paired_difference(after, before, "accuracy")
    hits = [_hit_rate(packed, rows, before.labels, outputs.cam) for outputs in (reference, found)]
    reasons = []
    if not difference.low >= -LARGEST_LOSS:  # NaN, where there are too few patients, fails too
        interval = "too few patients" if np.isnan(difference.low) else f"{100 * difference.low:+.2f} points"
        reasons.append(f"the accuracy interval doesn't exclude a loss above 0.5 points (lower end: {interval})")
    if hits[0] is not None and hits[1] is not None and hits[1] < hits[0] - LARGEST_LOSS:
        reasons.append(f"maps hit the lesion in {hits[1]:.1%} of the scans, {hits[0]:.1%} in float32")
    return {
        "accepted": not reasons,
        "reason": "; ".join(reasons) or "no loss of accuracy above 0.5 points, maps hit the lesions as often",
        "scans": len(rows),
        "changed": int((before.predicted != after.predicted).sum()),
        "accuracy_difference": difference.difference,
        "accuracy_interval": [None if np.isnan(end) else end for end in (difference.low, difference.high)],
        "cam_hit_rate_float32": hits[0],
        "cam_hit_rate": hits[1],
        "max_abs_logits": float(np.abs(found.logits - reference.logits).max()),
    }


def _predictions(packed: Packed, rows: np.ndarray, classes: tuple[str, ...], logits: np.ndarray) -> Predictions:
    scans = [packed.rows[i] for i in rows]
    ids, patients = tuple(row.scan_id for row in scans), tuple(row.patient_id for row in scans)
    return Predictions(ids, patients, packed.labels(classes)[rows], logits.astype(np.float64), classes)


def _hit_rate(packed: Packed, rows: np.ndarray, labels: np.ndarray, cam: np.ndarray) -> float | None:
    """Share of scans with a lesion whose own class's map peaks on it; None where the dataset has no masks."""
    if packed.lesions is None:
        return None
    masks = packed.lesions[rows].astype(bool)
    hits = [lesion_hit(cam[i, labels[i]], mask) for i, mask in enumerate(masks) if mask.any()]
    return float(np.mean(hits)) if hits else None


def _outputs(engine: Engine, packed: Packed, rows: np.ndarray) -> Outputs:
    parts = [engine.run(batch) for batch in _batches(packed.scans[rows])]
    if not parts:
        raise CovidnetError("lower precision is judged on validation scans, and the dataset has none; ingest again")
    return Outputs(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("logits", "probabilities", "cam"))
    )


def _batches(scans: np.ndarray) -> Iterator[np.ndarray]:
    """``uint8 (B, 1, D, H, W)`` each."""
    for start in range(0, len(scans), BATCH):
        yield np.ascontiguousarray(scans[start : start + BATCH, None])


def _spread(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows[np.linspace(0, len(rows) - 1, min(CALIBRATION_SCANS, len(rows))).astype(int)])
