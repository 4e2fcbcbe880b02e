"""What the report shows, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from covidnet.evaluation.bootstrap import Interval, PairedResult
from covidnet.evaluation.metrics import Predictions
from covidnet.evaluation.seal import Use
from covidnet.evaluation.subgroups import Subgroup


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
    """A class activation map: a PNG from `overlay.montage`, its caption, and whether the prediction was right."""

    title: str
    png: bytes
    correct: bool


@dataclass(frozen=True, slots=True)
class Localisation:
    """How well maps point at annotated lesions, beside one that always points at the centre and one that points anywhere.

    Args:
        scans: test scans with a lesion mask.
        hit_rate: mean of `cam.lesion_hit`.
        centre_hit_rate: the same of `cam.centre_prior`, with the same tolerance.
        random_hit_rate: the same of a map that points anywhere, expected.
        energy_inside: mean of `cam.energy_inside`.
        centre_energy_inside: the same of `cam.centre_prior`.
        grid: ``(d, h, w)`` of the map.
        name: of the map, e.g. "Grad-CAM of DenseNet3D121".
        swapped_hit_rate: the hits of other scans' maps on a scan's lesion, which is what a habit of pointing at the same
            place is worth; None with a single scan.
    """

    scans: int
    hit_rate: float
    centre_hit_rate: float
    random_hit_rate: float
    energy_inside: float
    centre_energy_inside: float
    grid: tuple[int, int, int]
    name: str = "Class activation map"
    swapped_hit_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Sanity:
    """What a map has to pass before anybody looks at it.

    Args:
        exactness: largest distance of a map's mean plus bias from its logit.
        random_correlation: mean correlation with the map of the same network with random weights (Adebayo et al.,
            NeurIPS 2018): near 0 for a map that depends on what was learned.
        scans: of the correlation.
    """

    exactness: float
    random_correlation: float
    scans: int


@dataclass(frozen=True, slots=True)
class Foreign:
    """How the out-of-distribution flag does on the test scans, which are no foreign ones.

    Args:
        stated_rate: false-alarm rate that the threshold was set for.
        flagged: share of the test scans that it flags.
    """

    stated_rate: float
    flagged: float


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
        localisations: the winner's first.
        by_patient: the winner's figures where patients have more scans than one.
        uses: of the test split, oldest first; the last is this one.
        audit: its findings; empty where it found none.
        provenance: plain values are shown in a table, nested ones as JSON.
        warnings: what the reader must know before believing a figure.
        notes: on the table of models.
    """

    candidates: Sequence[Candidate]
    winner: str
    reason: str
    positive: str
    confidence: float = 0.95
    comparisons: Sequence[Comparison] = ()
    searches: Sequence[SearchResult] = ()
    examples: Sequence[Example] = ()
    localisations: Sequence[Localisation] = ()
    sanity: Sanity | None = None
    foreign: Foreign | None = None
    by_patient: Mapping[str, float] = field(default_factory=dict)
    subgroups: Sequence[Subgroup] = ()
    uses: Sequence[Use] = ()
    audit: Sequence[str] | None = None
    dataset: Dataset | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
