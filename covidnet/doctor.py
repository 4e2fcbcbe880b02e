"""What of the optional parts is on this machine, and which verb wants the missing ones."""

import importlib.util
import shutil
import sys
from importlib.metadata import version

_PACKAGES = (
    ("torch", "torch", "baseline, search, retrain, evaluate, export", "pip install 'covidnet3d[train]'"),
    ("monai", "monai", "baseline", "pip install 'covidnet3d[train]'"),
    ("onnx", "onnx", "export, predict", "pip install covidnet3d"),
    ("openvino", "openvino", "predict on CPU, fastest", "pip install openvino"),
    ("onnxruntime-gpu", "onnxruntime", "predict on a GPU, or without OpenVINO", "pip install onnxruntime-gpu"),
    ("pydicom", "pydicom", "ingest, inspect, predict", "pip install covidnet3d"),
    ("pylibjpeg", "pylibjpeg", "JPEG 2000 in DICOM", "pip install covidnet3d"),
    ("dvc", "dvc", "dvc repro", "pip install 'covidnet3d[dev]'"),
)


def examine() -> list[dict[str, str]]:
    """One row per part: ``part``, ``found`` (version or empty), ``for`` (verbs), ``remedy``."""
    rows = [
        {
            "part": name,
            "found": version(name) if importlib.util.find_spec(module) else "",
            "for": verbs,
            "remedy": remedy,
        }
        for name, module, verbs, remedy in _PACKAGES
    ]
    rows.insert(0, {"part": "python", "found": sys.version.split()[0], "for": "everything", "remedy": ""})
    rows.append(_gpu())
    rows.append(_program("java", "TorchServe", "apt-get install openjdk-17-jre-headless"))
    rows.append(_program("git", "provenance, dvc exp", "apt-get install git"))
    return rows


def _gpu() -> dict[str, str]:
    found = ""
    if importlib.util.find_spec("torch"):
        import torch

        found = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    return {"part": "gpu", "found": found, "for": "fast search and training (optional)", "remedy": "CPU is used"}


def _program(name: str, verbs: str, remedy: str) -> dict[str, str]:
    return {"part": name, "found": shutil.which(name) or "", "for": verbs, "remedy": remedy}
