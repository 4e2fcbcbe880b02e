"""Patient-level, class-stratified splits: a patient's scans are always on one side."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from covidnet.errors import CovidnetError


def assign(
    patients: Sequence[str],
    labels: Sequence[str],
    shares: dict[str, float],
    seed: int,
    kept: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Split patients, within each class, in the given shares.

    Args:
        patients: patient of each scan.
        labels: class of each scan; a patient with several classes counts as the most frequent one.
        shares: split name to share; they add up to 1, and every split gets at least one patient of each class.
        seed: of the shuffle.
        kept: patient to split, of patients that stay where they were; new ones fill the splits up to their shares.

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
        old = {patient: kept[patient] for patient in order if kept and patient in kept}
        new = [patient for patient in order if patient not in old]
        chosen |= old | dict(zip(new, _places(len(order), shares, Counter(old.values())), strict=True))
    return chosen


def of_scans(
    patients: Sequence[str],
    labels: Sequence[str],
    given: Sequence[str | None],
    shares: dict[str, float],
    seed: int,
    kept: Mapping[str, str] | None = None,
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
    chosen = assign([patients[i] for i in still_open], [labels[i] for i in still_open], over, seed, kept)
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


def _places(total: int, shares: dict[str, float], taken: Counter[str]) -> list[str]:
    """Split of each patient that has none yet, such that all of them come closest to the shares."""
    counts = {name: max(1, round(total * share)) for name, share in shares.items()}
    counts[max(counts, key=lambda name: counts[name])] += total - sum(counts.values())  # what rounding left
    free = {name: max(0, counts[name] - taken[name]) for name in counts}
    while sum(free.values()) > total - sum(taken.values()):  # a split has more than its share already
        free[max(free, key=lambda name: free[name])] -= 1
    return [name for name, count in free.items() for _ in range(count)]
