"""From the network's results to the protocols' answers."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from kserve import InferOutput, InferResponse
from kserve.protocol.infer_type import RequestedOutput

from serving.errors import Invalid
from serving.protocol import Request

MAX_JSON_NUMBERS = 2**20  # in one tensor of a V2 answer; as text they take ten times the memory
CAM_SCAN_UNIT = "evidence_per_255"


@dataclass(frozen=True, slots=True)
class ScanMap:
    """The predicted class's map on the scan's grid.

    Args:
        heat: ``uint8 (D, H, W)`` in the project's axes.
        peak: evidence that 255 stands for, in units of the logit.
        nifti: the same as ``.nii.gz`` on the grid of the scan's file, where asked for.
    """

    heat: np.ndarray
    peak: float
    nifti: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says of one scan.

    Args:
        label: most probable class.
        probabilities: calibrated, by class.
        energy: of the logits, for monitoring.
        novelty: above 0 for scans unlike the training data.
        flags: out-of-distribution, and remarks of reading and preprocessing.
        cam: class activation maps, float32 (K, d, h, w).
        seconds: by phase.
        scan_map: where asked for.
    """

    label: str
    probabilities: dict[str, float]
    energy: float
    novelty: float
    flags: tuple[str, ...]
    cam: np.ndarray
    seconds: dict[str, float]
    scan_map: ScanMap | None = None

    @property
    def predicted_cam(self) -> np.ndarray:
        """The map (d, h, w) of ``label``."""
        cam: np.ndarray = self.cam[list(self.probabilities).index(self.label)]
        return cam

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the maps."""
        return {
            "label": self.label,
            "probabilities": self.probabilities,
            "flags": list(self.flags),
            "energy": self.energy,
            "novelty": self.novelty,
            "seconds": self.seconds,
        }


def answer_v1(answers: Sequence[Answer], version: str, *, explain: bool) -> dict[str, Any]:
    """The V1 answer: ``predictions`` in the order of ``instances``.

    To ``:explain`` it has ``cam``, a nested list per class, or ``cam_nifti``, base64, where the map was asked for at the
    scan's resolution.
    """
    predictions = []
    for answer in answers:
        prediction = answer.to_dict()
        if explain and answer.scan_map is not None:
            prediction["cam_nifti"] = {"b64": base64.b64encode(answer.scan_map.nifti).decode()}
        elif explain:
            prediction["cam"] = dict(zip(answer.probabilities, answer.cam.tolist(), strict=True))
        predictions.append(prediction)
    return {"predictions": predictions, "model_version": version}


def answer_v2(answers: Sequence[Answer], request: Request, model: str, version: str) -> InferResponse:
    """The V2 answer: the requested tensors, one row per scan; class names and microseconds by phase as parameters.

    Raises:
        Invalid: a tensor is too large for JSON.
    """
    outputs = []
    for name in request.outputs:
        rows = _rows(answers, name)
        if rows.size > MAX_JSON_NUMBERS and name not in request.binary:
            raise Invalid(f"{name} has {rows.size} numbers: ask for it as binary data (binary_data), or over gRPC")
        outputs.append(InferOutput(name, list(rows.shape), _DATATYPES.get(rows.dtype.kind, "FP32"), rows))
    parameters: dict[str, Any] = {"classes": orjson.dumps(list(answers[0].probabilities)).decode()}
    parameters |= {f"{name}_us": round(1e6 * seconds) for name, seconds in answers[0].seconds.items()}
    if answers[0].scan_map is not None:
        peaks = [answer.scan_map.peak for answer in answers if answer.scan_map is not None]
        parameters[CAM_SCAN_UNIT] = orjson.dumps(peaks).decode()
    return InferResponse(
        request.id,
        model,
        outputs,
        model_version=version,
        parameters=parameters,
        requested_outputs=[RequestedOutput(name, {"binary_data": name in request.binary}) for name in request.outputs],
    )


_DATATYPES = {"O": "BYTES", "u": "UINT8", "f": "FP32"}


def _rows(answers: Sequence[Answer], name: str) -> np.ndarray:
    if name == "probabilities":
        return np.array([list(answer.probabilities.values()) for answer in answers], np.float32)
    if name == "label":
        return np.array([answer.label.encode() for answer in answers], np.object_)
    if name == "energy":
        return np.array([answer.energy for answer in answers], np.float32)
    if name == "novelty":
        return np.array([answer.novelty for answer in answers], np.float32)
    if name == "flags":
        return np.array([orjson.dumps(answer.flags) for answer in answers], np.object_)
    if name == "cam":
        return np.stack([answer.cam for answer in answers])
    return np.stack([answer.scan_map.heat for answer in answers if answer.scan_map is not None])
