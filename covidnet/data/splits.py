"""Patient-level, class-stratified splits: a patient's scans are always on one side."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from covidnet.errors import CovidnetError


def assign(patients: Sequence[str], labels: Sequence[str], shares: dict[str, float], seed: int) -> dict[str, str]:
    """Split patients, within each class, in the given shares.

    Args:
        patients: patient of each scan.
        labels: class of each scan; a patient with several classes counts as the most frequent one.
        shares: split name to share; they add up to 1, and every split gets at least one patient of each class.
        seed: of the shuffle.

    Returns:
        split name per patient.

    Raises:
        CovidnetError: a class has fewer patients than there are splits.
    """
    rng = np.random.default_rng(seed)
    chosen: dict[str, str] = {}
    for label, members in sorted(_by_class(patients, labels).items()):
        if len(members) < len(shares):
            raise CovidnetError(
                f"class {label} has {len(members)} patient(s), too few for {len(shares)} splits ({', '.join(shares)}); "
                "add patients of that class, or give the split per scan in a CSV (data.labels, column split)"
            )
        order = [members[i] for i in rng.permutation(len(members))]
        for name, part in zip(shares, _parts(len(order), list(shares.values())), strict=True):
            chosen |= dict.fromkeys(order[part], name)
    return chosen


def of_scans(
    patients: Sequence[str], labels: Sequence[str], given: Sequence[str | None], shares: dict[str, float], seed: int
) -> list[str]:
    """Split of each scan: as given, and open ones (None) by `assign` over the splits that are given to no scan.

    So nothing given means a split of all patients, and a published test list keeps its scans while the others become
    training and validation, in the proportion that ``shares`` has them.

    Raises:
        CovidnetError: a class has too few patients.
    """
    still_open = [i for i, split in enumerate(given) if split is None]
    over = {name: share for name, share in shares.items() if name not in given} or shares
    if over != shares:
        over = {name: share / sum(over.values()) for name, share in over.items()}
    chosen = assign([patients[i] for i in still_open], [labels[i] for i in still_open], over, seed)
    return [split or chosen[patient] for patient, split in zip(patients, given, strict=True)]


def _by_class(patients: Sequence[str], labels: Sequence[str]) -> dict[str, list[str]]:
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for patient, label in zip(patients, labels, strict=True):
        votes[patient][label] += 1
    classes: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(votes):
        # ties go to the alphabetically first class, so that the split doesn't depend on the order of the scans
        classes[min(votes[patient], key=lambda c: (-votes[patient][c], c))].append(patient)
    return classes


def _parts(total: int, shares: list[float]) -> list[slice]:
    counts = [max(1, round(total * share)) for share in shares]
    counts[counts.index(max(counts))] += total - sum(counts)  # the largest split takes what rounding left
    ends = np.cumsum(counts)
    return [slice(int(end - count), int(end)) for count, end in zip(counts, ends, strict=True)]
