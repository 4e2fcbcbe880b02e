"""DICOM CT: one file, or the best axial series of a folder, from headers to Hounsfield units in the project's axes."""

import logging
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from pydicom import Dataset, config
from pydicom.uid import UID

from covidnet.data.scan import Scan
from covidnet.data.sources import axes, jpeg
from covidnet.data.sources.dicom_headers import PARSE_ERRORS, Slice, is_dicom, read_headers, read_pixels
from covidnet.data.sources.limits import check_ratio, check_voxels
from covidnet.errors import ScanError

__all__ = ["is_dicom", "read"]

AIR_HU = -1024
SAME_POSITION = 0.05  # of a step: closer slices are one slice stored twice
UNEVEN = 0.1  # of a step: what rounding of positions may explain
MAX_INTERPOLATED = 0.1  # of the slices
MAX_RIVALS = 0.1  # of the slices: different ones at one position
MAX_OFF_LINE = 2.0  # pixels
ENOUGH = 8  # slices; a shorter series is a scout, a test shot or bolus tracking rather than a volume
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Exported series carry illegal UIDs and odd values by the thousand. pydicom's warnings quote them and the files' paths,
# which would write patient data into logs; what matters of a header is checked here.
config.settings.reading_validation_mode = config.IGNORE
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def read(files: list[Path]) -> Scan:
    """Read the best axial CT series among ``files``.

    Which series: modality CT, axial within 10 degrees, no localizer or projection; of these, in this order, one of 8
    slices or more, as acquired (not derived, secondary or reformatted), of the chest (or of no stated body part), with
    most slices, thinnest slices. Acquisitions over the same stretch of the body count as series. The choice, and why the
    others were left out, is a warning of the scan. Slices are ordered by their position along the normal of the image
    plane, never by name or number.

    Raises:
        ScanError: no such series, several patients, undecodable pixels, missing, uneven or shifted slices, a gantry tilt, or
            too large.
    """
    slices, remarks = read_headers(files)
    chosen, choice = _choose(slices)
    ordered, step_mm, stacking = _stack(chosen)
    voxels = _decode(ordered)  # (D, H, W), along the normal
    placed = axes.place(voxels.transpose(2, 1, 0), _affine(chosen, step_mm))
    notes = [*remarks, *choice, *stacking, *placed.warnings]
    if placed.voxels.min() >= 0:
        notes.append("no voxel is below 0 HU; the rescale intercept may be missing from the header")
    return Scan(placed.voxels, placed.spacing_mm, "hu", "dicom", placed.orientation, tuple(notes), placed.affine)


def _choose(slices: list[Slice]) -> tuple[list[Slice], list[str]]:
    """The slices of the best series, and a remark where there was a choice."""
    patients = {item.patient for item in slices if item.patient}
    if len(patients) > 1:
        raise ScanError(f"expected the scan of one patient, found slices of {len(patients)} (PatientID); part them")
    series: dict[tuple[object, ...], list[Slice]] = defaultdict(list)
    for item in slices:
        series[item.series].append(item)
    refusals = {key: "; ".join(sorted({item.refusal() for item in group} - {""})) for key, group in series.items()}
    usable = [part for key, group in series.items() if not refusals[key] for part in _acquisitions(group)]
    if not usable:
        raise ScanError("no axial CT series to read: " + "; ".join(sorted(set(refusals.values()))))
    best = max(usable, key=_rank)
    remarks = []
    if len(usable) > 1 or len(series) > 1:
        left_out = Counter(reason for reason in refusals.values() if reason)
        left_out.update(_lost_by(part, best) for part in usable if part is not best)
        remarks.append(
            f"{left_out.total() + 1} series found; read the axial one of {len(best)} slices, "
            f"{best[0].thickness_mm or 0:g} mm thick; left out: "
            + "; ".join(f"{count} x {reason}" for reason, count in sorted(left_out.items()))
        )
    if not best[0].acquired:
        remarks.append("the series is marked as derived, secondary or reformatted, not as acquired")
    return best, remarks


def _rank(part: list[Slice]) -> tuple[object, ...]:
    """What makes a series the better one, in this order; the last makes ties independent of file names."""
    first = part[0]
    enough = len(part) >= ENOUGH
    return enough, first.acquired, first.chest, len(part), -(first.thickness_mm or 0.0), str(first.series)


def _lost_by(part: list[Slice], best: list[Slice]) -> str:
    """The first of the rules by which a series was left out."""
    rules = (f"fewer than {ENOUGH} slices", "not as acquired", "not of the chest", "fewer slices", "thicker slices")
    return next((rule for rule, a, b in zip(rules, _rank(part), _rank(best), strict=False) if a != b), "no difference")


def _acquisitions(group: list[Slice]) -> list[list[Slice]]:
    """A series by acquisition, where it holds several over the same stretch of the body (two breath-holds, say)."""
    parts: dict[str, list[Slice]] = defaultdict(list)
    for item in group:
        parts[item.acquisition].append(item)
    places = {round(item.depth_mm, 1) for item in group}
    whole = max(map(len, parts.values())) > len(places) / 2  # a step-and-shoot scan has an acquisition per slice
    return list(parts.values()) if len(places) < len(group) and whole else [group]


def _stack(slices: list[Slice]) -> tuple[list[Slice | None], float, list[str]]:
    """Slices in the order of their position along the normal, with None where one is missing.

    Returns:
        the slices, their distance in mm, and remarks.
    """
    # the file's name decides only between slices at one position
    ordered = sorted(slices, key=lambda s: (s.depth_mm, s.number, s.file.name, s.frame))
    if len(ordered) == 1:
        return list(ordered), ordered[0].thickness_mm or 1.0, ["a single slice, not a volume"]
    steps = np.diff([s.depth_mm for s in ordered])
    distinct = steps[steps > 1e-2]
    if not len(distinct):
        raise ScanError(f"{len(slices)} slices share one position; export the series with ImagePositionPatient")
    step_mm = float(np.median(distinct))
    stacked: list[Slice | None] = [ordered[0]]
    rivals = 0
    for step, before, item in zip(steps / step_mm, ordered, ordered[1:], strict=False):
        if step < SAME_POSITION:
            rivals += not item.instance or (item.instance, item.frame) != (before.instance, before.frame)
            continue
        if abs(step - round(step)) > UNEVEN * round(step) or round(step) > 2:
            raise ScanError(_gap(float(step), len(ordered), step_mm))
        stacked += [None] * (round(step) - 1) + [item]
    missing = stacked.count(None)
    duplicates = len(ordered) + missing - len(stacked)
    if missing > MAX_INTERPOLATED * len(stacked):
        raise ScanError(f"{missing} of {len(stacked)} slices are missing; export the whole series")
    if rivals > max(1, MAX_RIVALS * len(stacked)):
        raise ScanError(f"{rivals} of {len(ordered)} slices lie where another one does; export each volume by itself")
    _check_straight(ordered)
    remarks = [f"{duplicates} slice(s) at a position already taken were dropped"] if duplicates else []
    remarks += [f"{missing} missing slice(s) were interpolated from their neighbours"] if missing else []
    # the mean over the whole stack carries less of the header's rounding than a single step
    return stacked, (ordered[-1].depth_mm - ordered[0].depth_mm) / (len(stacked) - 1), remarks


def _check_straight(ordered: list[Slice]) -> None:
    """Refuse slices that don't lie on one line, as where two acquisitions are mixed."""
    positions = np.array([s.position for s in ordered])  # (N, 3)
    share = np.array([s.depth_mm for s in ordered]) - ordered[0].depth_mm
    line = positions[0] + np.outer(share / share[-1], positions[-1] - positions[0])
    off_mm = float(np.abs(positions - line).max())
    if off_mm > MAX_OFF_LINE * max(ordered[0].pixel_spacing_mm):
        raise ScanError(f"slices are shifted sideways by {off_mm:.1f} mm; export one volume of one acquisition")


def _gap(step: float, count: int, step_mm: float) -> str:
    if abs(step - round(step)) <= UNEVEN * round(step):
        return f"{round(step) - 1} slices in a row are missing ({count} found, {step_mm:g} mm apart); export them all"
    return f"slices are unevenly spaced: {step * step_mm:.2f} mm, expected {step_mm:.2f} mm; export an even series"


def _affine(slices: list[Slice], step_mm: float) -> np.ndarray:
    """4x4, (column, row, slice) to RAS millimetres, from the stack's own ends."""
    ordered = sorted(slices, key=lambda s: s.depth_mm)
    first, last = ordered[0], ordered[-1]
    along_row, along_column = first.directions
    track = last.position_mm - first.position_mm
    length = float(np.linalg.norm(track))
    affine = np.eye(4)
    affine[:3, 0] = along_row * first.pixel_spacing_mm[1]
    affine[:3, 1] = along_column * first.pixel_spacing_mm[0]
    affine[:3, 2] = track / length * step_mm if length > 0 else first.normal * step_mm
    affine[:3, 3] = first.position_mm
    return LPS_TO_RAS @ affine


def _decode(stack: list[Slice | None]) -> np.ndarray:
    """Hounsfield units ``int16 (D, H, W)``; gaps are filled halfway between their neighbours."""
    rows, columns = next(s for s in stack if s).shape
    check_voxels((len(stack), rows, columns))
    check_ratio(2 * len(stack) * rows * columns, sum(file.stat().st_size for file in {s.file for s in stack if s}))
    volume = np.empty((len(stack), rows, columns), np.int16)
    if next(s for s in stack if s).normal[2] > 0:
        volume = volume[::-1]  # most series begin at the feet; laid out like this, `place` has nothing to copy
    opened: tuple[Path | None, Dataset] = (None, Dataset())
    for index, item in enumerate(stack):
        if item is None:
            continue
        if opened[0] != item.file:
            opened = (item.file, _open(item, index))
        _write_hounsfield(_pixels(opened[1], item, index), item, volume[index])
    for index in (i for i, s in enumerate(stack) if s is None):
        volume[index] = (volume[index - 1].astype(np.int32) + volume[index + 1]) // 2
    first = next(s for s in stack if s)
    if first.inverted and _air_inside(volume):
        low, high = first.stored_range
        mirror = round((low + high) * first.slope + 2 * first.intercept)
        volume = (mirror - volume.astype(np.int32)).astype(np.int16)
    return volume


def _open(item: Slice, index: int) -> Dataset:
    try:
        return read_pixels(item)
    except PARSE_ERRORS as error:
        raise ScanError(f"slice {index} can't be read ({type(error).__name__}); the file is damaged") from None


def _pixels(dataset: Dataset, item: Slice, index: int) -> np.ndarray:
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2"))
    dataset.file_meta.TransferSyntaxUID = syntax
    try:
        pixels = jpeg.pixels(dataset, item.frame if item.frames > 1 else None)
    except PARSE_ERRORS as error:
        raise ScanError(
            f"slice {index} can't be decoded ({syntax.name}, {type(error).__name__}); it is damaged or its "
            "compression isn't supported; export the series as Explicit VR Little Endian"
        ) from None
    if pixels.shape != item.shape:
        raise ScanError(f"slice {index} decodes to {pixels.shape}, expected {item.shape}; the file is damaged")
    return pixels


def _write_hounsfield(stored: np.ndarray, item: Slice, out: np.ndarray) -> None:
    """Rescale pixels into ``out``, ``int16`` of their shape; padding outside the reconstruction circle becomes air."""
    limits = np.iinfo(np.int16)
    low, high, shift = int(stored.min()), int(stored.max()), int(item.intercept)
    ends = (low, high, shift, low + shift, high + shift)
    if item.slope == 1 and item.intercept == shift and limits.min <= min(ends) and max(ends) <= limits.max:
        np.add(stored.astype(np.int16, copy=False), shift, out=out)
    else:
        np.clip(np.rint(stored * item.slope + item.intercept), limits.min, limits.max, out=out, casting="unsafe")
    if item.padding is not None:
        first, last = item.padding
        # headers give the padding of signed pixels as an unsigned number and the other way round
        wrapped = stored.astype(np.int16 if item.signed else np.uint16, copy=False)
        out[wrapped == first if first == last else (wrapped >= first) & (wrapped <= last)] = AIR_HU


def _air_inside(volume: np.ndarray) -> bool:
    """Whether a MONOCHROME1 scan has its values inverted, not just its display: then the surroundings are dense."""
    middle = volume[len(volume) // 2]
    border = np.concatenate([middle[0], middle[-1], middle[:, 0], middle[:, -1]])
    return bool(np.median(border) > middle.mean())
