"""Registering a bundle in Kubeflow's Model Registry: what it is, how good it is, and where it comes from."""

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covidnet import cluster, folder
from covidnet.errors import CovidnetError
from covidnet.export.bundle import Bundle

MODEL = "covidnet3d"
FIGURES = ("accuracy", "balanced_accuracy", "kappa", "f1", "roc_auc", "sensitivity", "specificity")
TIMEOUT_S = 60.0
_TOKENS = ("KF_PIPELINES_SA_TOKEN_PATH", "/var/run/secrets/kubernetes.io/serviceaccount/token")  # as its own client
_REMEDIES = {
    401: "it asks for a token: the pod's service account needs one, or KF_PIPELINES_SA_TOKEN_PATH names its file",
    403: "the service account of the run has no rights there; ask the registry's owner for them",
    404: "expected the registry's own address, and one that speaks the API of the installed client `model-registry`",
}


def register(
    address: str, evaluated: Path, bundle: Path, uri: str, lineage: Mapping[str, str], run: Mapping[str, str]
) -> str:
    """Register a bundle as a version of the model ``covidnet3d``; a version that is there already stays as it is.

    Args:
        address: of the registry, e.g. ``http://model-registry-service.kubeflow:8080``.
        evaluated: from evaluate.
        bundle: the exported folder.
        uri: the same folder for others.
        lineage: names to texts, e.g. data revision and code.
        run: ``id`` and ``name`` of the pipeline run, which the registry's UI links to.

    Returns:
        name and version, in a sentence.

    Raises:
        CovidnetError: no answer, or a refusal.
    """
    from aiohttp import ClientError
    from mr_openapi.exceptions import ApiException, ConflictException

    version = Bundle.load(bundle).version
    told = _told(evaluated, lineage)
    try:
        try:
            made = asyncio.run(_register(address, version, uri, told, run))
        except ConflictException:  # another run made it between our look and our request
            made = asyncio.run(_register(address, version, uri, told, run))
    except ApiException as error:
        remedy = _REMEDIES.get(error.status, "see the registry's log")
        reason = f"{error.status} {error.reason}; {remedy}"
    except (ClientError, TimeoutError, OSError) as error:
        reason = f"no answer ({str(error) or type(error).__name__}); is the address right?"
    else:
        return f"{MODEL}, version {version}, is registered{'' if made else ' already'} at {address}"
    raise CovidnetError(f"the Model Registry at {address} could not take bundle {version}: {reason}")


async def _register(address: str, version: str, uri: str, told: Mapping[str, Any], run: Mapping[str, str]) -> bool:
    """Make what isn't there of model, version and artifact, in this order; whether anything was made.

    Each is looked for by itself, so that what a killed task left half done is completed.
    """
    from model_registry.core import ModelRegistryAPIClient
    from model_registry.types import ModelArtifact, ModelVersion, RegisteredModel
    from mr_openapi import Configuration

    client = ModelRegistryAPIClient(Configuration(host=address.rstrip("/"), access_token=_token()))
    async with asyncio.timeout(TIMEOUT_S):
        model = await client.get_registered_model_by_params(MODEL)
        if model is None:
            wanted = RegisteredModel(
                name=MODEL, owner=MODEL, description="3D classifier of chest CT. Research software: no diagnosis."
            )
            model = await client.upsert_registered_model(wanted)
        known = await client.get_model_version_by_params(model.id, version)
        if known is None:
            wanted = ModelVersion(
                name=version,
                author=MODEL,
                description="Research software: no output is a diagnosis.",
                custom_properties=told,
            )
            known = await client.upsert_model_version(wanted, model.id)
        if await client.get_model_artifact_by_params(MODEL, known.id) is not None:
            return False
        artifact = ModelArtifact(
            name=MODEL,
            uri=uri,
            model_format_name="onnx",
            model_format_version="1",
            model_source_kind="kfp",  # as Kubeflow's UI expects a pipeline run to be named
            model_source_class="pipelinerun",
            model_source_group=cluster.own_namespace(),
            model_source_id=run["id"],
            model_source_name=run["name"],
        )
        await client.upsert_model_version_artifact(artifact, known.id)
        return True


def _told(evaluated: Path, lineage: Mapping[str, str]) -> dict[str, str | float]:
    """Flat: the registry's custom properties are texts and numbers."""
    results = json.loads((evaluated / "results.json").read_text())
    made = folder.provenance(evaluated)
    winner = results["winner"]["name"]
    figures = {name: results["metrics"][winner].get(name) for name in FIGURES}
    measured = {f"test_{name}": value for name, value in figures.items() if value is not None}
    calibration = {"test_ece": results["calibration"]["ece_after"]}
    origin = {"dataset_sha256": made["inputs"]["dataset"]}
    if made["git_revision"]:  # an image has none
        origin["git_revision"] = made["git_revision"]
    return {"winner": winner, **lineage, **origin, **measured, **calibration}


def _token() -> str | None:
    """Of the pod's service account; None outside a cluster, or where its token isn't mounted."""
    named, mounted = _TOKENS
    file = Path(os.environ.get(named, mounted))
    return file.read_text().strip() if file.is_file() else None
