"""`python -m pipelines compile | run | submit`: the same graph as YAML, on this machine, on a cluster."""

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from covidnet import config
from covidnet.errors import CovidnetError, UsageError
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
AtLeast = Annotated[
    list[str] | None,
    typer.Option(metavar="FIGURE=BOUND", help="Gate: lower bound of a figure on the test split; default accuracy=0.5."),
]
AtMost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIGURE=BOUND", help="Gate: upper bound of a figure on the test split; default ece_after=0.15."
    ),
]
Margin = Annotated[float, typer.Option(help="Gate: validation accuracy less that of the best baseline, at least.")]
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
    at_least: AtLeast = None,
    at_most: AtMost = None,
    margin: Margin = covidnet3d.GATE_MARGIN,
    out: Annotated[Path, typer.Option(help="Folder for what the stages write.")] = Path("results/kubeflow"),
    runner: Annotated[Runner, typer.Option(help="Each task is a process of this Python.")] = Runner.subprocess,
) -> None:
    """Run the whole graph on this machine."""
    print(local.run({**_configuration(params, overrides), **_gate(at_least, at_most, margin)}, out.absolute()))
    print(f"Results: {out}")


@app.command()
def submit(
    host: Annotated[str, typer.Option(help="Pipelines API, e.g. https://kubeflow.example/pipeline.")],
    params: Params = Path("params.yaml"),
    overrides: Override = None,
    at_least: AtLeast = None,
    at_most: AtMost = None,
    margin: Margin = covidnet3d.GATE_MARGIN,
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
    arguments = {
        **_configuration(params, overrides),
        **_gate(at_least, at_most, margin),
        "data_revision": data_revision,
    }
    server, cluster = Server(host, namespace, token), Cluster(gpus, gpu_resource, data_claim)
    run_name = run_name or f"covidnet3d {time.strftime('%Y-%m-%d %H:%M:%S')}"
    run_id = server.submit(cluster, arguments, experiment, run_name)
    if wait:
        server.wait(run_id)


def _configuration(params: Path, overrides: list[str] | None) -> dict[str, Any]:
    """Arguments of the pipeline, checked here first: a wrong one starts nothing."""
    chosen = config.load(params, overrides)
    if not chosen.baselines or not chosen.search.variants:
        raise UsageError("params: expected at least one of baselines and one of search.variants to compare; found none")
    return {
        "params": params.read_text(),
        "overrides": overrides or [],
        "baselines": list(chosen.baselines),
        "variants": list(chosen.search.variants),
    }


def _gate(at_least: list[str] | None, at_most: list[str] | None, margin: float) -> dict[str, Any]:
    return {
        "gate_at_least": _bounds("--at-least", at_least) if at_least else covidnet3d.GATE_AT_LEAST,
        "gate_at_most": _bounds("--at-most", at_most) if at_most else covidnet3d.GATE_AT_MOST,
        "gate_margin": margin,
    }


def _bounds(option: str, texts: list[str]) -> dict[str, float]:
    bounds = {}
    for text in texts:
        name, _, bound = text.partition("=")
        try:
            bounds[name] = float(bound)
        except ValueError:
            raise UsageError(f"{option} {text}: expected FIGURE=BOUND, e.g. accuracy=0.8") from None
    return bounds


def main() -> None:
    """Entry point: faults a user can mend end with a message, never with a traceback."""
    try:
        app()
    except CovidnetError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
