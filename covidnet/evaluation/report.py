"""The report of an evaluation: one HTML file that needs nothing else, the answer first.

`render` turns plain results into the page; a section whose results are absent is left out. Layout and prose live in
`templates/report.html.j2`, charts in `plots` and `architecture`, published figures in `paper`.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from covidnet.errors import CovidnetError
from covidnet.evaluation import calibration, plots
from covidnet.evaluation.architecture import draw_architecture
from covidnet.evaluation.bootstrap import Interval, patients_needed
from covidnet.evaluation.context import Candidate, Comparison, Example, ReportContext, SearchResult
from covidnet.evaluation.decisions import risk_coverage
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
        needed=_needed(context, winner),
        counts=_counts(context, winner),
        risk=risk_coverage(winner.predictions.labels, winner.predictions.probabilities(winner.temperature)),
        brier=[
            calibration.brier(winner.predictions.labels, winner.predictions.probabilities(t))
            for t in (1.0, winner.temperature)
        ],
        poor=[
            one.name
            for one in context.localisations
            if one.hit_rate <= max(one.centre_hit_rate, one.random_hit_rate, one.swapped_hit_rate or 0.0)
        ],
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


def summary(context: ReportContext) -> str:
    """The answer and the table of models as Markdown, for places that show no page."""
    winner = _candidate(context, context.winner)
    rows = [
        f"| {c.name} | {c.size_mib:.2f} | "
        + " | ".join(f"{_percent(c.test[key])} ({_interval(c.intervals[key])})" for key in COLUMNS)
        + " |"
        for c in context.candidates
    ]
    return "\n".join(
        [
            f"**{winner.name}** classified {_percent(winner.test['accuracy'])} % of {len(winner.predictions)} test scans "
            f"correctly ({context.confidence:.0%} interval {_interval(winner.intervals['accuracy'])}). {_verdict(context)}",
            "",
            "| model | MiB | " + " | ".join(COLUMNS.values()) + " |",
            "|---" * (len(COLUMNS) + 2) + "|",
            *rows,
            "",
            "Research use only, no output is a diagnosis.",
            "",
        ]
    )


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


def _needed(context: ReportContext, winner: Candidate) -> str:
    """A note on sample size where the interval of the comparison is wider than what it is about."""
    rival = _rival(context)
    patients = len(set(winner.predictions.patients))
    count = patients_needed(rival.difference, patients) if rival else None
    if rival is None or count is None:
        return ""
    gap = _points(abs(rival.difference.difference)).lstrip("+")
    return (
        f"The interval of the comparison is wider than the difference: to tell {gap} percentage points from none, about "
        f"{count:,} test patients like these would be needed instead of {patients:,}."
    )


def _counts(context: ReportContext, winner: Candidate) -> dict[str, int]:
    """Scans with the positive class and without, and how many of each were called positive."""
    index = winner.predictions.classes.index(context.positive)
    ill, called = winner.predictions.labels == index, winner.predictions.predicted == index
    pairs = {"ill": ill, "well": ~ill, "found": ill & called, "false": ~ill & called}
    return {name: int(members.sum()) for name, members in pairs.items()}


def _charts(context: ReportContext, winner: Candidate) -> dict[str, Markup]:
    predictions = winner.predictions
    probabilities = predictions.probabilities(winner.temperature)
    charts = {
        "confusion": plots.confusion_matrix(predictions, "confusion matrix"),
        "reliability": plots.reliability(predictions, winner.temperature, "reliability"),
        "risk": plots.risk_coverage(risk_coverage(predictions.labels, probabilities), "risk and coverage"),
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
        charts["decision"] = plots.decision(target, probabilities[:, index], winner.name, "decision curve")
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
    """Large numbers with a unit: 2.9 M, 1.2 G."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
