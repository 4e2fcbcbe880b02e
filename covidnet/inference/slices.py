"""Do a bundle's maps put the infected slices of real scans first? Radiologists label slices more often than voxels.

    covidnet evaluate --bundle results/export/bundle --slice-labels slices.csv

Reported, never claimed: a handful of labelled scans is an observation. Runs from the bundle alone, without torch.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from covidnet import folder
from covidnet.data.preprocess import Spec, box_to_scan, prepare
from covidnet.data.sources import read_scan
from covidnet.errors import CovidnetError, UsageError
from covidnet.evaluation.cam import centre_prior
from covidnet.export.bundle import Bundle
from covidnet.inference.engine import Engine, load

COLUMNS = ("path", "label", "slice", "infected")


@dataclass(frozen=True, slots=True)
class Labelled:
    """A scan some of whose slices are labelled.

    Args:
        path: as `covidnet.data.sources.read_scan` takes it.
        label: class whose map is looked at.
        infected: index of a slice, 0 the most cranial, to whether it shows the disease.
    """

    path: Path
    label: str
    infected: dict[int, bool]


@dataclass(frozen=True, slots=True)
class Ranking:
    """How the slices of one scan are ranked.

    Args:
        scan: its number among the scans of the list; a path may carry a patient's name.
        label: class whose map ranked them.
        predicted: class that the bundle names.
        slices: labelled ones.
        infected: of these.
        auroc: probability that an infected slice has stronger evidence than another, ties counted half.
        middle_auroc: the same of a map that always points at the middle of the lungs: what the map has to beat.
        map_slices: of the map before it is interpolated; 1 can't tell slices of the lungs apart.
    """

    scan: int
    label: str
    predicted: str
    slices: int
    infected: int
    auroc: float
    middle_auroc: float
    map_slices: int


def report(bundle: Path, labels: Path, out: Path) -> dict[str, Any]:
    """Rank the slices of every scan of a list and write `slices.json` and `metrics.json`.

    Args:
        labels: CSV of ``path, label, slice, infected``: a row per labelled slice, paths relative to the file.

    Returns:
        Flat figures: the number of scans, the median AUROC of the maps and of the middle of the lungs.

    Raises:
        UsageError: the list isn't there or not of this form.
        CovidnetError: a scan can't be read, or a label is no class of the bundle or no slice of the scan.
    """
    opened, scans = Bundle.load(bundle), read_labels(labels)
    inputs = {"bundle": bundle, "labels": labels} | {f"scan {n}": scan.path for n, scan in enumerate(scans, start=1)}
    with folder.write(out, "slices", {}, inputs) as work:
        if work is None:
            told: dict[str, Any] = json.loads((out / "metrics.json").read_text())
            return told
        found = rank(opened, scans)
        flat = {
            "scans": len(found),
            "median_auroc": median(r.auroc for r in found),
            "median_middle_auroc": median(r.middle_auroc for r in found),
        }
        told = {"bundle": opened.version, "note": "reported, not claimed", "scans": [asdict(r) for r in found]}
        folder.write_json(work / "slices.json", told)
        folder.write_json(work / "metrics.json", flat)
    return flat


def rank(bundle: Bundle, scans: Sequence[Labelled]) -> list[Ranking]:
    """A `Ranking` of each scan, in order."""
    engine = load(bundle)
    return [_rank(bundle, engine, number, scan) for number, scan in enumerate(scans, start=1)]


def read_labels(path: Path) -> list[Labelled]:
    """The scans of a list of slice labels, in the order in which they first appear.

    Raises:
        UsageError: the file isn't there, a column is missing, or a value is of the wrong kind; names the line.
        CovidnetError: a scan has no infected or no other slice, or two classes.
    """
    scans: dict[str, Labelled] = {}
    try:
        with path.open(newline="") as stream:
            reader = csv.DictReader(stream)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or [])]:
                raise UsageError(f"{path}: columns {', '.join(missing)} are missing; expected {', '.join(COLUMNS)}")
            for row in reader:
                scan = scans.setdefault(row["path"], Labelled(path.parent / row["path"], row["label"], {}))
                if row["infected"] not in ("0", "1") or not row["slice"].isdigit() or row["label"] != scan.label:
                    raise UsageError(
                        f"{path}, line {reader.line_num}: expected a slice number, infected 0 or 1 and one label per scan"
                    )
                scan.infected[int(row["slice"])] = row["infected"] == "1"
    except OSError as error:
        raise UsageError(f"--slice-labels {path}: {error.strerror}") from None
    if not scans:
        raise UsageError(f"{path}: no slice is labelled")
    for number, scan in enumerate(scans.values(), start=1):
        if len(set(scan.infected.values())) < 2:
            raise CovidnetError(
                f"{path}: scan {number} of the list has only one kind of slice, so there is nothing to rank; leave it out"
            )
    return list(scans.values())


def _rank(bundle: Bundle, engine: Engine, number: int, labelled: Labelled) -> Ranking:
    if labelled.label not in bundle.labels:
        raise CovidnetError(
            f"scan {number} of the list has the label {labelled.label!r}, which is no class of the bundle "
            f"({', '.join(bundle.labels)})"
        )
    scan = read_scan(labelled.path)
    if (last := max(labelled.infected)) >= scan.shape[0]:
        raise CovidnetError(f"scan {number} of the list has {scan.shape[0]} slices, but slice {last} is labelled")
    prepared = prepare(scan, Spec.from_dict(bundle.preprocess))
    outputs = engine.run(prepared.volume[None, None])
    cam = outputs.cam[0, bundle.labels.index(labelled.label)]  # (d, h, w)
    evidence = _strongest(box_to_scan(cam, prepared.box, scan.shape))
    middle = _strongest(box_to_scan(centre_prior(prepared.volume.shape), prepared.box, scan.shape))
    slices = sorted(labelled.infected)
    truth = [labelled.infected[i] for i in slices]
    return Ranking(
        scan=number,
        label=labelled.label,
        predicted=bundle.labels[int(outputs.logits[0].argmax())],
        slices=len(slices),
        infected=sum(truth),
        auroc=float(roc_auc_score(truth, evidence[slices])),
        middle_auroc=float(roc_auc_score(truth, middle[slices])),
        map_slices=cam.shape[0],
    )


def _strongest(heat: np.ndarray) -> np.ndarray:
    """Strongest positive evidence of each slice, ``(D,)``; outside of the lungs there is none."""
    peaks: np.ndarray = heat.max(axis=(1, 2)).clip(0)
    return peaks
