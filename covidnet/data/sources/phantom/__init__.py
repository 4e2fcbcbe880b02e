"""The synthetic dataset: chest CTs with a known diagnosis, made on demand from a seed and a number.

`generate("NCP", seed=0, index=7)` is always the same scan, in any order and any process. Anatomy, scanner, noise and
harmless findings come from ``(seed, index)`` alone; the label adds its pneumonia and nothing else. So the three scans
of one index are the same patient, healthy or with either disease, and no nuisance can tell the label.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from covidnet.data.scan import Scan
from covidnet.data.sources.phantom import anatomy, lesions, scanner
from covidnet.data.sources.phantom.grid import Grid
from covidnet.errors import UsageError

LABELS = ("NCP", "CP", "Normal")
# The parts below scale with a hardness of 0 to 1, of which the upper half is harder than any real dataset: at 0.5 a plain 3D
# CNN reaches 88 % with as many scans as the paper had (benchmarks/phantoms.py). That is difficulty 1.
PAPER_LIKE = 0.5


@dataclass(frozen=True, slots=True)
class Phantom:
    """A synthetic scan.

    Args:
        scan: the scan, in HU.
        lesions: where the pneumonia is, ``bool (D, H, W)``; all False for ``"Normal"``.
    """

    scan: Scan
    lesions: np.ndarray


def generate(
    label: str, *, seed: int, index: int, difficulty: float = 0.5, detail: tuple[int, int, int] = (40, 96, 96)
) -> Phantom:
    """Make one scan.

    Args:
        label: one of `LABELS`.
        seed: of the dataset.
        index: of the patient in the dataset.
        difficulty: 0, lesions stand out, to 1, paper-like: many are faint and the classes overlap.
        detail: nominal ``(D, H, W)``; the number of slices varies by 30 % from scanner to scanner.

    Returns:
        The scan and its lesion mask, fixed by the arguments alone.

    Raises:
        UsageError: an unknown label, or a difficulty outside 0..1.
    """
    if label not in LABELS:
        raise UsageError(f"phantom label {label!r} is unknown; expected one of {', '.join(LABELS)}")
    if not 0.0 <= difficulty <= 1.0:
        raise UsageError(f"phantom difficulty must lie in 0..1, found {difficulty}")
    hardness = PAPER_LIKE * difficulty
    patient = np.random.default_rng([seed, index, 0])
    disease = np.random.default_rng([seed, index, 1, zlib.crc32(label.encode())])
    machine, pose, body = scanner.draw(detail, hardness, patient)
    rows = scanner.body_rows(machine, pose, body)
    grid = Grid(machine.shape, rows, machine.spacing_mm, pose, patient)
    chest = anatomy.build(grid, body, patient)
    lesions.add_distractors(grid, chest, hardness, patient)
    mask = np.zeros(machine.shape, dtype=bool)
    if label != "Normal":
        mask[:, rows] = lesions.add_pneumonia(label, grid, chest, hardness, disease)
    voxels = scanner.acquire(chest.hu, rows, grid, machine, patient)
    return Phantom(Scan(voxels, machine.spacing_mm, intensity="hu", format="phantom", orientation="LPS"), mask)
