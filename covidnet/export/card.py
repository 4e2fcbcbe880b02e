"""The model card of a bundle, from facts alone (sections after Mitchell et al., Model Cards, FAT* 2019)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from covidnet.errors import CovidnetError


class Facts(TypedDict):
    """What a card says; JSON values.

    Keys:
        name: of the network, e.g. ``covidnet3d-s``.
        classes: in the order of the logits.
        size: ``[D, H, W]`` of the input.
        parameters, size_mib, macs: cost of one scan.
        source: ``data.source`` of the dataset; a phantom gets a warning of its own.
        scans: split to class to count.
        patients: split to count.
        metrics: test figures by name; None where undefined.
        intervals: the same names to ``(low, high)``; None where there are too few patients for one.
        confidence: of the intervals, 0..1.
        temperature, false_alarm_rate: of the calibration.
        precisions: verdicts of `covidnet.export.precision` by name; empty where none was tried.
        versions: package to version.
    """

    name: str
    classes: Sequence[str]
    size: Sequence[int]
    parameters: int
    size_mib: float
    macs: int
    source: str
    scans: Mapping[str, Mapping[str, int]]
    patients: Mapping[str, int]
    metrics: Mapping[str, float | None]
    intervals: Mapping[str, Sequence[float] | None]
    confidence: float
    temperature: float
    false_alarm_rate: float
    precisions: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]


FIGURES = ("accuracy", "balanced_accuracy", "precision", "sensitivity", "specificity", "f1", "roc_auc")

_CARD = """\
# {name}: {classes} from chest CT

**Research software. No output of this model is a diagnosis, and none may guide the care of a patient.**

## Model

A 3D convolutional network (He et al., *Automated Model Design and Benchmarking of 3D Deep Learning Models for COVID-19
Detection with Chest CT Scans*, AAAI 2021). It takes a chest CT, cropped and resized to {size} voxels by
`preprocess.json`, and gives a probability per class and a class activation map per class.

| | |
|---|---|
| parameters | {parameters:,} ({size_mib:.2f} MiB as float32) |
| multiply-accumulates per scan | {gmacs:.2f} GMAC |
| classes | {classes} |
| versions | {versions} |

## Intended use

Research on classification of chest CT: comparing architectures, reproducing results, studying explanations. Not for
diagnosis, triage, screening or any other decision about a person.

## Data

{data}
Splits are by patient: no patient is in two of them. The model was chosen on validation; the test split was read once.

| split | patients | scans | per class |
|---|---|---|---|
{splits}

## Figures on the test split

| figure | value | {percent:.0f} % interval |
|---|---|---|
{figures}

Precision, sensitivity, specificity, F1 and ROC AUC are {averaging}.
Intervals are percentiles of a bootstrap over patients; "too few" means fewer than 10 patients in a class, of which no
honest interval can be had.
They cover the chance of the test patients alone, not other hospitals.

## Calibration

Probabilities are softmax(logits / {temperature:.3f}), the temperature fitted on validation. A scan is flagged
`out-of-distribution` when its coarse picture lies further from that of the training scans (Mahalanobis distance) than
{false_alarm_rate:.1%} of scans like them do. That finds what is no chest CT of this kind: other organs, other
intensities, slices out of order, lungs cut off. It doesn't find a disease that the classes don't name.

{precisions}## Limits

* It knows its {count} classes only, and puts every scan into one of them, whatever the disease.
* It has not been validated in clinical use, nor on scanners, protocols and populations beyond its data.
* Public CT datasets mix hospitals with labels: a network can learn the scanner instead of the disease. High figures on
  one dataset don't rule that out.
* A class activation map shows where the evidence lies on a coarse grid, not the outline of a lesion.
* `SHA256SUMS` finds damage, not forgery: take bundles from sources you trust.
"""

_PRECISIONS = """\
## Lower precision

Tried on the {scans} validation scans; what wasn't accepted doesn't run.

| precision | verdict | scans whose class changed | accuracy less float32's | maps on the lesion, float32's |
|---|---|---|---|---|
{rows}

No change among n scans says, at 95 %, that fewer than 3/n change.

"""

_PHANTOM = """\
**Trained on synthetic phantoms, which a program draws. The figures below show that the pipeline works; they say nothing
about patients.**
"""


def model_card(facts: Facts) -> str:
    """Markdown text of `MODEL_CARD.md`; the same facts give the same text.

    Raises:
        CovidnetError: a fact is missing.
    """
    missing = sorted(Facts.__required_keys__ - facts.keys())
    if missing:
        raise CovidnetError(f"model card: expected the facts {sorted(Facts.__required_keys__)}, missing {missing}")
    classes = list(facts["classes"])
    return _CARD.format(
        **{key: facts[key] for key in ("name", "parameters", "size_mib", "temperature", "false_alarm_rate")},
        classes=", ".join(classes),
        count=len(classes),
        size="x".join(map(str, facts["size"])),
        gmacs=facts["macs"] / 1e9,
        versions=", ".join(f"{name} {version}" for name, version in sorted(facts["versions"].items())),
        data=_PHANTOM if facts["source"] == "phantom" else f"Source: {facts['source']}.\n",
        splits="\n".join(_split(split, facts) for split in facts["scans"]),
        figures="\n".join(_figure(name, facts) for name in FIGURES if name in facts["metrics"]),
        percent=facts["confidence"] * 100,
        precisions=_precisions(facts["precisions"]),
        averaging="those of the positive class" if len(classes) == 2 else "means over classes, each against the rest",
    )


def blank() -> str:
    """The card with ``<name>`` in the place of every fact, as a template."""
    return re.sub(r"\{(\w+)[^}]*\}", r"<\1>", _CARD.replace("{precisions}", "{precisions}\n\n"))


def _split(split: str, facts: Facts) -> str:
    counts = facts["scans"][split]
    per_class = ", ".join(f"{name} {counts.get(name, 0)}" for name in facts["classes"])
    return f"| {split} | {facts['patients'][split]} | {sum(counts.values())} | {per_class} |"


def _figure(name: str, facts: Facts) -> str:
    value, interval = facts["metrics"][name], facts["intervals"].get(name)
    shown = "undefined" if value is None else f"{value:.3f}"
    bounds = ("none" if value is None else "too few") if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
    return f"| {name.replace('_', ' ')} | {shown} | {bounds} |"


def _precisions(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    tried = [verdict for verdict in verdicts.values() if "scans" in verdict]
    if not verdicts:
        return ""
    rows = "\n".join(_verdict(name, verdict) for name, verdict in verdicts.items())
    return _PRECISIONS.format(scans=tried[0]["scans"] if tried else 0, rows=rows)


def _verdict(name: str, verdict: Mapping[str, Any]) -> str:
    said = "accepted" if verdict["accepted"] else f"refused: {verdict['reason']}"
    if "scans" not in verdict:
        return f"| {name} | {said} | | | |"
    low, high = verdict["accuracy_interval"]
    interval = "too few patients" if low is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
    rates = [verdict["cam_hit_rate"], verdict["cam_hit_rate_float32"]]
    hits = ", ".join("no masks" if rate is None else f"{rate:.1%}" for rate in rates)
    difference = f"{100 * verdict['accuracy_difference']:+.1f} points ({interval})"
    return f"| {name} | {said} | {verdict['changed']} | {difference} | {hits} |"
