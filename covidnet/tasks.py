"""What each task of the Kubeflow pipeline gets of the configuration, chosen and checked before anything costly starts."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covidnet import config, folder
from covidnet.config import Config
from covidnet.errors import UsageError

# evaluate.positive goes with the classes: a part is checked as a configuration of its own
_COMMON: dict[str, Any] = {"seed": True, "classes": True, "channels": True, "evaluate": {"positive"}, "data": {"allow"}}
_PARTS: dict[str, Any] = {
    "ingest": {**_COMMON, "data": True},
    "training": {**_COMMON, "training": True, "augment": True},
    "search": {**_COMMON, "search": True, "augment": True},
    "rollout": {**_COMMON, "gate": True, "deploy": True, "export": True},
}


def choose(
    params: str,
    knobs: Mapping[str, str],
    overrides: Sequence[str],
    baselines: Sequence[str],
    variants: Sequence[str],
) -> Config:
    """The configuration of a run.

    Args:
        params: params.yaml, as JSON or YAML.
        knobs: key to value, over ``params``; an empty value leaves what is there.
        overrides: ``key.sub=value``, over all.
        baselines: human-designed networks; the graph has one branch for each.
        variants: search spaces, likewise.

    Raises:
        UsageError: a value outside its range, an unknown key, or branches that the graph doesn't have.
    """
    branches = {"baselines": json.dumps(list(baselines)), "search.variants": json.dumps(list(variants))}
    chosen = [f"{key}={value}" for key, value in {**knobs, **branches}.items() if value]
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "params.yaml"
        file.write_text(params)
        settings = config.load(file, [*chosen, *overrides])
    if list(settings.baselines) != list(baselines) or list(settings.search.variants) != list(variants):
        raise UsageError("set the models by `baselines` and `variants`, not by `overrides`: the graph branches on them")
    if not baselines or not variants:
        raise UsageError("expected at least one of `baselines` and one of `variants`: evaluate compares the two kinds")
    return settings


def parts(settings: Config) -> dict[str, str]:
    """The sections that a task depends on, as JSON, so that a change elsewhere finds its result in the cache."""
    found = {name: settings.model_dump_json(include=included) for name, included in _PARTS.items()}
    whole = settings.model_dump_json(exclude={"gate", "deploy", "results", "log"})
    return {
        **found,
        "whole": whole,
        "service": settings.deploy.service or "",
        "registry": settings.deploy.registry or "",
    }


def shards(count: int) -> list[str]:
    """``I/N`` of each part of the raw scans.

    Raises:
        UsageError: a count outside its range.
    """
    if not 1 <= count <= 256:
        raise UsageError(f"expected shards of 1 to 256, found {count}")
    return [f"{number}/{count}" for number in range(1, count + 1)]


def placement(nodes: int, gpus: int, gpu_type: str, *, shared: bool) -> dict[str, Any]:
    """Where training runs: GPUs of its own pod, or a TrainJob, whose pods have them.

    Args:
        nodes: pods per training.
        gpus: per pod.
        gpu_type: extended resource of the nodes.
        shared: whether there is a folder that several pods see.

    Raises:
        UsageError: a count outside its range, or several nodes without a folder that they share.
    """
    if not 1 <= nodes <= 256 or not 0 <= gpus <= 16:
        raise UsageError(f"expected nodes of 1 to 256 and gpus of 0 to 16, found {nodes} and {gpus}")
    if nodes == 1:
        return {"pod_gpus": gpus, "job": ""}
    if not shared:
        raise UsageError(f"nodes={nodes} needs a volume that all pods share: give --workspace-claim NAME")
    return {"pod_gpus": 0, "job": json.dumps({"nodes": nodes, "gpus": gpus, "gpu_type": gpu_type})}


def revisions(settings: Config, expected: str) -> dict[str, str]:
    """Digests of the raw scans and of the code, which the cache goes by.

    Args:
        settings: of the run.
        expected: digest of the raw scans; empty takes them as they are.

    Raises:
        UsageError: the scans aren't there, or are others than expected.
    """
    from covidnet.data import versions
    from covidnet.data.ingest import listing

    if settings.data.source == "phantom":
        raw, where = settings.data.model_dump(), "the phantoms of these parameters"
    elif settings.data.revision is not None:
        raw, where = listing(settings, versions.find(settings.data)), f"data.revision {settings.data.revision}"
        raw["version"] = raw["version"]["sha256"]  # the same in another commit
    else:
        raw, where = listing(settings), "data.root as it is mounted"
    found = hashlib.sha256(json.dumps(raw, sort_keys=True, default=str).encode()).hexdigest()[:12]
    if expected and expected != found:
        raise UsageError(f"data revision {expected} is not here: {where} has revision {found}; give that, or none")
    return {"data_revision": found, "code": folder.code_digest()}


def pinned(settings: Config) -> Config:
    """With ``data.revision`` as a commit, so that a branch that moves during the run changes nothing in it.

    Raises:
        UsageError: there is no such revision.
    """
    from covidnet.data import versions

    version = versions.find(settings.data)
    if version is None:
        return settings
    return settings.model_copy(update={"data": settings.data.model_copy(update={"revision": version.pin})})
