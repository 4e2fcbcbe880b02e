"""`python -m pipelines compile | run | submit | schedule`: the same graph as YAML, on this machine, on a cluster."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from covidnet import config, tasks
from covidnet.cli.options import example
from covidnet.errors import CovidnetError, UsageError
from pipelines import covidnet3d, local, picture
from pipelines.cluster import Cluster
from pipelines.remote import Server

app = typer.Typer(
    help="The Kubeflow pipeline of covidnet3d. Research software: no output is a diagnosis.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _example(*lines: str) -> str:
    return example(*(f"python -m pipelines {line}" for line in lines))


Params = Annotated[Path, typer.Option("--params", help="Configuration file.")]
Override = Annotated[
    list[str] | None,
    typer.Option("-S", "--set", metavar="KEY=VALUE", help="Override a parameter, e.g. -S search.steps=200."),
]
DataClaim = Annotated[str | None, typer.Option(help="PersistentVolumeClaim with raw scans, mounted at /data.")]
WorkspaceClaim = Annotated[
    str | None, typer.Option(help="PersistentVolumeClaim for checkpoints, mounted at /workspace; --nodes needs one.")
]
KeySecret = Annotated[str | None, typer.Option(help="Secret whose entry `key` makes the pseudonyms of patients.")]
DataSecret = Annotated[
    str | None,
    typer.Option(help="Secret with AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...; data.revision on S3 needs one."),
]
Shards = Annotated[int, typer.Option(help="Pods that share the reading of the raw scans.")]
NodeSelector = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Label of the nodes that train.")]
Toleration = Annotated[list[str] | None, typer.Option(metavar="KEY", help="Taint of those nodes; adds nvidia.com/gpu.")]
Host = Annotated[str, typer.Option(help="Pipelines API, e.g. https://kubeflow.example/pipeline.")]
DataRevision = Annotated[str, typer.Option(help="Expected digest of the raw scans, as `configure` prints it.")]
Experiment = Annotated[str, typer.Option(help="Made if it isn't there.")]
Namespace = Annotated[str | None, typer.Option(help="Profile, in a multi-user Kubeflow.")]
ServiceAccount = Annotated[str | None, typer.Option(help="Of the pods, e.g. covidnet-pipeline of manifests/.")]
Token = Annotated[str | None, typer.Option(envvar="KF_PIPELINES_TOKEN", help="Bearer token.")]
Gpus = Annotated[int, typer.Option(help="Per node.")]
GpuType = Annotated[str, typer.Option(help="What the GPU nodes offer, e.g. nvidia.com/mig-1g.10gb.")]
Nodes = Annotated[int, typer.Option(help="Above 1, search and training run as TrainJobs of so many pods.")]


@app.command("compile", epilog=_example("compile --out covidnet3d.yaml --data-claim raw-scans"))
def compile_graph(
    out: Annotated[Path, typer.Option(help="YAML file to write.")] = Path(__file__).parent / "covidnet3d.yaml",
    data_claim: DataClaim = None,
    workspace_claim: WorkspaceClaim = None,
    key_secret: KeySecret = None,
    data_secret: DataSecret = None,
    node_selector: NodeSelector = None,
    toleration: Toleration = None,
    drawn: Annotated[Path | None, typer.Option("--picture", help="SVG file of the graph, to write as well.")] = None,
) -> None:
    """Write the graph as YAML, to upload in the Kubeflow UI. COVIDNET_IMAGE names the image of the tasks."""
    covidnet3d.write(_cluster(data_claim, workspace_claim, key_secret, data_secret, node_selector, toleration), out)
    print(f"Pipeline: {out}")
    if drawn is not None:
        stages = set(yaml.safe_load((Path(__file__).parent.parent / "dvc.yaml").read_text())["stages"])
        drawn.write_text(picture.draw(out, stages))
        print(f"Picture: {drawn}")


@app.command(epilog=_example("run -S search.steps=200 --out results/kubeflow", "run --runner docker"))
def run(
    params: Params = Path("params.yaml"),
    overrides: Override = None,
    out: Annotated[Path, typer.Option(help="Folder for what the stages write.")] = Path("results/kubeflow"),
    runner: Annotated[
        local.Runner, typer.Option(help="Each task is a process of this Python, or a container of COVIDNET_IMAGE.")
    ] = local.Runner.subprocess,
) -> None:
    """Run the whole graph on this machine, without deploying; a killed run goes on when it is started again."""
    arguments = _arguments(params, overrides)
    print(local.run(arguments, out.absolute(), runner, config.load(params, overrides).data))
    print(f"Results: {out}")


@app.command(epilog=_example("submit --host https://kubeflow.example/pipeline --namespace covidnet --gpus 1 --wait"))
def submit(
    host: Host,
    params: Params = Path("params.yaml"),
    overrides: Override = None,
    data_revision: DataRevision = "",
    experiment: Experiment = "covidnet3d",
    run_name: Annotated[str | None, typer.Option(help="Default: covidnet3d and the time.")] = None,
    namespace: Namespace = None,
    token: Token = None,
    service_account: ServiceAccount = None,
    shards: Shards = 1,
    nodes: Nodes = 1,
    gpus: Gpus = 0,
    gpu_type: GpuType = "nvidia.com/gpu",
    data_claim: DataClaim = None,
    workspace_claim: WorkspaceClaim = None,
    key_secret: KeySecret = None,
    data_secret: DataSecret = None,
    node_selector: NodeSelector = None,
    toleration: Toleration = None,
    cached: Annotated[bool, typer.Option(help="Take results of equal inputs from the cache.")] = True,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run; exit 1 if it fails.")] = False,
) -> None:
    """Start a run on a cluster and print its link."""
    arguments = {
        **_arguments(params, overrides),
        **_placed(shards, nodes, gpus, gpu_type, workspace_claim),
        "data_revision": data_revision,
    }
    server = Server(host, namespace, token, service_account)
    cluster = replace(
        _cluster(data_claim, workspace_claim, key_secret, data_secret, node_selector, toleration), cached=cached
    )
    run_name = run_name or f"covidnet3d {time.strftime('%Y-%m-%d %H:%M:%S')}"
    run_id = server.submit(cluster, arguments, experiment, run_name)
    if wait:
        server.wait(run_id)


@app.command(epilog=_example("schedule --host https://kubeflow.example/pipeline --cron '0 0 2 * * *'"))
def schedule(
    host: Host,
    cron: Annotated[str, typer.Option(help="Six fields, seconds first; default: every night at two.")] = "0 0 2 * * *",
    name: Annotated[str, typer.Option(help="Of the schedule; one of the same name is replaced.")] = "covidnet3d",
    params: Params = Path("params.yaml"),
    overrides: Override = None,
    experiment: Experiment = "covidnet3d",
    namespace: Namespace = None,
    token: Token = None,
    service_account: ServiceAccount = None,
    shards: Shards = 1,
    nodes: Nodes = 1,
    gpus: Gpus = 0,
    gpu_type: GpuType = "nvidia.com/gpu",
    data_claim: DataClaim = None,
    workspace_claim: WorkspaceClaim = None,
    key_secret: KeySecret = None,
    data_secret: DataSecret = None,
    node_selector: NodeSelector = None,
    toleration: Toleration = None,
) -> None:
    """Look again and again whether the raw scans changed, and retrain when they did."""
    arguments = {**_arguments(params, overrides), **_placed(shards, nodes, gpus, gpu_type, workspace_claim)}
    server, cluster = (
        Server(host, namespace, token, service_account),
        _cluster(data_claim, workspace_claim, key_secret, data_secret, node_selector, toleration),
    )
    print(f"Schedule {name}: {server.schedule(cluster, arguments, experiment, name, cron)}")


def _arguments(params: Path, overrides: list[str] | None) -> dict[str, Any]:
    """Arguments of the pipeline, checked here first: a wrong one starts nothing."""
    chosen = config.load(params, overrides)
    text, models = params.read_text(), {"baselines": list(chosen.baselines), "variants": list(chosen.search.variants)}
    tasks.choose(text, {}, overrides or [], **models)
    return {"params": text, "overrides": overrides or [], **models}


def _placed(shards: int, nodes: int, gpus: int, gpu_type: str, workspace_claim: str | None) -> dict[str, Any]:
    tasks.shards(shards)
    tasks.placement(nodes, gpus, gpu_type, shared=workspace_claim is not None)
    return {"shards": shards, "nodes": nodes, "gpus": gpus, "gpu_type": gpu_type}


def _cluster(
    data_claim: str | None,
    workspace_claim: str | None,
    key_secret: str | None,
    data_secret: str | None,
    node_selector: list[str] | None,
    toleration: list[str] | None,
) -> Cluster:
    for label in node_selector or []:
        if not all(label.partition("=")):
            raise UsageError(f"--node-selector {label}: expected KEY=VALUE, e.g. accelerator=a100")
    tolerations = ("nvidia.com/gpu", *(toleration or []))
    return Cluster(data_claim, workspace_claim, key_secret, data_secret, tuple(node_selector or []), tolerations)


def main() -> None:
    """Entry point: faults a user can mend end with a message, never with a traceback."""
    try:
        app()
    except CovidnetError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
