"""A population of prepared scans, a bundle that knows it, and requests: for benchmarks of what surrounds the network.

The classes differ in noise. The network has two convolutions of random weights and a fitted head, so next to nothing
hides the cost of the server around it. Reference profile and detector are made from the population as `covidnet export`
makes them from a training split.
"""

import http.client
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from torch import nn

from covidnet.evaluation import novelty
from covidnet.evaluation.calibration import energy
from covidnet.export import reference
from covidnet.export.bundle import REFERENCE, Calibration
from covidnet.export.pack import pack
from covidnet.export.reference import Reference
from covidnet.inference import engine
from covidnet.models.blocks import Classifier, ScaleInput
from covidnet.models.saved import Size

SIZE = (16, 64, 64)
CLASSES = ("NCP", "CP", "Normal")
CONTRASTS = (28.0, 20.0, 12.0)  # of the noise, by class, in grey levels
KNOWN = 400  # scans that the bundle was made from
INFER = "/v2/models/covidnet/infer"


def volumes(
    count: int, seed: int, shares: Sequence[float] = (1 / 3, 1 / 3, 1 / 3), size: Size = SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Scans, ``uint8 (count, D, H, W)``, and their classes, ``(count,)``, with these shares."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(len(CLASSES), count, p=shares)
    level = rng.normal(110, 15, (count, 1, 1, 1))
    contrast = rng.normal(np.take(CONTRASTS, truth), 2.0)[:, None, None, None]
    return np.clip(level + contrast * rng.standard_normal((count, *size), np.float32), 0, 255).astype(np.uint8), truth


def write(
    folder: Path, card: str = "# Planted\n", network: Classifier | None = None, size: Size = SIZE, known: int = KNOWN
) -> Path:
    """Write the bundle to ``folder / "bundle"``.

    Args:
        folder: made where it isn't there.
        card: another one makes another version.
        network: of one channel; the small one where not given.
        size: of the volumes.
        known: scans that reference and detector are made from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scans, truth = volumes(known, seed=0, size=size)
    half = known // 2
    return pack(
        network or _network(scans, truth),
        folder / "bundle",
        size=size,
        labels=CLASSES,
        genotype={"name": "planted", "classes": list(CLASSES), "channels": 1, "size": list(size)},
        calibration=Calibration(1.0, novelty.fit(scans[:half], scans[half:], false_alarm_rate=0.05)),
        card=card,
        extras=lambda model: {REFERENCE: _reference(model, scans).to_json()},
    ).path


def request(scans: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a V2 request for ``uint8 (N, D, H, W)``, in the protocol's binary form."""
    size = {"binary_data_size": scans.size}
    tensor = {"name": "volume", "shape": list(scans.shape), "datatype": "UINT8", "parameters": size}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + scans.tobytes(), {"inference-header-content-length": str(len(head))}


class Caller:
    """One connection to a server that stays open.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        # longer than the deadline of the server, whose answer it is to say so
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=90)

    def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """Status of the answer, and its request id."""
        self._connection.request("POST", path, body, headers or {})
        answer = self._connection.getresponse()
        answer.read()
        return answer.status, answer.headers["x-request-id"] or ""

    def infer(self, scans: np.ndarray) -> tuple[int, str]:
        """Ask about ``uint8 (N, D, H, W)``."""
        return self.post(INFER, *request(scans))

    def tell(self, request_id: str, label: str) -> int:
        """Give feedback; status of the answer."""
        return self.post("/v1/feedback", json.dumps({"request_id": request_id, "label": label}).encode())[0]


def _network(known: np.ndarray, truth: np.ndarray) -> Classifier:
    torch.manual_seed(0)
    convolutions = (nn.Conv3d(1, 8, 3, stride=2), nn.ReLU6(), nn.Conv3d(8, 16, 3, stride=(2, 4, 4)), nn.ReLU6())
    model = Classifier(nn.Sequential(*convolutions), nn.Linear(16, len(CLASSES))).eval()
    with torch.no_grad():
        pooled = model.features(ScaleInput()(torch.from_numpy(known)[:, None])).mean((2, 3, 4)).numpy()  # (N, 16)
        fitted = LogisticRegression(C=1e4, max_iter=5_000).fit(pooled, truth)
        model.head.weight.copy_(torch.from_numpy(fitted.coef_))
        model.head.bias.copy_(torch.from_numpy(fitted.intercept_))
    return model


def _reference(model: Path, known: np.ndarray) -> Reference:
    network = engine.open_model(model)
    logits = np.concatenate([network.run(volume[None, None]).logits for volume in known])
    confidence = softmax(logits, axis=1).max(1)
    rows = [
        {**reference.describe(volume), **reference.of_prediction(float(p), float(score))}
        for volume, p, score in zip(known, confidence, energy(logits, 1.0), strict=True)
    ]
    counts = np.bincount(logits.argmax(1), minlength=len(CLASSES))
    features = {name: reference.profile([row[name] for row in rows]) for name in rows[0]}
    return Reference(features, dict(zip(CLASSES, counts.tolist(), strict=True)))
