"""The graph: the stages of `dvc.yaml` as Kubeflow tasks, an audit before training, a gate before export.

configure -> ingest -> audit -+-> baseline per network ---------+-> evaluate -> gate -> export
                              +-> search -> retrain per variant +
"""

import json
from pathlib import Path

import yaml
from kfp import compiler, dsl
from kfp.dsl.base_component import BaseComponent

from components.audit import audit
from components.baseline import baseline
from components.configure import configure
from components.evaluate import evaluate
from components.export import export
from components.gate import gate
from components.ingest import ingest
from components.report import report
from components.retrain import retrain
from components.search import search
from pipelines.cluster import Cluster

_TREE = yaml.safe_load((Path(__file__).parent.parent / "params.yaml").read_text())
PARAMS = json.dumps(_TREE)  # one line: KFP copies defaults into a comment at the head of the YAML
GATE_AT_LEAST = {"accuracy": 0.5}
GATE_AT_MOST = {"ece_after": 0.15}  # calibration error after temperature scaling
GATE_MARGIN = -0.05  # a small winner may be a little behind a baseline that it can't be told apart from


def stages(cluster: Cluster) -> BaseComponent:
    """The graph of the stages, each with its part of the configuration.

    A pipeline of its own, because kfp.local 2.17 hands a loop the inputs of its pipeline, but no task's output.
    """

    @dsl.pipeline(name="stages")
    def graph(
        ingest_params: str,
        training_params: str,
        search_params: str,
        whole_params: str,
        data_revision: str,
        baselines: list[str],
        variants: list[str],
        gate_at_least: dict,  # type: ignore[type-arg]  # KFP knows no dict[str, float]
        gate_at_most: dict,  # type: ignore[type-arg]
        gate_margin: float,
    ) -> None:
        """From raw scans to a bundle."""
        ingested = ingest(params=ingest_params, data_revision=data_revision)
        dataset = cluster.ingesting(ingested).outputs["dataset"]
        audited = cluster.light(audit(dataset=dataset))
        with dsl.ParallelFor(baselines, name="baselines") as name:
            based = baseline(params=training_params, name=name, dataset=dataset)
            cluster.training(based).after(audited)
        with dsl.ParallelFor(variants, name="variants") as variant:
            searched = search(params=search_params, variant=variant, dataset=dataset)
            genotype = cluster.training(searched).after(audited).outputs["genotype"]
            retrained = retrain(params=training_params, variant=variant, dataset=dataset, genotype=genotype)
            cluster.training(retrained)
        evaluated = evaluate(
            params=whole_params,
            dataset=dataset,
            baselines=dsl.Collected(based.outputs["model"]),
            genotypes=dsl.Collected(genotype),
            retrained=dsl.Collected(retrained.outputs["model"]),
        )
        evaluation = cluster.training(evaluated).outputs["evaluation"]
        winner = evaluated.outputs["winner"]
        gated = gate(
            evaluation=evaluation,
            winner=winner,
            baselines=dsl.Collected(based.outputs["model"]),
            at_least=gate_at_least,
            at_most=gate_at_most,
            margin=gate_margin,
        )
        cluster.light(gated)
        # one unnamed output: named ones don't reach a condition in kfp.local 2.17
        with dsl.If(gated.outputs["Output"] == True, name="passed"):  # noqa: E712 (KFP compiles the comparison)
            exported = export(params=whole_params, dataset=dataset, evaluation=evaluation, winner=winner)
            cluster.training(exported)

    return graph


def build(cluster: Cluster) -> BaseComponent:
    """The pipeline for a cluster; call it with arguments to run it locally, or hand it to `kfp.compiler`."""
    inner = stages(cluster)

    @dsl.pipeline(name="covidnet3d", display_name="CovidNet3D")
    def covidnet3d(
        params: str = PARAMS,
        profile: str = "",
        data_source: str = "",
        data_root: str = "",
        data_labels: str = "",
        data_revision: str = "",
        baselines: list[str] = _TREE["baselines"],
        variants: list[str] = _TREE["search"]["variants"],
        search_size_mib: str = "",
        search_steps: str = "",
        training_budget: str = "",
        training_tmacs: str = "",
        training_epochs: str = "",
        overrides: list[str] = [],  # noqa: B006 (read by the compiler, changed by nobody)
        gate_at_least: dict = GATE_AT_LEAST,  # type: ignore[type-arg]
        gate_at_most: dict = GATE_AT_MOST,  # type: ignore[type-arg]
        gate_margin: float = GATE_MARGIN,
    ) -> None:
        """Raw chest CTs to a searched, benchmarked, explained and exported 3D classifier. No output is a diagnosis.

        Args:
            params: params.yaml, as JSON or YAML. Where a parameter below is empty, what it says here holds.
            profile: demo or paper.
            data_source: phantom, nifti, slices or dicom.
            data_root: Folder of the raw scans, in /data.
            data_labels: CSV of path, label, patient; without it, class folders are expected.
            data_revision: Any text that changes when the raw scans do: the cache answers for equal texts only.
            baselines: Human-designed networks to compare with.
            variants: Search spaces, S and L.
            search_size_mib: Budget of the searched network, MiB of float32 parameters.
            search_steps: Joint iterations of the search.
            training_budget: compute (equal multiply-accumulates for every model) or epochs.
            training_tmacs: Training budget per model, 10^12 multiply-accumulates.
            training_epochs: Training budget per model, passes.
            overrides: key.sub=value, for anything else in params.
            gate_at_least: Figures of the winner on the test split and their lower bounds, as JSON.
            gate_at_most: The same with upper bounds.
            gate_margin: The winner's validation accuracy less the best baseline's must be at least this.
        """
        with dsl.ExitHandler(cluster.light(report().set_caching_options(False)), name="run"):
            configured = configure(
                params=params,
                overrides=overrides,
                baselines=baselines,
                variants=variants,
                profile=profile,
                data_source=data_source,
                data_root=data_root,
                data_labels=data_labels,
                search_size_mib=search_size_mib,
                search_steps=search_steps,
                training_budget=training_budget,
                training_tmacs=training_tmacs,
                training_epochs=training_epochs,
            )
            parts = {f"{name}_params": part for name, part in cluster.light(configured).outputs.items()}
            inner(
                **parts,
                data_revision=data_revision,
                baselines=baselines,
                variants=variants,
                gate_at_least=gate_at_least,
                gate_at_most=gate_at_most,
                gate_margin=gate_margin,
            )

    return covidnet3d


def write(cluster: Cluster, out: Path) -> None:
    """Compile to YAML; byte for byte the same for the same sources."""
    compiler.Compiler().compile(build(cluster), str(out))
