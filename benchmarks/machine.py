"""What a benchmark's numbers were measured on, written beside them."""

import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torch", "torchserve", "numpy", "monai", "openvino", "onnxruntime-gpu", "kserve", "kfp", "pydicom")


def facts() -> dict[str, Any]:
    """Date, machine kind and the versions that matter."""
    return {
        "date": date.today().isoformat(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "system": platform.system(),
        },
        "versions": {name: installed for name in PACKAGES if (installed := _version(name))},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as stream:
            names = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
