"""The report of an evaluation: one HTML file that needs nothing else, the answer first.

`render` turns plain results into the page; a section whose results are absent is left out. Layout and prose live in
`templates/report.html.j2`, charts in `plots` and `architecture`, published figures in `paper`.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from covidnet.errors import CovidnetError
from covidnet.evaluation import plots
from covidnet.evaluation.architecture import draw_architecture
from covidnet.evaluation.bootstrap import Interval, PairedResult
from covidnet.evaluation.metrics import Predictions
from covidnet.evaluation.paper import PROTOCOL, PUBLISHED, Published

COLUMNS = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "f1": "F1",
    "roc_auc": "ROC AUC",
}
_DASH = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One trained model of the benchmark.

    Args:
        name: as the reader knows it, e.g. ``CovidNet3D-S``; unique.
        baseline: human-designed, as against found by search.
        size_mib: float32 parameters.
        parameters: number of them.
        macs: multiply-accumulates of one scan.
        scans_seen: training budget, in scans.
        epochs: the same in passes over the training split.
        validation: figures of `metrics.classification` on the validation split.
        test: the same on the test split.
        intervals: of ``test``; None where withheld.
        predictions: of the test split.
        temperature: fitted on validation.
    """

    name: str
    baseline: bool
    size_mib: float
    parameters: int
    macs: float
    scans_seen: int
    epochs: float
    validation: Mapping[str, float]
    test: Mapping[str, float]
    intervals: Mapping[str, Interval | None]
    predictions: Predictions
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Test accuracy of the winner less that of another candidate.

    Args:
        other: the candidate's name.
        difference: from `bootstrap.paired_difference`.
        p_adjusted: `bootstrap.holm` over all comparisons.
        mcnemar_p: `bootstrap.mcnemar`.
    """

    other: str
    difference: PairedResult
    p_adjusted: float
    mcnemar_p: float


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One architecture search.

    Args:
        genotype: ``variant``, ``widths``, ``strides``, ``blocks`` (operation names per layer).
        history: rows as `plots.search_curves` takes them.
        chance: validation accuracy of always naming the largest class.
        found_accuracy: of the result inside the supernet, on validation.
        random_accuracies: of random architectures under the same budget, likewise.
        warmup_accuracy: mean of random architectures before the architecture moved, likewise.
    """

    genotype: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    chance: float
    found_accuracy: float
    random_accuracies: Sequence[float]
    warmup_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A class activation map: a PNG from `cam.montage`, its caption, and whether the prediction was right."""

    title: str
    png: bytes
    correct: bool


@dataclass(frozen=True, slots=True)
class Localisation:
    """How well maps point at annotated lesions, beside a map that always points at the centre.

    Args:
        scans: test scans with a lesion mask.
        hit_rate: mean of `cam.lesion_hit`.
        centre_hit_rate: the same of `cam.centre_prior`, with the same tolerance.
        energy_inside: mean of `cam.energy_inside`.
        centre_energy_inside: the same of `cam.centre_prior`.
        grid: ``(d, h, w)`` of the map.
    """

    scans: int
    hit_rate: float
    centre_hit_rate: float
    energy_inside: float
    centre_energy_inside: float
    grid: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Dataset:
    """What the models learned from and were judged on.

    Args:
        facts: anything worth a line, e.g. ``{"source": "phantom", "volume": "16 x 64 x 64 voxels"}``.
        scans: split to class to number of scans.
        patients: likewise.
        rejected: reason to number of scans left out.
    """

    facts: Mapping[str, str]
    scans: Mapping[str, Mapping[str, int]]
    patients: Mapping[str, Mapping[str, int]]
    rejected: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReportContext:
    """Everything that the report shows. All but the candidates, the winner and the reason may be absent.

    Args:
        candidates: in the order of the table.
        winner: name of one of them.
        reason: why it won; continues "It was chosen because ...".
        positive: class of the binary figures.
        confidence: of all intervals.
        comparisons: of the winner with the others.
        searches: one per variant.
        provenance: plain values are shown in a table, nested ones as JSON.
        warnings: what the reader must know before believing a figure.
    """

    candidates: Sequence[Candidate]
    winner: str
    reason: str
    positive: str
    confidence: float = 0.95
    comparisons: Sequence[Comparison] = ()
    searches: Sequence[SearchResult] = ()
    examples: Sequence[Example] = ()
    localisation: Localisation | None = None
    dataset: Dataset | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


def render(context: ReportContext) -> str:
    """The report as one self-contained HTML page: no script, no external request.

    Raises:
        CovidnetError: the winner, or the other side of a comparison, is not among the candidates.
    """
    winner = _candidate(context, context.winner)
    environment = Environment(
        loader=PackageLoader("covidnet.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, points=_points, p_value=_p_value, count=_count, interval=_interval)
    page = environment.get_template("report.html.j2").render(
        context=context,
        winner=winner,
        rival=_rival(context),
        verdict=_verdict(context),
        columns=COLUMNS,
        charts=_charts(context, winner),
        searches=[_search(search, index) for index, search in enumerate(context.searches)],
        examples=_examples(context.examples),
        published=_published(),
        protocol=PROTOCOL,
        nested={k: json.dumps(v, indent=2, default=str) for k, v in context.provenance.items() if _is_nested(v)},
        flat={k: v for k, v in context.provenance.items() if not _is_nested(v)},
    )
    return page + "\n"


def _candidate(context: ReportContext, name: str) -> Candidate:
    for candidate in context.candidates:
        if candidate.name == name:
            return candidate
    names = ", ".join(candidate.name for candidate in context.candidates)
    raise CovidnetError(f"report: {name!r} is not among the candidates; expected one of: {names}")


def _rival(context: ReportContext) -> Comparison | None:
    """The comparison that the answer quotes: with the best baseline by validation; test figures choose nothing."""
    others = {c.other: _candidate(context, c.other) for c in context.comparisons}
    pool = [c for c in context.comparisons if others[c.other].baseline] or list(context.comparisons)
    return max(pool, key=lambda c: others[c.other].validation["accuracy"], default=None)


def _verdict(context: ReportContext) -> str:
    """The comparison in plain words; "more accurate" needs both the interval and the adjusted p-value to say so."""
    rival = _rival(context)
    if rival is None:
        return ""
    low, high, alpha = rival.difference.low, rival.difference.high, 1 - context.confidence
    if not math.isfinite(rival.p_adjusted):
        text = f"There are too few patients to say whether its accuracy differs from that of {rival.other}."
    elif low <= 0 <= high:
        text = f"These scans show no difference in accuracy between it and {rival.other}."
    elif rival.p_adjusted >= alpha:
        text = f"Its distance from {rival.other} is no longer significant once all comparisons are accounted for."
    else:
        word = "more" if low > 0 else "less"
        text = f"It is {word} accurate than {rival.other}, by more than the choice of patients explains."
    ratio = _candidate(context, rival.other).size_mib / _candidate(context, context.winner).size_mib
    return f"{text} It is {ratio:.1f} times smaller." if ratio > 1.05 else text


def _charts(context: ReportContext, winner: Candidate) -> dict[str, Markup]:
    predictions = winner.predictions
    probabilities = predictions.probabilities(winner.temperature)
    charts = {
        "confusion": plots.confusion_matrix(predictions, "confusion matrix"),
        "reliability": plots.reliability(predictions, winner.temperature, "reliability"),
    }
    one_class = {}
    for k, label in enumerate(predictions.classes):
        target = (predictions.labels == k).astype(int)
        if 0 < target.sum() < len(target):
            one_class[_with_auc(label, winner.test[f"roc_auc_{label}"])] = (target, probabilities[:, k])
    if one_class and len(predictions.classes) > 2:
        charts["roc_classes"] = plots.roc(one_class, "ROC curves by class")
    index = predictions.classes.index(context.positive)
    target = (predictions.labels == index).astype(int)
    if 0 < target.sum() < len(target):
        key = f"roc_auc_{context.positive}"
        models = {
            _with_auc(c.name, c.test[key]): (target, c.predictions.probabilities(c.temperature)[:, index])
            for c in context.candidates
        }
        charts["roc_models"] = plots.roc(models, "ROC curves by model")
    return {name: Markup(svg) for name, svg in charts.items()}


def _with_auc(name: str, auc: float) -> str:
    return f"{name}  {auc:.3f}"


def _search(search: SearchResult, index: int) -> dict[str, Any]:
    beaten = sum(search.found_accuracy > accuracy for accuracy in search.random_accuracies)
    comparison = plots.supernet_comparison(
        search.found_accuracy, search.random_accuracies, search.chance, search.warmup_accuracy, f"supernet {index}"
    )
    return {
        "variant": search.genotype["variant"],
        "architecture": Markup(draw_architecture(dict(search.genotype))),
        "curves": {title: Markup(svg) for title, svg in plots.search_curves(search.history, f"search {index}").items()},
        "comparison": Markup(comparison),
        "beaten": beaten,
        "result": search,
    }


def _examples(examples: Sequence[Example]) -> dict[str, list[tuple[str, str]]]:
    groups: dict[str, list[tuple[str, str]]] = {"Right": [], "Wrong": []}
    for example in examples:
        encoded = base64.b64encode(example.png).decode()
        groups["Right" if example.correct else "Wrong"].append((example.title, f"data:image/png;base64,{encoded}"))
    return {name: group for name, group in groups.items() if group}


def _published() -> dict[str, list[Published]]:
    """The paper's tables by dataset, in their order."""
    datasets = dict.fromkeys(row.dataset for row in PUBLISHED)
    return {dataset: [row for row in PUBLISHED if row.dataset == dataset] for dataset in datasets}


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _percent(value: float, digits: int = 1) -> str:
    """A share as percent, without the sign."""
    return f"{100 * value:.{digits}f}" if math.isfinite(value) else _DASH


def _points(value: float) -> str:
    """A signed difference in percentage points."""
    return f"{100 * value:+.1f}".replace("-", _MINUS) if math.isfinite(value) else _DASH


def _interval(interval: Interval | None) -> str:
    return f"{_percent(interval[0])}{_DASH}{_percent(interval[1])}" if interval else "no interval"


def _p_value(value: float) -> str:
    if not math.isfinite(value):
        return _DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _count(value: float) -> str:
    """Large numbers with a unit: 2.9 M, 0.12 G."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
