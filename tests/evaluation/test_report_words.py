"""Numbers and sentences of the report, by hand."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from test_report import candidate, compared, full, minimal

from covidnet.evaluation import report
from covidnet.evaluation.bootstrap import PairedResult
from covidnet.evaluation.context import Comparison, Example, ReportContext
from covidnet.evaluation.paper import PUBLISHED
from covidnet.evaluation.report import render, summary

DASH = "\N{EN DASH}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "< 0.001"), (0.00099, "< 0.001"), (0.001, "0.001"), (0.0494, "0.049"), (0.0994, "0.099"), (0.1, "0.10"),
        (0.456, "0.46"), (1.0, "1.00"), (math.nan, DASH),
    ],
)  # fmt: skip
def test_p_values_have_the_digits_that_matter(value: float, text: str) -> None:
    assert report._p_value(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(7, "7"), (999, "999"), (1000, "1 k"), (2900000, "2.9 M"), (1e6, "1 M"), (1.234e9, "1.23 G"), (0.5e9, "500 M")],
)
def test_large_numbers_have_a_unit(value: float, text: str) -> None:
    assert report._count(value) == text


def test_shares_are_percent_and_differences_have_their_sign() -> None:
    assert [report._percent(x) for x in (0.1234, 1.0, 0.0, math.nan)] == ["12.3", "100.0", "0.0", DASH]
    assert report._percent(0.95, 0) == "95"
    assert [report._points(x) for x in (0.0123, -0.05, math.nan)] == ["+1.2", "\N{MINUS SIGN}5.0", DASH]
    assert report._interval((0.1, 0.25)) == f"10.0{DASH}25.0"
    assert report._interval(None) == "no interval"


def verdict(context: ReportContext) -> str:
    """What follows the accuracy in the first sentence of the summary."""
    return summary(context).splitlines()[0].partition("). ")[2]


@pytest.mark.parametrize(
    ("low", "high", "p", "begins"),
    [
        (0.0, 0.2, 0.01, "These scans show no difference"),
        (-0.2, 0.0, 0.01, "These scans show no difference"),
        (0.01, 0.2, 0.06, "Its distance from DenseNet3D121 is no longer significant"),
        (0.01, 0.2, 0.049, "It is more accurate"),
        (-0.2, -0.01, 0.049, "It is less accurate"),
    ],
)
def test_a_difference_is_claimed_only_beyond_nought_and_below_the_level(
    low: float, high: float, p: float, begins: str
) -> None:
    assert verdict(compared(low, high, p)).startswith(begins)


def test_the_level_of_significance_is_that_of_the_intervals() -> None:
    assert verdict(replace(compared(0.01, 0.2, 0.06), confidence=0.9)).startswith("It is more accurate")
    assert verdict(replace(compared(0.01, 0.2, 0.03), confidence=0.99)).startswith("Its distance")
    assert verdict(replace(compared(0.01, 0.2, 0.25), confidence=0.75)).startswith("Its distance")


@pytest.mark.parametrize(("size_mib", "said"), [(3.5, False), (3.6, False), (3.7, True), (1.0, False)])
def test_a_smaller_size_is_worth_a_word_from_a_twentieth_on(size_mib: float, said: bool) -> None:
    context = compared(0.01, 0.2, 0.03)
    context = replace(context, candidates=[context.candidates[0], replace(context.candidates[1], size_mib=size_mib)])
    assert ("times smaller" in verdict(context)) == said


def test_without_a_baseline_the_best_of_the_other_networks_is_the_rival_and_alone_there_is_none() -> None:
    models = [
        candidate(name, False, 3.5, skill, seed) for seed, (name, skill) in enumerate({"S": 3, "L": 1, "M": 2}.items())
    ]
    comparisons = [Comparison(c.name, PairedResult(0.1, 0.05, 0.2, 0.01), 0.02, 0.03) for c in models[1:]]
    context = replace(minimal(), candidates=models, winner="S", comparisons=comparisons)
    assert verdict(context).startswith("It is more accurate than M")
    assert verdict(minimal()) == ""


def test_the_summary_has_the_answer_and_a_row_per_model() -> None:
    context = minimal()
    first = context.candidates[0]
    low, high = (100 * x for x in first.intervals["accuracy"] or (0, 0))
    lines = summary(context).splitlines()
    assert lines[0].startswith(
        f"**CovidNet3D-S** classified {100 * first.test['accuracy']:.1f} % of 90 test scans correctly"
    )
    assert f"(95% interval {low:.1f}{DASH}{high:.1f})" in lines[0]
    assert [line.count("|") for line in lines[2:6]] == [9, 9, 9, 9]  # name, size and six figures
    assert lines[4].startswith(
        f"| CovidNet3D-S | 3.50 | {100 * first.test['accuracy']:.1f} ({low:.1f}{DASH}{high:.1f}) | "
    )
    assert lines[5].startswith("| DenseNet3D121 | 43.06 |")
    assert "no output is a diagnosis" in lines[7]


def test_the_page_counts_scores_and_what_more_patients_would_tell() -> None:
    context = replace(
        full(),
        comparisons=[Comparison("DenseNet3D121", PairedResult(0.02, -0.02, 0.06, 0.3), 0.3, 0.3)],
        examples=[Example("seen", b"\x89PNG", correct=True)],
    )
    page, winner = render(context), context.candidates[0]
    ill, called = winner.predictions.labels == 0, winner.predictions.predicted == 0
    assert f"Of the 30 test scans with NCP it found {(ill & called).sum()}; of the 60 without, it took " in page
    assert f"it took {(~ill & called).sum()} for NCP" in page
    # half an interval of 4 points is twice the difference of 2: four times the 90 patients
    assert "to tell 2.0 percentage points from none, about 360 test patients like these" in page
    assert "needed instead of 90" in page
    truth = np.eye(3)[winner.predictions.labels]
    before, after = (((winner.predictions.probabilities(t) - truth) ** 2).sum(axis=1).mean() for t in (1.0, 1.3))
    assert f"Brier score {before:.3f} before, {after:.3f} after" in page
    assert "better than 2 of 2 random architectures" in page
    assert "<h3>Right</h3>" in page
    assert "<h3>Wrong</h3>" not in page
    assert "<tr><th>git_revision</th><td>abc</td></tr>" in page
    assert "<details><summary>versions</summary>" in page
    assert "ROC curves by class" in page
    assert "ROC curves by model" in page
    assert re.findall(r"<details(?: open)?><summary>([^<]*)", page)[:3] == ["CC-CCII", "MosMedData", "COVID-CTset"]


def test_two_classes_or_one_have_no_curves_by_class() -> None:
    pair = [candidate("S", False, 3.5, 2.5, 0, ("NCP", "Normal"))]
    two = render(ReportContext(pair, "S", "it is the only one", "NCP"))
    assert "ROC curves by class" not in two
    assert "ROC curves by model" in two
    assert "would be needed" not in two
    predictions = replace(pair[0].predictions, labels=np.zeros(90, int))
    one = render(ReportContext([replace(pair[0], predictions=predictions)], "S", "it is the only one", "NCP"))
    assert "ROC curves" not in one


def test_published_baselines_are_of_one_size_on_every_dataset_and_every_dataset_has_all_models() -> None:
    datasets = {row.dataset for row in PUBLISHED}
    for name in ("ResNet3D101", "DenseNet3D121", "MC3_18"):  # made by people, not for a dataset
        assert len({row.size_mb for row in PUBLISHED if row.model == name}) == 1
    models = {name: [row.model for row in PUBLISHED if row.dataset == name] for name in datasets}
    assert len({tuple(names) for names in models.values()}) == 1
