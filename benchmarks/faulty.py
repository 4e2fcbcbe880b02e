"""The endpoint with faults planted in its engine: `python -m benchmarks.faulty FAULTS.json --bundle B ...`.

FAULTS.json is read before each run of the network: ``{"sleep_s": 2.6}`` makes it slow, ``{"fail_every": 3}`` lets every
third run fail. All else is `python -m serving`.
"""

import json
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from covidnet.inference import engine
from covidnet.inference.engine import Engine, Outputs
from serving.__main__ import app


class Faulty:
    """An engine that is told how to fail.

    Args:
        inner: the real one.
        faults: the file.
    """

    def __init__(self, inner: Engine, faults: Path) -> None:
        self.name, self.size, self.batch, self.lanes = inner.name, inner.size, inner.batch, inner.lanes
        self._inner = inner
        self._faults = faults
        self._runs = count(1)

    def run(self, batch: np.ndarray, alone: bool = True) -> Outputs:
        """Outputs of ``uint8 (B, 1, D, H, W)``, late or not at all where the file says so."""
        faults = json.loads(self._faults.read_text()) if self._faults.exists() else {}
        time.sleep(faults.get("sleep_s", 0.0))
        if "fail_every" in faults and next(self._runs) % faults["fail_every"] == 0:
            raise RuntimeError("planted fault")
        return self._inner.run(batch, alone)


if __name__ == "__main__":
    path, real = Path(sys.argv.pop(1)), engine.load

    def load(*arguments: Any, **options: Any) -> Engine:
        return Faulty(real(*arguments, **options), path)

    engine.load = load  # type: ignore[assignment]
    app()
