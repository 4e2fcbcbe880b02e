"""A scan that crashes, hangs or eats the memory of its process is rejected with the reason, and the others are kept."""

import os
import signal
import time
from pathlib import Path

import pytest

from covidnet.config import Config, parse
from covidnet.data import worker
from covidnet.data.preprocess import Spec
from covidnet.data.sources import ScanRef
from covidnet.data.worker import Ingested

CONFIG = parse({"data": {"workers": 2, "seconds_per_scan": 3, "memory_gib": 1}})


def decode(index: int, ref: ScanRef, config: Config, spec: Spec) -> Ingested:
    """Stands for a decoder; runs in the worker."""
    if ref.label == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if ref.label == "hang":
        time.sleep(600)
    if ref.label == "memory":
        bytearray(2 * 2**30)
    if ref.label == "abort":
        print("name of a patient", flush=True)
        os.abort()
    return Ingested(source=ref.label, slices=index)


def run(labels: list[str], scratch: Path) -> dict[int, Ingested]:
    refs = [(i, ScanRef(f"{i}", f"{i}", label, Path())) for i, label in enumerate(labels)]
    return dict(worker.run(refs, CONFIG, Spec((16, 64, 64)), scratch))


def test_every_fault_costs_its_own_scan_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "load", decode)
    labels = ["fine", "segfault", "fine", "hang", "segfault", "abort", "memory", *["fine"] * 20]
    found = run(labels, tmp_path)
    assert sorted(found) == list(range(len(labels)))
    for index, label in enumerate(labels):
        if label == "fine":
            assert (found[index].reason, found[index].slices) == ("", index)
    assert "died (SIGSEGV)" in found[1].reason
    assert "died (SIGSEGV)" in found[4].reason
    assert "died (SIGABRT)" in found[5].reason
    assert "not read within 3 s (data.seconds_per_scan)" in found[3].reason
    assert "needs more than 1 GiB of memory" in found[6].reason
    assert "patient" not in "".join(capfd.readouterr())
