"""Verbs that make a model: models, baseline, search, latency, retrain, evaluate, export."""

import json
from pathlib import Path
from typing import Annotated

import typer

from covidnet.cli.options import Json, Out, Override, Params, app, configuration, example, say, size_of, strides_of
from covidnet.errors import UsageError


@app.command(epilog=example("covidnet models", "covidnet models --input 32,128,128 --channels 3 --json"))
def models(
    size: Annotated[
        str, typer.Option("--input", metavar="D,H,W", help="Input size for the multiply-accumulates.")
    ] = "16,64,64",
    channels: Annotated[int, typer.Option(help="Input channels, 1 or 3.")] = 1,
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 3,
    as_json: Json = False,
) -> None:
    """Every registered model with its size and cost."""
    from covidnet.models.catalogue import catalogue

    rows = catalogue(size_of(size), channels, classes)
    if as_json:
        print(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "parameters", "MiB", "GMACs")
    for row in rows:
        table.add_row(row["name"], f"{row['parameters']:,}", f"{row['size_mib']:.2f}", f"{row['macs'] / 1e9:.2f}")
    Console().print(table)


@app.command(epilog=example("covidnet baseline --model densenet3d121"))
def baseline(
    model: Annotated[str, typer.Option(help="resnet3d101, densenet3d121 or mc3_18.")],
    params: Params = None,
    overrides: Override = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train one of the paper's human-designed baselines."""
    from covidnet import stages

    config = configuration(params, overrides)
    target = out or stages.baseline_of(config, model)
    say(stages.baseline(config, stages.dataset_of(config), target, model), target, as_json)


@app.command(
    epilog=example(
        "covidnet search --variant S",
        "covidnet search --variant S -S search.budget.size_mib=3",
        "covidnet search --variant S -S search.method=evolution    # takes longer, at times finds better",
        "covidnet search --variant S --sweep 2.5,3,4    # accuracy over size, in results/sweep/S/front.png",
    )
)
def search(
    variant: Annotated[str, typer.Option(help="S or L.")] = "S",
    params: Params = None,
    overrides: Override = None,
    out: Out = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="MIB,...", help="Search and retrain at each of these sizes instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Differentiable architecture search on the training split."""
    from covidnet import stages

    config = configuration(params, overrides)
    if sweep is not None:
        from covidnet import sweep as module

        target = out or Path(config.results) / "sweep" / variant
        rows = module.sweep(config, stages.dataset_of(config), target, variant, module.sizes(sweep))
        accuracies = {f"{row['size_mib']:.2f} MiB": row["validation_accuracy"] for row in rows}
        say({"rows": rows} if as_json else accuracies, target, as_json)
        return
    target = out or stages.search_of(config, variant)
    say(stages.search(config, stages.dataset_of(config), target, variant), target, as_json)


@app.command(
    epilog=example(
        "covidnet latency --variant S", "covidnet latency --input 32,128,128 --engine onnxruntime --out l.json"
    )
)
def latency(
    variant: Annotated[str, typer.Option(help="S or L.")] = "S",
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("latency.json"),
    size: Annotated[str, typer.Option("--input", metavar="D,H,W", help="Size of the volumes.")] = "16,64,64",
    strides: Annotated[str, typer.Option(help="Of the six layers, as in search.strides.")] = "2,2,1,1,1,1",
    channels: Annotated[int, typer.Option(help="Input channels, 1 or 3.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or gpu.")] = "cpu",
    engine: Annotated[str, typer.Option(help="auto, openvino, onnxruntime or tensorrt.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads of the network; 0: all that this process may use.")] = 0,
    as_json: Json = False,
) -> None:
    """Time every operation in every layer of a search space, on the machine that will serve. Minutes.

    A search with this table keeps to a limit: -S search.latency_table=latency.json -S search.budget.latency_ms=3.
    """
    from covidnet.models.covidnet3d import SPACES, space_of
    from covidnet.search import latency as module

    if variant not in SPACES:
        raise UsageError(f"--variant {variant}: unknown; the search spaces are {', '.join(SPACES)}")
    space = space_of(variant, strides_of(strides))
    table = module.measure(space, size_of(size), channels, device, engine, threads)  # type: ignore[arg-type]
    table.save(out)
    deviation = module.deviation(table.check)
    if as_json:
        found = {"out": str(out), "engine": table.engine, "fixed_ms": table.fixed_ms, "deviation": deviation}
        print(json.dumps(found))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table("layer", "channels", *(operation.name for operation in space.operations if operation.kernel))
    for layer, rows in enumerate(space.layers(table.blocks_ms)):
        cells = [f"{ms:.3f}" for ms, operation in zip(rows[0], space.operations, strict=True) if operation.kernel]
        shown.add_row(str(layer + 1), str(space.widths[layer]), *cells)
    console = Console()
    console.print(f"{table.engine}, {table.processor}: ms of one block; all else {table.fixed_ms:.3f} ms")
    console.print(shown)
    console.print(f"Random architectures took {deviation:.0%} more or less than the sum of their parts.")
    if deviation > module.BUSY:
        console.print("That is a lot: the machine was busy. Measure again when it is not.")
    console.print(f"Results: {out}")


@app.command(epilog=example("covidnet retrain --variant S"))
def retrain(
    variant: Annotated[str, typer.Option(help="S or L.")] = "S",
    params: Params = None,
    overrides: Override = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train the found architecture from scratch."""
    from covidnet import stages

    config = configuration(params, overrides)
    target = out or stages.retrain_of(config, variant)
    result = stages.retrain(config, stages.dataset_of(config), stages.search_of(config, variant), target, variant)
    say(result, target, as_json)


@app.command(
    epilog=example(
        "covidnet evaluate",
        "covidnet evaluate -S evaluate.bootstrap=5000",
        "covidnet evaluate --bundle results/export/bundle --data other/dataset --split all",
        "covidnet evaluate --bundle results/export/bundle --slice-labels slices.csv",
    )
)
def evaluate(
    params: Params = None,
    overrides: Override = None,
    out: Out = None,
    as_json: Json = False,
    bundle: Annotated[
        list[Path] | None, typer.Option(help="External validation of a finished bundle; again for a matrix.")
    ] = None,
    data: Annotated[list[Path] | None, typer.Option(help="Packed dataset to validate it on; again for more.")] = None,
    split: Annotated[
        str, typer.Option(help="With --bundle: test, or all where the model has seen nothing of the data.")
    ] = "test",
    slice_labels: Annotated[
        Path | None,
        typer.Option(
            help="With --bundle: CSV of path,label,slice,infected; how its maps rank the slices of these scans."
        ),
    ] = None,
) -> None:
    """Choose the winner on validation, read the test split once, write the report. Or: a bundle on other data."""
    from covidnet import stages

    config = configuration(params, overrides)
    if slice_labels is not None:
        from covidnet.inference import slices

        if len(bundle or []) != 1 or data:
            raise UsageError("--slice-labels: expected one --bundle and no --data beside it")
        target = out or Path(config.results) / "slices"
        say(slices.report(bundle[0], slice_labels, target), target, as_json)  # type: ignore[index]
        return
    if bundle or data:
        from covidnet.inference.external import validate

        target = out or Path(config.results) / "external"
        result = validate(bundle or [], data or [], config.evaluate, target, split=split, seed=config.seed)
        say(result, target, as_json)
        return
    target = out or stages.evaluate_of(config)
    result = stages.evaluate(config, stages.dataset_of(config), stages.candidates_of(config), target)
    say(result, target, as_json)


@app.command(epilog=example("covidnet export", "covidnet export --out /tmp/winner --torchserve"))
def export(
    params: Params = None,
    overrides: Override = None,
    out: Out = None,
    torchserve: Annotated[
        bool, typer.Option("--torchserve", help="Also for TorchServe, into a folder beside, OUT-torchserve.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Export the winner as a verified bundle and check it against torch."""
    from covidnet import stages

    config = configuration(params, overrides)
    target = out or stages.export_of(config)
    result = stages.export(
        config, stages.dataset_of(config), stages.evaluate_of(config), stages.candidates_of(config), target
    )
    if torchserve:
        from covidnet.export import torchserve as archive

        folder = target.with_name(f"{target.name}-torchserve")
        result["torchserve"] = str(archive.write(target / "bundle", folder, _serving("export --torchserve")))
    say(result, target, as_json)


def _serving(verb: str) -> Path:
    """Folder of the package `serving`, which an installation from a wheel doesn't have."""
    from importlib.util import find_spec

    spec = find_spec("serving")
    if spec is None or spec.origin is None:
        raise UsageError(f"covidnet {verb} needs the package serving: run it in the repository")
    return Path(spec.origin).parent
