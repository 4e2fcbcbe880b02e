"""A client of the endpoint for scripts, over KServe's own gRPC client.

from serving.client import Client

client = Client("127.0.0.1:8081")
client.predict("scan.nii.gz").label          # 'NCP'
client.explain("series_folder/").heat        # uint8 (D, H, W), where the model saw it

python -m serving.client scan.nii.gz         # the same as one line of JSON
"""

import argparse
import asyncio
import io
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest, InferResponse
from kserve.protocol.infer_type import RequestedOutput

from covidnet.errors import CovidnetError, UsageError

MODEL = "covidnet"
MAX_FILE_BYTES = 63 * 2**20  # of the server's 64 MiB; larger files go to `POST /v1/scans`
OUTPUTS = ("probabilities", "label", "energy", "novelty", "flags")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one scan.

    Args:
        label: most probable class.
        probabilities: calibrated, by class.
        novelty: above 0 for scans unlike the training data.
        flags: ``out-of-distribution`` and what was odd about the scan.
        model_version: of the bundle.
        heat: ``uint8 (D, H, W)``, evidence for ``label`` voxel by voxel; after `Client.explain` only.
        evidence_per_255: what 255 in ``heat`` stands for, in units of the logit.
    """

    label: str
    probabilities: dict[str, float]
    novelty: float
    flags: tuple[str, ...]
    model_version: str
    heat: np.ndarray | None = None
    evidence_per_255: float = 0.0


class Client:
    """Asks one endpoint; for use outside of asyncio.

    Args:
        address: host and gRPC port.
        token: where the server asks for one.
        certificate: PEM of the authority that signed the server's certificate; without it the connection is plain.
        timeout_s: for an answer, after which the server stops working on it.
    """

    def __init__(
        self, address: str, token: str | None = None, certificate: Path | None = None, timeout_s: float = 80
    ) -> None:
        self._address = address
        self._headers = [("authorization", f"Bearer {token}")] if token else None
        self._certificate = certificate
        self._timeout_s = timeout_s

    def predict(self, path: str | Path) -> Prediction:
        """Classify a NIfTI file, a zip of a DICOM series, a DICOM file, or a folder of one series.

        Raises:
            UsageError: nothing lies there, or it is larger than a gRPC message may be.
            CovidnetError: the server refused it, or can't be reached; the message is the server's.
        """
        return asyncio.run(self._ask(_content(Path(path)), OUTPUTS))

    def explain(self, path: str | Path) -> Prediction:
        """As `predict`, with ``heat`` at the scan's resolution; slice 0 is the most cranial."""
        return asyncio.run(self._ask(_content(Path(path)), (*OUTPUTS, "cam_scan")))

    async def _ask(self, content: bytes, outputs: tuple[str, ...]) -> Prediction:
        file = InferInput("file", [1], "BYTES")
        file.set_data_from_numpy(np.array([content], np.object_))
        request = InferRequest(MODEL, [file], request_outputs=[RequestedOutput(name) for name in outputs])
        client = InferenceGRPCClient(
            self._address,
            use_ssl=self._certificate is not None,
            root_certificates=str(self._certificate) if self._certificate else None,
            channel_args=[("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)],
            timeout=self._timeout_s,
        )
        async with client:
            try:
                return _prediction(await client.infer(request, headers=self._headers))
            except grpc.RpcError as error:
                raise CovidnetError(f"{self._address}: {error.details()} ({error.code().name})") from None


def _prediction(response: InferResponse) -> Prediction:
    tensors = {output.name: output.as_numpy() for output in response.outputs}
    classes = json.loads(response.parameters["classes"].string_param)
    peaks = response.parameters.get("evidence_per_255")
    return Prediction(
        label=tensors["label"][0].decode(),
        probabilities=dict(zip(classes, tensors["probabilities"][0].tolist(), strict=True)),
        novelty=float(tensors["novelty"][0]),
        flags=tuple(json.loads(tensors["flags"][0])),
        model_version=response.model_version,
        heat=tensors["cam_scan"][0] if "cam_scan" in tensors else None,
        evidence_per_255=json.loads(peaks.string_param)[0] if peaks is not None else 0.0,
    )


def _content(path: Path) -> bytes:
    if not path.exists():
        raise UsageError(f"no such file or folder: {path}; give a NIfTI file, a zip or a folder of one DICOM series")
    content = _zipped(path) if path.is_dir() else path.read_bytes()
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{path} has {len(content) >> 20} MiB, gRPC takes 63; send it to POST /v1/scans")
    return content


def _zipped(folder: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for number, path in enumerate(files):  # names may identify the patient, so they stay here
            archive.write(path, f"{number}{path.suffix.lower()}")
    return stream.getvalue()


def main() -> None:
    """Print one line of JSON per scan."""
    parser = argparse.ArgumentParser(description="Classify scans with a running endpoint.")
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--address", default="127.0.0.1:8081", help="host and gRPC port")
    parser.add_argument("--certificate", type=Path, help="PEM of the authority of the server's certificate")
    options = parser.parse_args()
    client = Client(options.address, os.environ.get("COVIDNET_TOKEN"), options.certificate)
    for path in options.paths:
        found = client.predict(path)
        fields: dict[str, Any] = {name: getattr(found, name) for name in ("label", "probabilities", "novelty", "flags")}
        print(json.dumps({"path": str(path), **fields, "model_version": found.model_version}), flush=True)


if __name__ == "__main__":
    try:
        main()
    except CovidnetError as error:
        raise SystemExit(f"covidnet: {error}") from None
