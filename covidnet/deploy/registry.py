"""Registering a bundle in Kubeflow's Model Registry: what it is, how good it is, and where it comes from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from covidnet.errors import CovidnetError
from covidnet.export.bundle import Bundle

FIGURES = ("accuracy", "balanced_accuracy", "kappa", "f1", "roc_auc", "sensitivity", "specificity")


def register(address: str, evaluated: Path, bundle: Path, uri: str, lineage: Mapping[str, str]) -> str:
    """Register a bundle as a version of the model ``covidnet3d``; a version that is there already stays as it is.

    Args:
        address: of the registry, e.g. ``http://model-registry-service.kubeflow:8080``.
        evaluated: from evaluate.
        bundle: the exported folder.
        uri: the same folder for others.
        lineage: names to texts: data revision, code, run.

    Returns:
        name and version, in a sentence.

    Raises:
        CovidnetError: no answer, or a refusal.
    """
    from model_registry import ModelRegistry

    version = Bundle.load(bundle).version
    results = json.loads((evaluated / "results.json").read_text())
    parts = urlsplit(address)
    secure = parts.scheme == "https"
    try:
        registry = ModelRegistry(
            f"{parts.scheme}://{parts.hostname}",
            parts.port or (443 if secure else 8080),
            author="covidnet3d",
            is_secure=secure,
        )
        known = registry.get_registered_model("covidnet3d")
        if known is None or registry.get_model_version("covidnet3d", version) is None:
            registry.register_model(
                "covidnet3d",
                uri,
                version=version,
                model_format_name="onnx",
                model_format_version="1",
                description="Research software: no output is a diagnosis.",
                metadata=_metadata(results, lineage),
            )
    except Exception as error:  # the client lets errors of four libraries through
        reason = getattr(error, "reason", None) or type(error).__name__
        raise CovidnetError(f"the Model Registry at {address} could not take bundle {version}: {reason}") from None
    return f"covidnet3d, version {version}, is registered at {address}"


def _metadata(results: Mapping[str, Any], lineage: Mapping[str, str]) -> dict[str, str | float]:
    """Flat: the registry's custom properties are texts and numbers."""
    winner = results["winner"]["name"]
    figures = {name: results["metrics"][winner].get(name) for name in FIGURES}
    measured = {f"test_{name}": value for name, value in figures.items() if value is not None}
    calibration = {"test_ece": results["calibration"]["ece_after"]}
    return {"winner": winner, **lineage, **measured, **calibration}
