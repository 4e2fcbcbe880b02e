"""Cost of one search iteration, in units of one training step of the average sampled network.

    python -m benchmarks.search_step                     # S at 16x64x64, batches of 16 and 32; 10 minutes on two cores
    python -m benchmarks.search_step --size 8,32,32 --batches 4 --rounds 2

Five things take turns, so that a busy moment of the machine hits all of them alike:

* training step: one update of a free-standing network, another uniformly drawn one each round, on an augmented batch;
* search iteration: both updates, weights and architecture, on the path of that network, the second with half a batch;
* whole batch: both on as many scans;
* straightforward: that in contiguous memory, with autograd's own depthwise gradients, and with the weight gradients
  that the architecture update has no need of;
* all paths: first-order DARTS, both updates through the weighted sum of all operations of every block.

A batch of 16 is the demo's, one of 32 the paper's. Memory is what the process takes at most beyond what it holds once the
weights are there: activations, gradients and the optimiser's state, the mean over steps of different paths; each kind in a
process of its own, whose allocator gives back at once what is freed. On a GPU it is what PyTorch's allocator says.
"""

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import facts
from covidnet.config import Augment, Budget, Search, Training
from covidnet.data.augment import augment
from covidnet.models import cost
from covidnet.models.covidnet3d import SPACES, Genotype
from covidnet.models.supernet import Supernet
from covidnet.search import dnas, result
from covidnet.search.budget import BlockChoice, Costing
from covidnet.training.loop import layout, parameter_groups, place, update
from covidnet.training.volumes import Volumes, generator

Ready = Callable[[], object]
KINDS = ("training step", "search iteration", "whole batch", "straightforward", "all paths")
PAIRED = KINDS[:3]  # those that a ratio is taken of: each timed step follows one of its own kind
SCANS = 64
MEMORY_STEPS = dict.fromkeys(KINDS, 8) | {"straightforward": 4, "all paths": 2}  # all paths are alike
RESULTS = Path(__file__).parent / "results" / "search_step.json"


def main() -> None:
    """Print the table and write it beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="S", choices=sorted(SPACES))
    parser.add_argument("--size", default="16,64,64", help="D,H,W")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--rounds", type=int, default=24, help="a network and a path of each kind per round")
    parser.add_argument("--separate", action="store_true", help="candidates with weights of their own, as in the paper")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("variant", "size", "separate", "threads")}
    found = {**facts(), **settings, "device": device().type, "load": round(os.getloadavg()[0], 2), "batches": {}}
    for batch in options.batches:
        found["batches"][str(batch)] = one = compare({**settings, "batch": batch}, options.rounds)
        print(
            f"batch {batch}, {settings}, {device().type}\n\n{'':>18} | {'ms':>8} {'ratio':>6} | {'MiB':>7} {'ratio':>6}"
        )
        for kind, row in one["rows"].items():
            print(
                f"{kind:>18} | {row['ms']:8.1f} {row['time_ratio']:5.2f}x | {row['mib']:7.1f} {row['memory_ratio']:5.2f}x"
            )
        print(f"\nstraightforward / ours, whole batches: {one['straightforward_to_ours']}x\n", flush=True)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")


def compare(settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Time and memory of every kind, each also in units of the training step's."""
    times = measure(settings, rounds)
    rows = {}
    for kind in KINDS:
        # every block of memory is mapped by itself, so that what is held is what is in use, not a torn heap
        with patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536"), get_context("spawn").Pool(1) as pool:
            peak = pool.apply(peak_mib, (kind, settings))  # a process that has computed nothing yet
        rows[kind] = {"ms": round(1e3 * float(np.mean(times[kind])), 1), "mib": round(peak, 1)}
    base = rows["training step"]
    for row in rows.values():
        row |= {"time_ratio": round(row["ms"] / base["ms"], 2), "memory_ratio": round(row["mib"] / base["mib"], 2)}
    ratio = round(rows["straightforward"]["ms"] / rows["whole batch"]["ms"], 2)
    return {"rows": rows, "straightforward_to_ours": ratio}


def measure(settings: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind and round; the two that take longest in every fourth."""
    torch.set_num_threads(settings["threads"])
    steps = {kind: prepare(kind, settings) for kind in KINDS}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for kind, step in steps.items():
        timed(kind, step, 0)  # the first one allocates
    for number in range(1, rounds + 1):
        for kind, step in steps.items():
            if kind in PAIRED or number % 4 == 1:
                times[kind].append(timed(kind, step, number))
    return times


def timed(kind: str, step: Callable[[int], Ready], number: int) -> float:
    """Seconds of one step; what is prepared for it is not in them."""
    with straightforward() if kind == "straightforward" else nothing():
        ready = step(number)
        synchronise()
        started = time.perf_counter()
        ready()
        synchronise()
        return time.perf_counter() - started


def prepare(kind: str, settings: dict[str, Any], warm: bool = True) -> Callable[[int], Ready]:
    """From the number of a step to that step, ready to run; ``warm``: the same has been done once, so that what is timed
    finds its memory as it does in a run, and not as another kind of step left it."""
    size = tuple(int(side) for side in settings["size"].split(","))
    space, batch = SPACES[settings["variant"]], settings["batch"]
    scans = torch.randint(0, 256, (SCANS, *size), dtype=torch.uint8, generator=generator(0)).to(device())
    half = Volumes(scans, (torch.arange(SCANS) % 3).to(device()))
    costing = Costing(cost.table(space, size, 1, 3), Budget(size_mib=None))
    still = Augment(flip=False, rotate_deg=0, scale=0, shift=0, intensity=0, noise=0)
    torch.manual_seed(0)
    supernet = Supernet(space, 1, 3, not settings["separate"])

    def path_of(number: int) -> BlockChoice:
        return result.random_paths(costing, 1, generator(1, number))[0]

    if kind == "training step":

        def fresh(number: int) -> Ready:
            genotype = Genotype.of_path(path_of(number), space, settings["variant"], ("a", "b", "c"), 1, size)
            network = place(supernet.extract(genotype), device()).train()
            optimizer = torch.optim.AdamW(parameter_groups(network, 1e-3), lr=1e-3, fused=True)

            def once() -> float:
                drawn, labels = half.batch(number, batch, 0)
                volume = augment(drawn, still, generator(1, number))
                return update(network, volume, labels, optimizer, Training(), generator(2, number))

            if warm:
                once()
            return once

        return fresh
    supernet = supernet.to(device()) if kind == "straightforward" else place(supernet, device())
    search = Search(
        size=size, batch=batch, alpha_batch=batch // 2 if kind == "search iteration" else None,
        warmup_steps=0, steps=10**6, alpha_lr=1e-9, budget=Budget(size_mib=None),
    )  # fmt: skip
    run = dnas.Run(supernet, costing, half, half, search, still, 0)
    if kind == "all paths":
        run._loss = all_paths(run)  # type: ignore[method-assign]

    def at(number: int) -> Ready:
        path = torch.tensor(path_of(number))

        def once() -> object:
            run.scores = 1e3 * F.one_hot(path, costing.operations)  # which draw that path, whatever the noise
            return run.iterate()

        if warm and kind in PAIRED:
            once()
        return once

    return at


def all_paths(run: dnas.Run) -> Callable[..., tuple[Tensor, Tensor]]:
    """The loss of first-order DARTS in place of that of one path: every operation, weighted by its probability."""

    def loss(
        scans: Tensor, labels: Tensor, stream: int, path: Sequence[int], gates: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x = layout(scans[:, None].float() / 127.5 - 1)
        net, position = run.supernet, 0
        weights = torch.softmax(run.alpha, dim=1)
        x = net.stem(x)
        for calibration, count in zip(net.calibrations, net.space.blocks, strict=True):
            x = calibration(x)
            for _ in range(count):
                block, p = net.blocks[position], weights[position]
                x = sum(p[i] * block(x, operation, None) for i, operation in enumerate(net.space.operations))
                position += 1
        logits = net.head(net.last(x).mean(dim=(2, 3, 4)))
        return F.cross_entropy(logits, labels), (logits.argmax(dim=1) == labels).float().mean()

    return loss


@contextmanager
def straightforward() -> Iterator[None]:
    """Contiguous memory, PyTorch's own depthwise gradients, weights not frozen in the architecture update."""

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv3d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])

    with (
        patch("covidnet.models.supernet.depthwise_conv3d", plain),
        patch("covidnet.search.dnas.layout", Tensor.contiguous),
        patch.object(nn.Parameter, "requires_grad_", lambda parameter, requires_grad=True: parameter),
    ):
        yield


@contextmanager
def nothing() -> Iterator[None]:
    """The project's own implementation."""
    yield


def peak_mib(kind: str, settings: dict[str, Any]) -> float:
    """MiB that a step takes at most beyond the weights, on average over steps of different paths.

    A training step is the second one of its network, an iteration one of a search that is under way: with the optimiser's
    state of all that was drawn so far. All runs twice, for libraries compile kernels for new shapes and keep them.
    """
    torch.set_num_threads(settings["threads"])
    with straightforward() if kind == "straightforward" else nothing():
        peaks_mib(kind, settings)
        return float(np.mean(peaks_mib(kind, settings)))


def peaks_mib(kind: str, settings: dict[str, Any]) -> list[float]:
    """Of each step, see `peak_mib`."""
    prepared = prepare(kind, settings, warm=False)
    ready = prepared(0)
    weights = _held_mib()
    peaks = []
    for number in range(MEMORY_STEPS[kind]):
        del ready  # and the last network
        ready = prepared(number)
        if kind == "training step":
            weights = _held_mib()
            ready()
        peaks.append(_peak_mib_of(ready) - weights)
    return peaks


def _held_mib() -> float:
    gc.collect()  # what came before may lie in cycles
    return torch.cuda.memory_allocated() / 2**20 if device().type == "cuda" else _status_mib("VmRSS")


def _peak_mib_of(ready: Ready) -> float:
    """MiB that are held at most during a call."""
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        ready()
        return torch.cuda.max_memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    ready()
    return _status_mib("VmHWM")


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
