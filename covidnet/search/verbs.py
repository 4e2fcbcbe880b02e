"""`covidnet latency`: how long the operations of a search space take on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer

from covidnet.errors import UsageError


def latency(
    variant: Annotated[str, typer.Option(help="S or L.")] = "S",
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("latency.json"),
    size: Annotated[str, typer.Option("--input", metavar="D,H,W", help="Size of the volumes.")] = "16,64,64",
    channels: Annotated[int, typer.Option(help="Input channels, 1 or 3.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or gpu.")] = "cpu",
    engine: Annotated[str, typer.Option(help="auto, openvino, onnxruntime or tensorrt.")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads of the network; 0: all that this process may use.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Time every operation in every layer of a search space, on the machine that will serve. Minutes.

    A search with this table keeps to a limit: -S search.latency_table=latency.json -S search.budget.latency_ms=3.
    """
    from covidnet.models.covidnet3d import SPACES
    from covidnet.search import latency as module

    if variant not in SPACES:
        raise UsageError(f"--variant {variant}: unknown; the search spaces are {', '.join(SPACES)}")
    parts = size.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--input {size}: expected D,H,W, e.g. 16,64,64")
    depth, height, width = (int(part) for part in parts)
    table = module.measure(variant, (depth, height, width), channels, device, engine, threads)  # type: ignore[arg-type]
    table.save(out)
    deviation = module.deviation(table.check)
    if as_json:
        found = {"out": str(out), "engine": table.engine, "fixed_ms": table.fixed_ms, "deviation": deviation}
        print(json.dumps(found))
        return
    from rich.console import Console
    from rich.table import Table

    space = SPACES[variant]
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
