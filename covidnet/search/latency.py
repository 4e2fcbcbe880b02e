"""Milliseconds of every operation in every block, measured on the device and engine that will serve the network.

Multiply-accumulates mis-rank operations: engines compute depthwise and 1x1x1 convolutions at very different rates. A table
of measured times is a linear cost like size, so a search can aim at it (`search.budget.latency_ms`).

    covidnet latency --variant S --out latency.json                    # on the machine that will serve
    covidnet search -S search.budget.latency_ms=3 -S search.latency_table=latency.json

An operation is measured where it will run: in a whole network whose other layers hold nothing but identity, less the network
of identities alone, the two taking turns.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from covidnet import folder
from covidnet.errors import UsageError
from covidnet.inference import engine, selection
from covidnet.models.covidnet3d import Space
from covidnet.progress import progress, tell
from covidnet.search.untrained import network

Size = tuple[int, int, int]
Run = Callable[[], object]
ROUNDS = 15  # least runs of each network, after three that warm up
SECONDS = 0.3  # of running per network
BUSY = 0.2  # mean deviation from the sum of the parts that an undisturbed machine stays below


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Measured times of a space's parts.

    Args:
        space: name of the space.
        strides: of its layers.
        size: ``(D, H, W)`` of the input.
        engine: name of the engine and its device, e.g. ``openvino (cpu)``.
        processor: what it ran on.
        threads: CPU threads; 0 is all that the process might use.
        fixed_ms: of the network of identities: stem, calibration convolutions and head.
        blocks_ms: ``(blocks, operations)``.
        check: expected and measured milliseconds of random architectures, ``[[expected, measured], ...]``.
    """

    space: str
    strides: tuple[int, ...]
    size: Size
    engine: str
    processor: str
    threads: int
    fixed_ms: float
    blocks_ms: tuple[tuple[float, ...], ...]
    check: tuple[tuple[float, float], ...] = ()

    @property
    def table(self) -> Tensor:
        """``(blocks, operations)`` in milliseconds."""
        return torch.tensor(self.blocks_ms, dtype=torch.float64)

    def of(self, path: Sequence[int]) -> float:
        """Expected milliseconds of one architecture."""
        return self.fixed_ms + sum(row[i] for row, i in zip(self.blocks_ms, path, strict=True))

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path, space: Space) -> "LatencyTable":
        """Read what `save` wrote.

        Raises:
            UsageError: it isn't a table, or one of another space.
        """
        try:
            tree = json.loads(path.read_text())
            rows = tuple(tuple(float(ms) for ms in row) for row in tree["blocks_ms"])
            lists = {"size": tuple(tree["size"]), "strides": tuple(tree["strides"]), "blocks_ms": rows}
            found = cls(**{**tree, **lists, "check": tuple((a, b) for a, b in tree["check"])})
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path} is not a table of latencies; `covidnet latency` writes one ({error})") from None
        shape, expected = torch.Size([len(rows), len(rows[0])]), (len(space.block_widths), len(space.operations))
        if found.space != space.name or shape != expected:
            raise UsageError(
                f"{path}: expected latencies of space {space.name}, {expected[0]} blocks and {expected[1]} operations, "
                f"found {found.space}, {shape[0]} and {shape[1]}; measure again with `covidnet latency`"
            )
        if found.strides != space.strides:
            wanted, measured = (",".join(map(str, strides)) for strides in (space.strides, found.strides))
            raise UsageError(
                f"{path} was measured with strides {measured}, search.strides are {wanted}; measure again with "
                f"`covidnet latency --strides {wanted}`"
            )
        return found


def cached(
    space: Space, size: Size, channels: int, device: engine.Device, name: engine.Name, threads: int = 0
) -> LatencyTable:
    """As `measure`; what this machine measured before is read from the user's cache folder."""
    facts = [repr(space), size, channels, device, name, threads]
    facts += [selection.processor(), len(os.sched_getaffinity(0)), selection.versions()]
    path = engine.cache_file("latency", facts)
    if path and path.is_file():
        return LatencyTable.load(path, space)
    table = measure(space, size, channels, device, name, threads)
    if deviation(table.check) > BUSY:
        tell("Latencies were measured on a busy machine and are not kept; for better ones stop what else runs here")
    elif path:
        with folder.replacing(path, f".{os.getpid()}") as partial:
            table.save(partial)
    return table


def measure(
    space: Space,
    size: Size,
    channels: int,
    device: engine.Device,
    name: engine.Name,
    threads: int = 0,
    *,
    checked: int = 4,
) -> LatencyTable:
    """Time every operation in every layer on this machine, which takes a minute or two.

    Args:
        space: S or L, with the strides that the network will have.
        size: ``(D, H, W)`` of the input.
        channels: input channels.
        device: ``cpu`` or ``gpu``.
        name: of the engine; ``auto`` is that which `covidnet.inference.engine` would take.
        threads: CPU threads; 0 takes all.
        checked: random architectures whose measured time is set beside the sum of their parts.

    Raises:
        UsageError: the engine or the device isn't here.
    """
    identity = next((i for i, operation in enumerate(space.operations) if not operation.kernel), None)
    if identity is None:
        raise UsageError(f"space {space.name} has no identity, beside which its operations could be measured")
    nothing = (identity,) * len(space.block_widths)
    wanted = [
        (layer, i)
        for layer in range(len(space.blocks))
        for i, operation in enumerate(space.operations)
        if operation.kernel
    ]
    blocks_ms = np.zeros((len(space.blocks), len(space.operations)))
    draw = np.random.default_rng(0)
    random = [tuple(int(i) for i in draw.integers(0, len(space.operations), len(nothing))) for _ in range(checked)]
    empties: list[float] = []
    with tempfile.TemporaryDirectory() as work, progress(f"time {space.name}", len(wanted) + checked) as advance:

        def load(path: Sequence[int]) -> engine.Engine:
            file = Path(work) / "network.onnx"
            onnx.save(network(space, path, size, channels), file)
            return engine.open_model(file, device, name, threads)

        empty = load(nothing)

        def extra_ms(path: Sequence[int]) -> float:
            """Milliseconds that an architecture takes beyond that of identities."""
            runs = {"empty": _run(empty), "other": _run(load(path))}
            times = selection.take_turns(runs, warm_up=3, rounds=ROUNDS, seconds=SECONDS * len(runs))
            empties.extend(times["empty"])
            advance()
            return min(times["other"]) - min(times["empty"])  # the fastest run is the one that nothing disturbed

        for layer, i in wanted:
            full = space.layers(list(nothing))
            full[layer] = [i] * space.blocks[layer]
            more = extra_ms([choice for choices in full for choice in choices])
            blocks_ms[layer, i] = max(0.0, more / space.blocks[layer])
        extras = [extra_ms(path) for path in random]
    fixed_ms = min(empties)
    rows = tuple(
        tuple(round(float(ms), 5) for ms in row)
        for row, count in zip(blocks_ms, space.blocks, strict=True)
        for _ in range(count)
    )
    table = LatencyTable(
        space.name, space.strides, size, empty.name, selection.processor(), threads, round(fixed_ms, 5), rows
    )  # fmt: skip
    pairs = tuple(
        (round(table.of(path), 4), round(fixed_ms + extra, 4)) for path, extra in zip(random, extras, strict=True)
    )
    return replace(table, check=pairs)


def deviation(check: Iterable[tuple[float, float]]) -> float:
    """Mean relative difference of measured to expected milliseconds."""
    return float(np.mean([abs(measured / expected - 1) for expected, measured in check]))


def _run(loaded: engine.Engine) -> Run:
    scan = np.zeros((1, 1, *loaded.size), np.uint8)
    return lambda: loaded.run(scan)
