"""What is aimed at, in one place: every figure that has a target, and where a benchmark's result holds it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Headline:
    """One row: what is measured against what, the figure in the result of a benchmark, and what is aimed at."""

    source: str
    text: str
    value: Callable[[Tree], float]
    most: float | None = None
    least: float | None = None

    def met(self, value: float) -> bool:
        """Does a figure reach the target?"""
        return not (self.most is not None and value > self.most) and not (self.least is not None and value < self.least)

    @property
    def target(self) -> str:
        """``≤ 1.1``, ``≥ 7`` or ``0.93 to 0.97``."""
        if self.most is not None and self.least is not None:
            return f"{self.least:g} to {self.most:g}"
        return f"≤ {self.most:g}" if self.most is not None else f"≥ {self.least:g}"


def _at(*keys: str | int) -> Callable[[Tree], float]:
    """The number under these keys; of a mapping, the sum of its numbers."""

    def value(tree: Any) -> float:
        for key in keys:
            tree = tree[key]
        return float(sum(tree.values()) if isinstance(tree, dict) else tree)

    return value


def _iteration(batch: str, figure: str) -> Callable[[Tree], float]:
    return _at("batches", batch, "rows", "search iteration", figure)


def _engines(worst: Callable[..., float], *keys: str, networks: str = "SL") -> Callable[[Tree], float]:
    return lambda tree: worst(_at(*keys)(row) for row in tree["rows"] if row["network"] in networks)


def _hits(tree: Tree, name: str) -> list[float]:
    """A figure of the maps, for each class with lesions."""
    return [row[name] for row in tree["localisation"] if row["name"].startswith("Class activation map,")]


HEADLINES = (
    Headline("search_step", "search iteration / training step, time, batch 16", _iteration("16", "time_ratio"), 1.35),
    Headline("search_step", "the same, memory, batch 16", _iteration("16", "memory_ratio"), 1.2),
    Headline("search_step", "search iteration / training step, time, batch 32", _iteration("32", "time_ratio"), 1.35),
    Headline("search_step", "the same, memory, batch 32", _iteration("32", "memory_ratio"), 1.2),
    Headline(
        "search_step",
        "straightforward iteration / ours, whole batches of 16",
        _at("batches", "16", "straightforward_to_ours"),
        least=6,
    ),
    Headline("loader", "MONAI from files / packed epoch", _at("ratios", "files / packed"), least=1000),
    Headline("loader", "MONAI CacheDataset / packed, both augmented", _at("ratios", "cache / packed, augmented"), least=5),
    Headline("loader", "share of a search step", _at("ratios", "share of a search step"), 0.05),
    Headline("ingest", "DICOM series / bare decoder", _at("ratios", "one worker / bare decoder"), 1.3),
    Headline("ingest", "one worker / two", _at("ratios", "one worker / two"), least=1.7),
    Headline("ingest", "peak memory of a process, GB", _at("ratios", "peak memory, GB"), 1.5),
    Headline("ingest", "memory, many / few scans", _at("ratios", "memory, many / few scans"), 1.1),
    Headline("ingest", "time per scan, many / few", _at("ratios", "time per scan, many / few"), 1.1),
    Headline("audit", "manifest of 100,000 scans, s", _at("ratios", "manifest, s"), 60),
    Headline("audit", "the same, GB", _at("ratios", "manifest, GB"), 4),
    Headline("audit", "exponent of the near-duplicate search", _at("ratios", "exponent of near duplicates"), 1.8),
    Headline("audit", "share of planted copies found", _at("ratios", "copies found"), 1, 0.95),
    Headline("audit", "other scans called copies, per scan", _at("ratios", "others found, per scan"), 0.001),
    Headline("intervals", "coverage of 95 % intervals, clustered by patient", _at("coverage_by_patient"), 0.97, 0.93),
    Headline("intervals", "paired test on equal models, share below 0.05", _at("false_positives"), 0.06, 0.04),
    Headline("ood", "least AUROC over eight kinds of foreign scans",
             lambda tree: min(found["novelty"] for found in tree["auroc"].values()), least=0.95),
    Headline("ood", "false alarms on 3,000 fresh scans, off the stated rate",
             lambda tree: abs(tree["false_alarms"]["fresh phantoms"] - tree["stated_false_alarms"]), 0.01),
    Headline("ranking", "share of twenty random networks of its size that a found one beats, hard phantoms, mean of three",
             _at("beaten", "found"), least=0.9),
    Headline("evolution", "DNAS less `search.method=evolution` within 4 MiB, retrained accuracy",
             _at("difference", "accuracy"), least=0),
    Headline("cam", "lesion hit rate of the maps, worst class", lambda tree: min(_hits(tree, "hit_rate")), least=0.8),
    Headline("cam", "the same / that of pointing at the centre",
             lambda tree: min(_hits(tree, "hit_rate")) / max(_hits(tree, "centre_hit_rate")), least=2),
    Headline("cam", "cost of the maps / forward pass", _at("cost", "overhead"), 0.03),
    Headline("cam", "report of 1,000 scans beside inference, s", _at("report", "seconds"), 60),
    Headline("cam", "the same, MB", _at("report", "mb"), 8),
    Headline("engines", "default / best engine, one scan, worst of six", _engines(max, "default_to_best"), 1.1),
    Headline("engines", "plain ONNX Runtime / default, S, worst of three",
             _engines(min, "ratios", "ONNX Runtime", networks="S"), least=7),
    Headline("engines", "torch eager / default, S, worst of three",
             _engines(min, "ratios", "torch eager", networks="S"), least=2),
    Headline("gpu", "GPU: the paper's search at CC-CCII's size, minutes", _at("search", "minutes"), 10),
    Headline("depthwise_gpu", "GPU: best of PyTorch and cuDNN / our depthwise, kernel gradient, 32x128x128",
             _at("best_torch_to_ours", "32x128x128", "weight"), least=1),
    Headline("depthwise_gpu", "the same, forward pass", _at("best_torch_to_ours", "32x128x128", "forward"), least=1),
    Headline("depthwise_gpu", "the same, 16x64x64", _at("best_torch_to_ours", "16x64x64", "forward"), least=1),
    Headline("engines_gpu", "GPU: ONNX Runtime or TensorRT / best torch, worst row",
             lambda tree: max(row["ours_to_torch"] or float("inf") for row in tree["rows"]), 1.1),
    Headline("predict", "cold process to the end of the first answer, s", _at("cold", "median_s"), 2),
    Headline("predict", "100 NIfTI files: share of the slower of decoding and network",
             _at("many", "of_the_bound"), least=0.9),
    Headline("load", "gRPC call beyond the network's own time, p50, ms", _at("grpc_overhead_ms"), 5),
    Headline("load", "upload of a series of 133 slices to the answer, s", _at("upload_s"), 3),
    Headline("load", "share of decoding and preprocessing in that", _at("upload_share_of_reading"), least=0.8),
    Headline("load", "16 callers: errors", _at("errors"), 0),
    Headline("load", "16 callers: p99 / p50", _at("p99_to_p50"), 4),
    Headline("load", "16 callers: growth of memory", _at("memory_growth"), 0.05),
    Headline("load", "16 callers: share of the network's own throughput", _at("throughput_to_engine"), least=0.9),
    Headline("load", "the same, of the cores that the callers leave", _at("throughput_to_engine_beside_callers"), least=0.9),
    Headline("restarts", "requests lost in rolling restarts", _at("lost"), 0),
    Headline("fuzz_endpoint", "faults in 10,000 malformed requests", _at("faults"), 0),
    Headline("fuzz_readers", "faults in 10,000 damaged files", _at("faults"), 0),
    Headline("alerts", "alert rules seen firing", lambda tree: float(len(tree["alerts"])), least=16),
    Headline("overhead", "throughput lost to monitoring, %", _at("throughput_lost_percent", "value"), 1),
    Headline("pipeline", "Kubeflow graph here / `dvc repro`, more time", _at("added"), 0.1),
    Headline("coverage", "lines of the library that tests run", _at("packages", "covidnet", "share"), least=0.9),
    Headline("coverage", "lines of the endpoint that tests run", _at("packages", "serving", "share"), least=0.9),
    Headline("mutation", "planted mistakes that tests notice", _at("share"), least=0.8),
)  # fmt: skip


def judge(source: str, found: Tree) -> list[str]:
    """Print each figure of a benchmark beside its target; those that missed it, by their text."""
    missed = []
    for headline in (one for one in HEADLINES if one.source == source):
        value = headline.value(found)
        met = headline.met(value)
        missed += [] if met else [headline.text]
        print(f"{headline.text:<56} {value:>9.4g}   target {headline.target}{'' if met else '   MISSED'}")
    return missed
