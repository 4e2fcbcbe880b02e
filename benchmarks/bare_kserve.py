"""A KServe model in a few lines, as KServe's documentation shows it: what `benchmarks.torchserve` compares ours with.

python -m benchmarks.bare_kserve results/export/bundle/model.onnx 8080 8081
"""

import sys

import numpy as np
import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Bare(Model):
    """ONNX Runtime with its defaults; nothing is validated, batched, bounded or watched.

    Args:
        path: ``model.onnx`` of a bundle.
    """

    def __init__(self, path: str) -> None:
        super().__init__("covidnet")
        self._session = onnxruntime.InferenceSession(path)
        self.ready = True

    def predict(
        self, payload: InferRequest, headers: dict[str, str] | None = None, response_headers: object = None
    ) -> InferResponse:
        """Probabilities ``(B, K)`` of the first input, ``uint8 (B, D, H, W)``."""
        volumes: np.ndarray = payload.inputs[0].as_numpy()
        (probabilities,) = self._session.run(["probabilities"], {"volume": volumes[:, None]})
        output = InferOutput("probabilities", list(probabilities.shape), "FP32")
        output.set_data_from_numpy(probabilities)
        return InferResponse(payload.id or "", self.name, [output])


if __name__ == "__main__":
    ModelServer(http_port=int(sys.argv[2]), grpc_port=int(sys.argv[3])).start([Bare(sys.argv[1])])
