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


def build(cluster: Cluster) -> BaseComponent:
    """The pipeline for a cluster; call it with arguments to run it locally, or hand it to `kfp.compiler`."""

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
        gate_minimum_accuracy: float = 0.5,
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
            gate_minimum_accuracy: The winner's accuracy on the test split must be at least this.
        """
        with dsl.ExitHandler(cluster.light(report().set_caching_options(False)), name="stages"):
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
            settings = cluster.light(configured).outputs
            ingested = ingest(params=settings["ingest"], data_revision=data_revision)
            dataset = cluster.ingesting(ingested).outputs["dataset"]
            audited = cluster.light(audit(dataset=dataset))
            with dsl.ParallelFor(baselines, name="baselines") as name:
                based = baseline(params=settings["training"], name=name, dataset=dataset)
                cluster.training(based).after(audited)
            with dsl.ParallelFor(variants, name="variants") as variant:
                searched = search(params=settings["search"], variant=variant, dataset=dataset)
                genotype = cluster.training(searched).after(audited).outputs["genotype"]
                retrained = retrain(params=settings["training"], variant=variant, dataset=dataset, genotype=genotype)
                cluster.training(retrained)
            evaluated = evaluate(
                params=settings["evaluate"],
                dataset=dataset,
                baselines=dsl.Collected(based.outputs["model"]),
                genotypes=dsl.Collected(genotype),
                retrained=dsl.Collected(retrained.outputs["model"]),
            )
            evaluation = cluster.training(evaluated).outputs["evaluation"]
            gated = cluster.light(gate(evaluation=evaluation, minimum_accuracy=gate_minimum_accuracy))
            # named outputs of a task don't reach a condition in kfp.local 2.17, a single output does
            with dsl.If(gated.outputs["Output"] == True, name="passed"):  # noqa: E712 (KFP compiles the comparison)
                winner = evaluated.outputs["winner"]
                exported = export(params=settings["export"], dataset=dataset, evaluation=evaluation, winner=winner)
                cluster.training(exported)

    return covidnet3d


def write(cluster: Cluster, out: Path) -> None:
    """Compile to YAML; byte for byte the same for the same sources."""
    compiler.Compiler().compile(build(cluster), str(out))
