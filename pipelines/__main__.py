"""`python -m pipelines compile | run | submit`: the same graph as YAML, on this machine, on a cluster."""

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from covidnet import config
from covidnet.errors import CovidnetError
from pipelines import covidnet3d, local
from pipelines.cluster import Cluster
from pipelines.remote import Server

app = typer.Typer(
    help="The Kubeflow pipeline of covidnet3d. Research software: no output is a diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Params = Annotated[Path, typer.Option("--params", help="Configuration file.")]
Override = Annotated[
    list[str] | None,
    typer.Option("-S", "--set", metavar="KEY=VALUE", help="Override a parameter, e.g. -S search.steps=200."),
]
MinimumAccuracy = Annotated[float, typer.Option(min=0, max=1, help="Of the gate: the winner's, on the test split.")]
Gpus = Annotated[int, typer.Option(min=0, help="Per search, training and evaluation pod.")]
GpuResource = Annotated[str, typer.Option(help="What the GPU nodes offer, e.g. nvidia.com/gpu.")]
DataClaim = Annotated[str | None, typer.Option(help="PersistentVolumeClaim with raw scans, mounted at /data.")]


class Runner(StrEnum):
    """Ways to run on this machine."""

    subprocess = "subprocess"


@app.command("compile")
def compile_graph(
    out: Annotated[Path, typer.Option(help="YAML file to write.")] = Path(__file__).parent / "covidnet3d.yaml",
    gpus: Gpus = 0,
    gpu_resource: GpuResource = "nvidia.com/gpu",
    data_claim: DataClaim = None,
) -> None:
    """Write the graph as YAML, to upload in the Kubeflow UI. COVIDNET_IMAGE names the image of the tasks."""
    covidnet3d.write(Cluster(gpus, gpu_resource, data_claim), out)
    print(f"Pipeline: {out}")


@app.command()
def run(
    params: Params = Path("params.yaml"),
    overrides: Override = None,
    minimum_accuracy: MinimumAccuracy = 0.5,
    out: Annotated[Path, typer.Option(help="Folder for what the stages write.")] = Path("results/kubeflow"),
    runner: Annotated[Runner, typer.Option(help="Each task is a process of this Python.")] = Runner.subprocess,
) -> None:
    """Run the whole graph on this machine."""
    print(local.run(_arguments(params, overrides, minimum_accuracy), out.absolute()))
    print(f"Results: {out}")


@app.command()
def submit(
    host: Annotated[str, typer.Option(help="Pipelines API, e.g. https://kubeflow.example/pipeline.")],
    params: Params = Path("params.yaml"),
    overrides: Override = None,
    minimum_accuracy: MinimumAccuracy = 0.5,
    data_revision: Annotated[str, typer.Option(help="Any text that changes when the raw scans do.")] = "",
    experiment: Annotated[str, typer.Option(help="Made if it isn't there.")] = "covidnet3d",
    run_name: Annotated[str | None, typer.Option(help="Default: covidnet3d and the time.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Profile, in a multi-user Kubeflow.")] = None,
    token: Annotated[str | None, typer.Option(envvar="KF_PIPELINES_TOKEN", help="Bearer token.")] = None,
    gpus: Gpus = 0,
    gpu_resource: GpuResource = "nvidia.com/gpu",
    data_claim: DataClaim = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run; exit 1 if it fails.")] = False,
) -> None:
    """Start a run on a cluster and print its link."""
    arguments = {**_arguments(params, overrides, minimum_accuracy), "data_revision": data_revision}
    server, cluster = Server(host, namespace, token), Cluster(gpus, gpu_resource, data_claim)
    run_name = run_name or f"covidnet3d {time.strftime('%Y-%m-%d %H:%M:%S')}"
    run_id = server.submit(cluster, arguments, experiment, run_name)
    if wait:
        server.wait(run_id)


def _arguments(params: Path, overrides: list[str] | None, minimum_accuracy: float) -> dict[str, Any]:
    """Arguments of the pipeline, checked here first: a wrong one starts nothing."""
    chosen = config.load(params, overrides)
    return {
        "params": params.read_text(),
        "overrides": overrides or [],
        "baselines": list(chosen.baselines),
        "variants": list(chosen.search.variants),
        "gate_minimum_accuracy": minimum_accuracy,
    }


def main() -> None:
    """Entry point: faults a user can mend end with a message, never with a traceback."""
    try:
        app()
    except CovidnetError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
