"""Component `configure`: the run's parameters, checked before anything costly starts."""

from typing import NamedTuple

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def configure(
    params: str,
    overrides: list[str],
    baselines: list[str],
    variants: list[str],
    profile: str,
    data_source: str,
    data_root: str,
    data_labels: str,
    data_revision: str,
    search_size_mib: str,
    search_steps: str,
    training_budget: str,
    training_tmacs: str,
    training_epochs: str,
    gate_margin: str,
    gate_at_least: str,
    gate_at_most: str,
    service: str,
    namespace: str,
    shards: int,
    nodes: int,
    gpus: int,
    gpu_type: str,
) -> NamedTuple(  # type: ignore[valid-type]
    "Configured",
    [
        ("ingest", str),
        ("training", str),
        ("search", str),
        ("whole", str),
        ("rollout", str),
        ("service", str),
        ("registry", str),
        ("data_revision", str),
        ("code", str),
        ("shards", list),
        ("pod_gpus", int),
        ("job", str),
    ],
):
    """Check the run's parameters, and give every stage its part.

    Ingest, search and training get the sections that they depend on and no more, so that a changed
    `evaluate.bootstrap` finds yesterday's search in the cache; evaluate and export tell of the whole. A value
    outside its range, an unknown key, or another data revision than the expected one ends the run here, by name.

    Args:
        params: params.yaml, as JSON or YAML.
        overrides: `key.sub=value`, as `-S` on the command line; the last word.
        baselines: Human-designed networks to train.
        variants: Search spaces: S, L.
        profile: Empty, like all that follow to `namespace`: as in params.
        data_source: phantom, nifti, slices, dicom, ccccii, mosmed or covidctset.
        data_root: Folder of the raw scans, as the pod sees it.
        data_labels: CSV of path, label, patient.
        data_revision: Expected digest of the raw scans.
        search_size_mib: Budget of the searched network, MiB of float32 parameters.
        search_steps: Joint iterations of the search.
        training_budget: compute or epochs.
        training_tmacs: Training budget per model, 10^12 multiply-accumulates.
        training_epochs: Training budget per model, passes.
        gate_margin: Validation accuracy beside the deployed model or the baselines, at least.
        gate_at_least: Figures on the test split to lower bounds, as JSON.
        gate_at_most: Figures on the test split to upper bounds, as JSON.
        service: InferenceService; null deploys nothing.
        namespace: Of the service.
        shards: Pods that share the reading of the raw scans.
        nodes: Above 1, search and training run as TrainJobs.
        gpus: Per node.
        gpu_type: What the nodes offer, e.g. nvidia.com/gpu.
    """
    import os
    from collections import namedtuple

    from covidnet import tasks

    knobs = {
        "profile": profile,
        "data.source": data_source,
        "data.root": data_root,
        "data.labels": data_labels,
        "search.budget.size_mib": search_size_mib,
        "search.steps": search_steps,
        "training.budget": training_budget,
        "training.tmacs": training_tmacs,
        "training.epochs": training_epochs,
        "gate.margin": gate_margin,
        "gate.at_least": gate_at_least,
        "gate.at_most": gate_at_most,
        "deploy.service": service,
        "deploy.namespace": namespace,
    }
    settings = tasks.pinned(tasks.choose(params, knobs, overrides, baselines, variants))
    found = {
        **tasks.parts(settings),
        "shards": tasks.shards(shards),
        **tasks.placement(nodes, gpus, gpu_type, shared="COVIDNET_WORKSPACE" in os.environ),
        **tasks.revisions(settings, data_revision),
    }
    print(f"data revision {found['data_revision']}, code {found['code']}")
    return namedtuple("Configured", found)(**found)
