"""The paper's search and retraining at CC-CCII's size on a GPU: minutes, scans per second, and how far from the roof.

    make bench-gpu                                             # two minutes
    python -m benchmarks.gpu --device cpu --scans 64 --steps 2 --search-size 8,32,32 --retrain-size 8,32,32 --batch 4

Profile `paper` on as many generated scans as CC-CCII has for training: the S space with weights of its own for every
candidate, searched at 16x64x64, and random networks of it retrained at 32x128x128. Some steps of each kind are timed; the
minutes are those of the whole profile at that rate. The roof is the slower of two: the arithmetic at the rate of a large
bfloat16 matrix product, and each activation read and written once per layer, three times over for a training step, at the
rate of a large copy.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.machine import facts
from covidnet.config import Config, load
from covidnet.models import cost
from covidnet.models.blocks import Classifier
from covidnet.models.covidnet3d import SPACES, Genotype
from covidnet.models.supernet import Supernet
from covidnet.search import dnas, result
from covidnet.search.budget import Costing
from covidnet.training import graphs
from covidnet.training.loop import as_input, layout, parameter_groups, place, update
from covidnet.training.volumes import Volumes, generator

CC_CCII = 3195  # training scans
VARIANT, NETWORKS = "S", 4
Size = tuple[int, int, int]
RESULTS = Path(__file__).parent / "results" / "gpu.json"


def main() -> None:
    """Measure, print and write the result beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scans", type=int, default=CC_CCII)
    parser.add_argument("--steps", type=int, default=40, help="timed, of each kind")
    parser.add_argument("--batch", type=int, help="default: that of the profile")
    parser.add_argument("--search-size", type=_size, default=(16, 64, 64))
    parser.add_argument("--retrain-size", type=_size, default=(32, 128, 128))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: torch finds no GPU; --device cpu shows that the benchmark runs")
    overrides = ["profile=paper", f"search.size={list(options.search_size)}"]
    overrides += [f"{part}.batch={options.batch}" for part in ("search", "training") if options.batch]
    config = load("params.yaml", overrides)
    roof = {"tflops": peak_flops(device) / 1e12, "gb_per_s": copy_rate(device) / 1e9}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    found: dict[str, Any] = {**facts(), "device": name, "scans": options.scans, "roof": roof}
    found["search"] = searched(config, options.scans, options.steps, device, roof)
    found["retrain"] = retrained(config, options.scans, options.steps, options.retrain_size, device, roof)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def searched(config: Config, scans: int, steps: int, device: torch.device, roof: dict[str, float]) -> dict[str, Any]:
    """Both updates of the search."""
    settings, space = config.search, SPACES[VARIANT]
    half = generated(scans // 2, settings.size, device)
    costing = Costing(cost.table(space, settings.size, config.channels, 3), settings.budget)
    torch.manual_seed(0)
    supernet = place(Supernet(space, config.channels, 3, settings.share_weights), device)
    run = dnas.Run(supernet, costing, half, half, settings, config.augment, 0)

    def update_weights(temperature: float) -> object:
        return run._update_weights(run._drawn(temperature))

    def once(update_once: Callable[[float], object]) -> Callable[[], None]:
        def step() -> None:
            update_once(1.0)
            run.step += 1

        return step

    reset_peak(device)
    with graphs.recorded(run.parts(), True):
        weights_s, alpha_s = (seconds(once(kind), steps, device) for kind in (update_weights, run._update_alpha))
    network = drawn(costing, supernet, config, settings.size, 0)
    floor = floor_s(network, settings.size, config.channels, settings.batch, roof)
    total = settings.warmup_steps * weights_s + settings.steps * (weights_s + alpha_s)
    return {
        "minutes": round(total / 60, 2),
        "weights": {"scans_per_s": round(settings.batch / weights_s, 1), "share_of_roof": round(floor / weights_s, 3)},
        # activations and their gradients, no weight gradients: two thirds of the arithmetic
        "alpha": {
            "scans_per_s": round(settings.batch / alpha_s, 1),
            "share_of_roof": round(floor * 2 / 3 / alpha_s, 3),
        },
        "peak_gib": peak_gib(device),
    }


def retrained(
    config: Config, scans: int, steps: int, size: Size, device: torch.device, roof: dict[str, float]
) -> dict[str, Any]:
    """Training steps of random networks."""
    settings, space = config.training, SPACES[VARIANT]
    train = generated(scans, size, device)
    costing = Costing(cost.table(space, size, config.channels, 3), config.search.budget)
    supernet = Supernet(space, config.channels, 3)
    reset_peak(device)
    times, floors = [], []
    for seed in range(NETWORKS):
        network = place(drawn(costing, supernet, config, size, seed), device).train()
        optimizer = torch.optim.AdamW(parameter_groups(network, settings.weight_decay), lr=settings.lr, fused=True)
        at = 0

        def step(network: Classifier = network, optimizer: torch.optim.Optimizer = optimizer) -> None:
            nonlocal at
            volumes, labels = train.batch(at, settings.batch, 0)
            volume = layout(volumes[:, None].float() / 127.5 - 1)
            update(network, volume, labels, optimizer, settings, generator(0, at))
            at += 1

        sample = as_input(network, train.scans[: settings.batch])
        with graphs.recorded([([network.features], sample)] if sample.is_cuda else [], True):
            times.append(seconds(step, max(1, steps // NETWORKS), device))
        floors.append(floor_s(network, size, config.channels, settings.batch, roof))
    step_s = sum(times) / len(times)
    return {
        "minutes": round(settings.epochs * scans / settings.batch * step_s / 60, 2),
        "scans_per_s": round(settings.batch / step_s, 1),
        "share_of_roof": round(sum(floors) / sum(times), 3),
        "peak_gib": peak_gib(device),
    }


def generated(scans: int, size: Size, device: torch.device) -> Volumes:
    """Noise of that number and shape on the device, three classes in turn."""
    volumes = torch.randint(0, 256, (scans, *size), dtype=torch.uint8, device=device)
    return Volumes(volumes, (torch.arange(scans) % 3).to(device))


def drawn(costing: Costing, supernet: Supernet, config: Config, size: Size, seed: int) -> Classifier:
    """A random network of the space."""
    (path,) = result.random_paths(costing, 1, generator(seed))
    return supernet.extract(Genotype.of_path(path, supernet.space, VARIANT, ("a", "b", "c"), supernet.channels, size))


def seconds(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Median seconds of a step, after three that allocate and choose kernels."""
    times = []
    for number in range(steps + 3):
        synchronise(device)
        started = time.perf_counter()
        step()
        synchronise(device)
        if number >= 3:
            times.append(time.perf_counter() - started)
    return median(times)


def floor_s(network: nn.Module, size: Size, channels: int, batch: int, roof: dict[str, float]) -> float:
    """Least seconds of a training step: three times a forward pass, by arithmetic or by traffic in bfloat16."""
    moved = 0

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal moved
        moved += 2 * (inputs[0].numel() + output.numel())

    hooks = [m.register_forward_hook(add) for m in network.modules() if isinstance(m, nn.Conv3d)]
    counted = cost.count(network, size, channels)  # on the meta device, with the hooks
    for hook in hooks:
        hook.remove()
    arithmetic = 2 * counted.macs / (roof["tflops"] * 1e12)
    return 3 * batch * max(arithmetic, moved / (roof["gb_per_s"] * 1e9))


def peak_flops(device: torch.device, side: int = 4096) -> float:
    """Operations per second of a large matrix product, bfloat16 on a GPU."""
    side, kind = (side, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a = torch.randn(side, side, device=device, dtype=kind)
    return 2 * side**3 / seconds(lambda: a @ a, 10, device)


def copy_rate(device: torch.device) -> float:
    """Bytes per second of a large copy, read and written."""
    a = torch.empty(2**28 if device.type == "cuda" else 2**25, dtype=torch.float32, device=device)
    b = torch.empty_like(a)
    return 2 * 4 * a.numel() / seconds(lambda: b.copy_(a), 10, device)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None


def _size(text: str) -> Size:
    depth, height, width = (int(side) for side in text.split(","))
    return depth, height, width


if __name__ == "__main__":
    main()
