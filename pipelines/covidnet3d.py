"""The graph: the stages of `dvc.yaml` as Kubeflow tasks, an audit before training, a gate and a rollout after.

configure -> ingest_shard per part -> ingest -> audit

audit -+-> baseline per network ---------+-> evaluate -> gate -> export -+-> register
       +-> search -> retrain per variant +                               +-> deploy -> smoke_test -> release
"""

import json
from pathlib import Path

import yaml
from kfp import compiler, dsl
from kfp.dsl.base_component import BaseComponent

from components.audit import audit
from components.baseline import baseline
from components.configure import configure
from components.deploy import deploy
from components.evaluate import evaluate
from components.export import export
from components.gate import gate
from components.ingest import ingest
from components.ingest_shard import ingest_shard
from components.register import register
from components.release import release
from components.report import report
from components.retrain import retrain
from components.search import search
from components.smoke_test import smoke_test
from pipelines.cluster import Cluster

_TREE = yaml.safe_load((Path(__file__).parent.parent / "params.yaml").read_text())
PARAMS = json.dumps(_TREE)  # one line: KFP copies defaults into a comment at the head of the YAML


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
        rollout_params: str,
        service: str,
        registry: str,
        data_revision: str,
        code: str,
        shards: list[str],
        pod_gpus: int,
        gpu_type: str,
        job: str,
        baselines: list[str],
        variants: list[str],
    ) -> None:
        """From raw scans to a served model."""
        raw = {"params": ingest_params, "code": code, "data_revision": data_revision}
        with dsl.ParallelFor(shards, name="shards", parallelism=cluster.at_once) as number:
            sharded = cluster.ingesting(ingest_shard(number=number, **raw))
        ingested = ingest(shards=dsl.Collected(sharded.outputs["shard"]), **raw)
        dataset = cluster.ingesting(ingested).outputs["dataset"]
        audited = cluster.light(audit(params=ingest_params, dataset=dataset))
        # as inputs, too: the compiler of KFP 2.17 hands a loop no parameter that only a pod's resources ask for
        where = {"gpus": pod_gpus, "gpu_type": gpu_type, "job": job, "code": code}
        with dsl.ParallelFor(baselines, name="baselines", parallelism=cluster.at_once) as name:
            based = baseline(params=training_params, name=name, dataset=dataset, **where)
            cluster.computing(based, pod_gpus, gpu_type).after(audited)
        with dsl.ParallelFor(variants, name="variants", parallelism=cluster.at_once) as variant:
            searched = search(params=search_params, variant=variant, dataset=dataset, **where)
            genotype = cluster.computing(searched, pod_gpus, gpu_type).after(audited).outputs["genotype"]
            retrained = retrain(params=training_params, variant=variant, dataset=dataset, genotype=genotype, **where)
            cluster.computing(retrained, pod_gpus, gpu_type)
        evaluated = evaluate(
            params=whole_params,
            code=code,
            dataset=dataset,
            baselines=dsl.Collected(based.outputs["model"]),
            genotypes=dsl.Collected(genotype),
            retrained=dsl.Collected(retrained.outputs["model"]),
        )
        evaluation = cluster.computing(evaluated, pod_gpus, gpu_type).outputs["evaluation"]
        winner = evaluated.outputs["winner"]
        gated = gate(
            params=rollout_params,
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            dataset=dataset,
            evaluation=evaluation,
            winner=winner,
            baselines=dsl.Collected(based.outputs["model"]),
        )
        cluster.telling(gated).set_caching_options(False)  # it looks at the deployed model
        # one unnamed output: named ones don't reach a condition in kfp.local 2.17
        with dsl.If(gated.outputs["Output"] == True, name="passed"):  # noqa: E712 (KFP compiles the comparison)
            exported = export(params=whole_params, code=code, dataset=dataset, evaluation=evaluation, winner=winner)
            bundle = cluster.computing(exported).outputs["bundle"]
            with dsl.If(registry != "", name="registered"):
                registered = register(
                    params=rollout_params,
                    data_revision=data_revision,
                    code=code,
                    run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
                    run_name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
                    evaluation=evaluation,
                    bundle=bundle,
                )
                cluster.light(registered).set_caching_options(False)
            with dsl.If(service != "", name="deployed"):
                deployed = deploy(params=rollout_params, bundle=bundle)
                cluster.light(deployed, hours=2).set_caching_options(False)
                tested = smoke_test(params=rollout_params, dataset=dataset, bundle=bundle).after(deployed)
                cluster.light(tested).set_caching_options(False)
                released = release(params=rollout_params, dataset=dataset, passed=tested.outputs["Output"])
                cluster.light(released, hours=12).set_caching_options(False)

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
        gate_margin: str = "",
        gate_at_least: str = "",
        gate_at_most: str = "",
        service: str = "",
        namespace: str = "",
        shards: int = 1,
        nodes: int = 1,
        gpus: int = 0,
        gpu_type: str = "nvidia.com/gpu",
        overrides: list[str] = [],  # noqa: B006 (read by the compiler, changed by nobody)
    ) -> None:
        """Raw chest CTs to a searched, benchmarked, explained and served 3D classifier. No output is a diagnosis.

        Args:
            params: params.yaml, as JSON or YAML. Where a parameter below is empty, what it says here holds.
            profile: demo or paper.
            data_source: phantom, nifti, slices or dicom.
            data_root: Folder of the raw scans, in /data.
            data_labels: CSV of path, label, patient; without it, class folders are expected.
            data_revision: Expected digest of the raw scans, as `configure` prints it; empty takes them as they are.
            baselines: Human-designed networks to compare with.
            variants: Search spaces, S and L.
            search_size_mib: Budget of the searched network, MiB of float32 parameters.
            search_steps: Joint iterations of the search.
            training_budget: compute (equal multiply-accumulates for every model) or epochs.
            training_tmacs: Training budget per model, 10^12 multiply-accumulates.
            training_epochs: Training budget per model, passes.
            gate_margin: Validation accuracy less that of the deployed model, else of the best baseline, at least.
            gate_at_least: Figures of the winner on the test split and their lower bounds, as JSON.
            gate_at_most: The same with upper bounds.
            service: InferenceService that gets the bundle; null deploys nothing.
            namespace: Of the service; that of the run where params says null.
            shards: Pods that share the reading of the raw scans.
            nodes: Above 1, search and training run as Kubeflow TrainJobs of so many pods.
            gpus: Per node.
            gpu_type: What the nodes offer, e.g. nvidia.com/gpu.
            overrides: key.sub=value, for anything else in params.
        """
        told = cluster.telling(report(run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER)).set_caching_options(False)
        with dsl.ExitHandler(told, name="run"):
            configured = configure(
                params=params,
                overrides=overrides,
                baselines=baselines,
                variants=variants,
                profile=profile,
                data_source=data_source,
                data_root=data_root,
                data_labels=data_labels,
                data_revision=data_revision,
                search_size_mib=search_size_mib,
                search_steps=search_steps,
                training_budget=training_budget,
                training_tmacs=training_tmacs,
                training_epochs=training_epochs,
                gate_margin=gate_margin,
                gate_at_least=gate_at_least,
                gate_at_most=gate_at_most,
                service=service,
                namespace=namespace,
                shards=shards,
                nodes=nodes,
                gpus=gpus,
                gpu_type=gpu_type,
            )
            outputs = cluster.configuring(configured).outputs
            parts = ("ingest", "training", "search", "whole", "rollout")
            inner(
                **{f"{part}_params": outputs[part] for part in parts},
                **{name: outputs[name] for name in outputs if name not in parts},
                gpu_type=gpu_type,
                baselines=baselines,
                variants=variants,
            )

    return covidnet3d


def write(cluster: Cluster, out: Path) -> None:
    """Compile to YAML; byte for byte the same for the same sources."""
    compiler.Compiler().compile(build(cluster), str(out))
