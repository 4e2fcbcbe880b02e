"""Memory and utilisation of the GPUs, asked of NVIDIA's driver at each scrape; nothing where there is no GPU."""

import logging
from functools import cache
from typing import Any

from serving import metrics

_log = logging.getLogger(__name__)


def refresh() -> None:
    """Bring the gauges up to date: a millisecond with a GPU, nothing without."""
    nvml, handles = _gpus()
    for number, handle in enumerate(handles):
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            metrics.GPU_MEMORY_USED.labels(str(number)).set(memory.used)
            metrics.GPU_MEMORY.labels(str(number)).set(memory.total)
            metrics.GPU_UTILISATION.labels(str(number)).set(nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        except nvml.NVMLError:  # fell off the bus; or is in parts (MIG), which tells no utilisation
            continue


@cache
def _gpus() -> tuple[Any, tuple[Any, ...]]:
    """The library and its handle of each GPU that this process sees; looked for once."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None, ()
    try:
        pynvml.nvmlInit()
        handles = tuple(pynvml.nvmlDeviceGetHandleByIndex(k) for k in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:  # no driver
        _log.info("no figures of GPUs: %s", error)
        return pynvml, ()
    return pynvml, handles
