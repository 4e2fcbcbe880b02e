"""Component `configure`: the run's parameters, checked before anything costly starts."""

from typing import Any, NamedTuple

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
    search_size_mib: str,
    search_steps: str,
    training_budget: str,
    training_tmacs: str,
    training_epochs: str,
) -> NamedTuple(  # type: ignore[valid-type]
    "Configured", [("ingest", str), ("training", str), ("search", str), ("whole", str)]
):
    """Check the run's parameters, and give every stage its part.

    Ingest, search and training get the sections that they depend on and no more, so that a changed
    `evaluate.bootstrap` finds yesterday's search in the cache; evaluate and export tell of the whole. A value
    outside its range, or an unknown key, ends the run here and names the key.

    Args:
        params: params.yaml, as JSON or YAML.
        overrides: `key.sub=value`, as `-S` on the command line; the last word.
        baselines: Human-designed networks to train.
        variants: Search spaces: S, L.
        profile: Empty, like all that follow: as in params.
        data_source: phantom, nifti, slices or dicom.
        data_root: Folder of the raw scans, as the pod sees it.
        data_labels: CSV of path, label, patient.
        search_size_mib: Budget of the searched network, MiB of float32 parameters.
        search_steps: Joint iterations of the search.
        training_budget: compute or epochs.
        training_tmacs: Training budget per model, 10^12 multiply-accumulates.
        training_epochs: Training budget per model, passes.
    """
    import json
    import tempfile
    from collections import namedtuple
    from pathlib import Path

    from covidnet import config

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
        "baselines": json.dumps(baselines),
        "search.variants": json.dumps(variants),
    }
    chosen = [f"{key}={value}" for key, value in knobs.items() if value]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        file.write_text(params)
        settings = config.load(file, [*chosen, *overrides])
    if list(settings.baselines) != baselines or list(settings.search.variants) != variants:
        raise ValueError("set the models by `baselines` and `variants`, not by `overrides`: the graph branches on them")
    if not baselines or not variants:
        raise ValueError("expected at least one of `baselines` and one of `variants`: evaluate compares the two kinds")

    # evaluate.positive goes with the classes: a part is checked as a configuration of its own
    common: dict[str, Any] = {"seed": True, "classes": True, "channels": True, "evaluate": {"positive"}}
    sections: dict[str, Any] = {
        "ingest": {**common, "data": True},
        "training": {**common, "training": True, "augment": True},
        "search": {**common, "search": True, "augment": True},
        "whole": None,
    }
    parts = {name: settings.model_dump_json(include=included) for name, included in sections.items()}
    return namedtuple("Configured", parts)(**parts)
