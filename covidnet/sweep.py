"""Searches under several budgets: how accurate a network of the space can be at what size.

    covidnet search --sweep 2.5,3,4

Each size is searched and retrained by the stages themselves, in folders of its own, so that a stopped sweep goes on where it
was and any point of it can be exported like another result.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covidnet import folder, stages
from covidnet.config import Config, parse
from covidnet.errors import UsageError

Row = dict[str, Any]


def sweep(config: Config, dataset: Path, out: Path, variant: str, sizes: Sequence[float]) -> list[Row]:
    """Search and retrain at each size; writes ``front.json`` and ``front.png`` into ``out``.

    Args:
        config: all but the budget in MiB is taken as it is.
        dataset: packed.
        out: gets ``<size>/search/<variant>`` and ``<size>/retrain/<variant>``.
        variant: search space.
        sizes: budgets in MiB.

    Returns:
        a row per size, the smallest first: ``budget_mib``, ``size_mib``, ``macs``, ``validation_accuracy``; beside it the
        accuracies inside the supernet, of the result (``supernet_accuracy``) and of random architectures
        (``random_accuracy_mean``); ``front``: nothing as small is as accurate.
    """
    rows: list[Row] = []
    for size in sorted(set(sizes)):
        within = parse(config.model_dump() | _budget(config, size))
        searched, trained = (out / f"{size:g}" / stage / variant for stage in ("search", "retrain"))
        found = stages.search(within, dataset, searched, variant)
        row: Row = {"budget_mib": size} | {key: found[key] for key in ("supernet_accuracy", "random_accuracy_mean")}
        result = stages.retrain(within, dataset, searched, trained, variant)
        rows.append(row | {key: result[key] for key in ("size_mib", "macs", "validation_accuracy")})
    for row in rows:
        smaller = [other for other in rows if other is not row and other["size_mib"] <= row["size_mib"]]
        row["front"] = all(other["validation_accuracy"] < row["validation_accuracy"] for other in smaller)
    scans = _validation_scans(dataset)
    folder.write_json(out / "front.json", {"variant": variant, "validation_scans": scans, "rows": rows})
    draw(rows, variant, scans, out / "front.png")
    return rows


def sizes(text: str) -> list[float]:
    """The numbers of ``2,3,4``.

    Raises:
        UsageError: it isn't a list of positive numbers.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(size > 0 for size in found):
        raise UsageError(f"--sweep {text}: expected sizes in MiB, separated by commas, e.g. 2.5,3,4")
    return found


def draw(rows: Sequence[Row], variant: str, scans: int, out: Path) -> None:
    """Accuracy over size; points that nothing smaller equals are joined."""
    from matplotlib.figure import Figure
    from scipy.stats import binomtest

    figure = Figure(figsize=(6, 3.8), layout="constrained", dpi=120)
    axes = figure.subplots()
    for row in rows:
        accuracy = row["validation_accuracy"]
        ends = binomtest(round(accuracy * scans), scans).proportion_ci(method="wilson")
        color = "#0072b2" if row["front"] else "#999999"
        axes.plot([row["size_mib"]] * 2, [100 * ends.low, 100 * ends.high], color=color, linewidth=1.2)
        axes.plot(row["size_mib"], 100 * accuracy, "o", color=color, markersize=7)
        axes.annotate(
            f"budget {row['budget_mib']:g}", (row["size_mib"], 100 * accuracy), xytext=(8, 4), textcoords="offset points",
            fontsize=8, color=color,
        )  # fmt: skip
    front = [row for row in rows if row["front"]]
    x, y = [row["size_mib"] for row in front], [100 * row["validation_accuracy"] for row in front]
    axes.step(x, y, where="post", color="#0072b2", alpha=0.5)
    axes.margins(x=0.15, y=0.12)
    axes.set_xlabel("MiB of float32 parameters")
    axes.set_ylabel("accuracy on validation, %")
    axes.set_title(f"Found in space {variant} and retrained; bars are 95 % intervals of {scans} scans", fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


def _budget(config: Config, size_mib: float) -> dict[str, Any]:
    """The search section with that budget."""
    tree = config.search.model_dump()
    return {"search": {**tree, "budget": {**tree["budget"], "size_mib": size_mib}}}


def _validation_scans(dataset: Path) -> int:
    from covidnet.data import packed

    return len(packed.read(dataset).split("validation"))
