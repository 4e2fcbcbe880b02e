"""The report is whole without the network, honest about doubt, and leaves out what it wasn't given."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from covidnet.errors import CovidnetError
from covidnet.evaluation import bootstrap, metrics, plots
from covidnet.evaluation.architecture import draw_architecture
from covidnet.evaluation.bootstrap import PairedResult
from covidnet.evaluation.context import (
    Candidate,
    Comparison,
    Dataset,
    Example,
    Localisation,
    ReportContext,
    SearchResult,
)
from covidnet.evaluation.metrics import Predictions
from covidnet.evaluation.paper import PUBLISHED
from covidnet.evaluation.report import render

CLASSES = ("NCP", "CP", "Normal")
GENOTYPE = {
    "variant": "S",
    "widths": [24, 40, 80, 96, 192, 320],
    "strides": [2, 2, 2, 1, 2, 1],
    "blocks": [["3x3_MBConv6", "Identity", "7x7_MBConv3", "5x5_MBConv4"]] * 5 + [["Identity"]],
}


class Outline(HTMLParser):
    """Headings, and everything that would be fetched from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.fetched: list[str] = []
        self._in_heading = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_heading = tag in {"h1", "h2"}
        values = dict(attrs)
        links = [values.get(name) or "" for name in ("src", "href", "xlink:href")]
        self.fetched += [link for link in links if link and not link.startswith(("data:", "#"))]
        self.fetched += [tag] if tag in {"script", "link", "iframe", "object"} else []

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings.append(data)
            self._in_heading = False


def candidate(
    name: str, baseline: bool, size_mib: float, skill: float, seed: int, classes: tuple[str, ...] = CLASSES
) -> Candidate:
    rng = np.random.default_rng(seed)
    labels = np.arange(90) % len(classes)
    logits = skill * np.eye(len(classes))[labels] + rng.normal(size=(90, len(classes)))
    ids = tuple(f"scan{i}" for i in range(90))
    p = Predictions(ids, tuple(f"patient{i}" for i in range(90)), labels, logits, classes)
    figures = metrics.classification(labels, p.probabilities(), classes, "NCP")
    found = bootstrap.intervals(p, "NCP", resamples=200)
    parameters = int(size_mib * 2**18)
    return Candidate(name, baseline, size_mib, parameters, 1e9, 1000, 10.0, figures, figures, found.values, p, 1.3)


def minimal() -> ReportContext:
    models = [candidate("CovidNet3D-S", False, 3.5, 2.5, 0), candidate("DenseNet3D121", True, 43.06, 1.5, 1)]
    return ReportContext(models, "CovidNet3D-S", "it is best on validation", "NCP")


def compared(low: float, high: float, p: float) -> ReportContext:
    difference = PairedResult((low + high) / 2, low, high, p)
    return replace(minimal(), comparisons=[Comparison("DenseNet3D121", difference, p, p)])


def search(found: float, random: list[float]) -> SearchResult:
    history = [
        {"step": i, "entropy": 2.0, "temperature": 1.0, "weight_loss": 1.0, "alpha_loss": 1.0 if i > 5 else None,
         "expected_size_mib": 4.0}
        for i in range(12)
    ]  # fmt: skip
    return SearchResult(GENOTYPE, history, 0.34, found, random, 0.6)


def full() -> ReportContext:
    counts = {"train": {"NCP": 10, "CP": 11, "Normal": 12}, "test": {"NCP": 1, "CP": 2, "Normal": 3}}
    return replace(
        compared(0.01, 0.2, 0.03),
        searches=[search(0.8, [0.7, 0.75])],
        examples=[Example("NCP taken for CP (0.55)", b"\x89PNG", correct=False)],
        localisations=[Localisation(20, 0.6, 0.3, 0.3, 0.2, 0.1, (1, 4, 4))],
        dataset=Dataset({"source": "phantom"}, counts, counts, {"too few slices": 2}),
        provenance={"git_revision": "abc", "versions": {"numpy": "2.0"}},
        warnings=["synthetic scans"],
    )


def test_full_report_needs_nothing_from_elsewhere() -> None:
    page = render(full())
    assert Outline(page).fetched == []
    assert not re.search(r"url\((?!#)|@import", page)


def test_answer_comes_first() -> None:
    context = full()
    accuracy = 100 * context.candidates[0].test["accuracy"]
    first = Outline(render(context)).headings[0]
    assert first == f"CovidNet3D-S classified {accuracy:.1f}% of the test scans correctly"


def test_sections_without_results_are_left_out() -> None:
    few, all_ = Outline(render(minimal())).headings[1:], Outline(render(full())).headings[1:]
    assert few == ["Where CovidNet3D-S is right and wrong", "Limits", "All models"]
    assert all_ == [
        "Where CovidNet3D-S is right and wrong", "What it looked at", "Limits",  # a clinician may stop here
        "All models", "How the architecture was found", "Data", "How to reproduce this",
    ]  # fmt: skip


def test_every_report_says_that_it_is_no_diagnosis() -> None:
    assert render(minimal()).count("diagnosis") >= 2


@pytest.mark.parametrize(
    ("low", "high", "p", "sentence"),
    [
        (0.01, 0.20, 0.03, "It is more accurate than DenseNet3D121"),
        (-0.20, -0.01, 0.03, "It is less accurate than DenseNet3D121"),
        (-0.02, 0.10, 0.30, "show no difference in accuracy between it and DenseNet3D121"),
        (0.01, 0.20, 0.09, "no longer significant once all comparisons are accounted for"),
        (float("nan"), float("nan"), float("nan"), "too few patients to say whether its accuracy differs"),
    ],
)
def test_verdict_claims_no_more_than_the_test_does(low: float, high: float, p: float, sentence: str) -> None:
    page = render(compared(low, high, p))
    assert sentence in page
    assert "12.3 times smaller" in page  # 43.06 / 3.5


def test_rival_is_the_best_baseline_on_validation_and_never_a_searched_network() -> None:
    models = [
        candidate("CovidNet3D-S", False, 3.5, 2.5, 0),
        candidate("CovidNet3D-L", False, 12.0, 4.0, 1),
        candidate("MC3_18", True, 43.84, 0.5, 2),
        candidate("DenseNet3D121", True, 43.06, 2.0, 3),
    ]
    comparisons = [Comparison(c.name, PairedResult(0.1, 0.05, 0.2, 0.01), 0.02, 0.03) for c in models[1:]]
    page = render(replace(minimal(), candidates=models, comparisons=comparisons))
    assert "It is more accurate than DenseNet3D121" in page


def test_search_that_beats_half_or_less_of_the_random_networks_says_so() -> None:
    sentence = "The search did no better than drawing at random."
    assert sentence not in render(replace(minimal(), searches=[search(0.8, [0.7, 0.7, 0.9])]))
    assert sentence in render(replace(minimal(), searches=[search(0.8, [0.7, 0.9])]))


@pytest.mark.parametrize(
    ("centre", "anywhere", "other", "said"),
    [
        (0.3, 0.1, 0.1, True),
        (0.1, 0.4, 0.1, True),
        (0.1, 0.2, 0.3, True),
        (0.1, 0.2, 0.2, False),
        (0.1, 0.2, None, False),
    ],
)
def test_map_no_better_than_one_that_knows_nothing_of_the_scan_says_so(
    centre: float, anywhere: float, other: float | None, said: bool
) -> None:
    found = Localisation(20, 0.3, centre, anywhere, 0.2, 0.1, (1, 2, 2), swapped_hit_rate=other)
    page = render(replace(minimal(), localisations=[found]))
    assert ("Class activation map: no better than pointing at the centre, anywhere" in page) == said


def test_withheld_intervals_and_undefined_figures_are_named() -> None:
    context = minimal()
    first = context.candidates[0]
    broken = replace(first, test={**first.test, "precision": float("nan")}, intervals=dict.fromkeys(first.intervals))
    page = render(replace(context, candidates=[broken, context.candidates[1]]))
    assert "too few patients to say how far this figure would move" in page
    assert "no interval" in page
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).lower().replace("provenance", "")


def test_names_are_escaped() -> None:
    page = render(replace(minimal(), reason="<script>alert(1)</script>"))
    assert "<script>" not in page


def test_two_classes_are_reported_for_the_positive_one() -> None:
    models = [candidate("CovidNet3D-S", False, 3.5, 2.5, 0, ("NCP", "Normal"))]
    assert "are for NCP" in render(ReportContext(models, "CovidNet3D-S", "it is the only one", "NCP"))


def test_unknown_winner_is_refused_with_the_candidates() -> None:
    with pytest.raises(CovidnetError, match=r"expected one of: CovidNet3D-S, DenseNet3D121"):
        render(replace(minimal(), winner="ResNet"))


def test_charts_are_well_formed_and_take_the_pages_colours() -> None:
    context = minimal()
    p = context.candidates[0].predictions
    charts = [
        plots.confusion_matrix(p, "a"),
        plots.reliability(p, 1.5, "b"),
        plots.roc({"NCP": ((p.labels == 0).astype(int), p.probabilities()[:, 0])}, "c"),
        plots.supernet_comparison(0.8, [0.7, 0.75], 0.34, None, "d"),
        *plots.search_curves(search(0.8, []).history, "e").values(),
    ]
    for svg in charts:
        root = ElementTree.fromstring(svg)
        assert "width" not in root.attrib  # as wide as the page lets it be
        assert "currentColor" in svg
        assert len(svg) < 120_000


def test_architecture_shows_every_block_and_its_kind() -> None:
    svg = draw_architecture(GENOTYPE)
    text = " ".join(ElementTree.fromstring(svg).itertext())
    assert [f"Layer {i}" in text for i in range(1, 7)] == [True] * 6
    assert text.count("Identity: no operation") == 6
    assert text.count("kernel 7×7×7, expansion 3") == 5  # noqa: RUF001
    assert 'aria-label="Found architecture: 6 layers, 15 of 21 blocks in use"' in svg


def test_unknown_operation_or_missing_layer_is_refused() -> None:
    with pytest.raises(CovidnetError, match="found '9x9_MBConv3'"):
        draw_architecture({**GENOTYPE, "blocks": [["9x9_MBConv3"]] * 6})
    with pytest.raises(CovidnetError, match="found 6, 6 and 1"):
        draw_architecture({**GENOTYPE, "blocks": [["Identity"]]})


def test_published_f1_agrees_with_published_precision_and_sensitivity() -> None:
    # A slip of the pen in a row would show; the paper's own rows agree to its rounding, EMARS's are means over classes.
    for row in PUBLISHED:
        if "EMARS" not in row.model:
            f1 = 2 * row.precision * row.sensitivity / (row.precision + row.sensitivity)
            assert row.f1 == pytest.approx(f1, abs=0.06), row
