"""Figures of GPUs, from a driver that is played here."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from serving import metrics
from serving.monitoring import gpu


class NVMLError(Exception):
    """As the library's."""


class Driver(SimpleNamespace):
    """Two GPUs; the second is in parts and says nothing of its utilisation."""

    NVMLError = NVMLError

    def nvmlInit(self) -> None:
        """Nothing to do."""

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=3 * 2**30, total=80 * 2**30)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        if handle:
            raise NVMLError("Not Supported")
        return SimpleNamespace(gpu=37)


class NoDriver(Driver):
    """The library without a driver."""

    def nvmlInit(self) -> None:
        raise NVMLError("Driver Not Loaded")


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    gpu._gpus.cache_clear()
    yield
    gpu._gpus.cache_clear()
    for gauge in (metrics.GPU_MEMORY, metrics.GPU_MEMORY_USED, metrics.GPU_UTILISATION):
        gauge.clear()


def figure(name: str, number: str = "0") -> float | None:
    return REGISTRY.get_sample_value(name, {"gpu": number})


def test_each_gpu_tells_memory_and_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    gpu.refresh()
    assert figure("covidnet_gpu_memory_used_bytes") == 3 * 2**30
    assert figure("covidnet_gpu_memory_bytes") == 80 * 2**30
    assert figure("covidnet_gpu_utilization_ratio") == 0.37
    assert figure("covidnet_gpu_memory_bytes", "1") == 80 * 2**30
    assert figure("covidnet_gpu_utilization_ratio", "1") in (None, 0)


@pytest.mark.parametrize("library", [None, NoDriver()])  # not installed, or no driver
def test_without_a_gpu_there_are_no_figures(library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    gpu.refresh()
    assert figure("covidnet_gpu_memory_bytes") is None
