"""Scan to fixed-size uint8 volume: crop, window, resize. The one preprocessing of training and of serving; no torch.

`prepare(read_scan(path), Spec(size=(32, 128, 128)))` gives the same bytes on every machine: resizing multiplies whole
numbers, and every partial sum stays below 2^24, where float32 is exact whatever order a BLAS library adds in.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from covidnet.data import lungs
from covidnet.data.lungs import Anatomy, Box
from covidnet.data.scan import Scan
from covidnet.errors import CovidnetError

__all__ = ["NO_LUNGS", "Box", "Prepared", "Spec", "box_to_scan", "crop_and_resize", "prepare"]

Crop = Literal["lungs", "body", "none"]
VERSION = 1
NO_LUNGS = "no two plausible lungs were found; cropped to the body"
LEVELS = 4095  # 12 bits for intensities and 12 for weights: 4095 * 4096 < 2^24
UNIT = 4096
Side = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Spec:
    """How a scan becomes a volume; the bundle's `preprocess.json`.

    Args:
        size: ``(D, H, W)`` of the prepared volume.
        window_hu: Hounsfield units that become 0 and 255; display intensities are taken as they are.
        crop: to the box of the lungs, of the body, or not at all.
        version: of this module's algorithm; raised whenever the same scan would give other bytes.
    """

    size: tuple[int, int, int]
    window_hu: tuple[float, float] = (-1000.0, 400.0)
    crop: Crop = "lungs"
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {**asdict(self), "size": list(self.size), "window_hu": list(self.window_hu)}

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> "Spec":
        """Read what `to_dict` gave.

        Raises:
            CovidnetError: keys missing or unknown, a value of the wrong kind, or another version of the algorithm.
        """
        names = [field.name for field in fields(cls)]
        if sorted(tree) != sorted(names):
            raise CovidnetError(f"preprocess.json: expected the keys {names}, found {sorted(tree)}; export again")
        if tree["version"] != VERSION:
            raise CovidnetError(
                f"preprocess.json is of version {tree['version']}, this covidnet prepares scans by version {VERSION}; "
                "export the bundle again, or serve it with the covidnet that made it"
            )
        try:
            depth, height, width = (int(side) for side in tree["size"])
            low, high = (float(hu) for hu in tree["window_hu"])
        except (TypeError, ValueError):
            raise CovidnetError("preprocess.json: size must be three and window_hu two numbers; export again") from None
        if min(depth, height, width) < 1 or low >= high or tree["crop"] not in get_args(Crop):
            raise CovidnetError(
                f"preprocess.json: expected sides above 0, a window [low, high], crop one of {get_args(Crop)}, "
                f"found {tree}; export the bundle again"
            )
        return cls((depth, height, width), (low, high), tree["crop"])


@dataclass(frozen=True, slots=True)
class Prepared:
    """A scan as the networks see it.

    Args:
        volume: ``uint8 (D, H, W)`` of ``spec.size``.
        box: ``((z0, z1), (y0, y1), (x0, x1))`` in voxels of the source, ends excluded, that the volume shows.
        features: plain numbers that describe the scan, for monitoring: ``slices``, ``spacing_{z,y,x}_mm`` and
            ``lung_volume_ml`` where spacing is known, ``lungs_found`` (0 or 1), ``lung_share`` of the body, and
            ``hu_mean``, ``hu_p05``, ``hu_p50``, ``hu_p95`` within the box (``grey_...`` for display intensities).
        warnings: of the reader, then of preprocessing.
    """

    volume: np.ndarray
    box: Box
    features: dict[str, float]
    warnings: tuple[str, ...]


def prepare(scan: Scan, spec: Spec) -> Prepared:
    """Crop, window and resize one scan.

    Shrinking averages over the area of each new voxel, enlarging is linear. The result is within a grey level of exact
    arithmetic (nine in ten voxels equal it), for the sake of being the same everywhere.

    Args:
        scan: of any size and spacing.
        spec: see `Spec`.
    """
    anatomy = lungs.find(scan)
    box = _crop_box(scan, spec, anatomy)
    missing = spec.crop == "lungs" and anatomy.lungs is None
    low, high = spec.window_hu if scan.intensity == "hu" else (0.0, 255.0)
    levels = _levels(_within(scan.voxels, box), low, high)
    resized = _resize(levels, spec.size).astype(np.int32)  # (D, H, W), 0..LEVELS
    volume = ((resized * 255 + LEVELS // 2) // LEVELS).astype(np.uint8)
    return Prepared(volume, box, _features(scan, box, anatomy), (*scan.warnings, *([NO_LUNGS] if missing else [])))


def crop_and_resize(volume: np.ndarray, box: Box, size: tuple[int, int, int]) -> np.ndarray:
    """Bring a mask on the scan's grid to the prepared volume's, by the same resampling.

    Args:
        volume: ``(D, H, W)``, values 0..1.
        box: of `Prepared`.
        size: of `Spec`.

    Returns:
        float32 of ``size``, 0..1: the share of each voxel that the mask covers.
    """
    levels = np.rint(np.clip(_within(volume, box), 0, 1) * LEVELS).astype(np.float32)
    return _resize(levels, size) / np.float32(LEVELS)


def box_to_scan(cam: np.ndarray, box: Box, shape: tuple[int, int, int]) -> np.ndarray:
    """Bring a map over the prepared volume back to the scan's grid, to lay it over the original slices.

    Args:
        cam: ``(d, h, w)``, of any resolution, over the whole of ``box``.
        box: of `Prepared`.
        shape: ``(D, H, W)`` of the scan.

    Returns:
        float32 ``(D, H, W)``, linearly interpolated within the box and 0 outside.
    """
    enlarged = cam.astype(np.float32)
    for axis, (start, stop) in enumerate(box):
        enlarged = _along(enlarged, axis, _linear(cam.shape[axis], stop - start))
    placed = np.zeros(shape, np.float32)
    placed[tuple(slice(*side) for side in box)] = enlarged
    return placed


def _crop_box(scan: Scan, spec: Spec, anatomy: Anatomy) -> Box:
    if spec.crop == "none":
        depth, height, width = scan.shape
        return (0, depth), (0, height), (0, width)
    return anatomy.lungs if spec.crop == "lungs" and anatomy.lungs is not None else anatomy.body


def _within(voxels: np.ndarray, box: Box) -> np.ndarray:
    return voxels[tuple(slice(*side) for side in box)]


def _levels(voxels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Whole numbers 0..LEVELS as float32, by a table over all int16 values: clipping and scaling in one pass."""
    every = np.arange(2**16, dtype=np.uint16).view(np.int16).astype(np.float64)
    table = np.rint((np.clip(every, low, high) - low) * (LEVELS / (high - low))).astype(np.float32)
    return np.asarray(table[voxels.view(np.uint16)])


def _resize(levels: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """Separable resize of whole numbers 0..LEVELS, one matrix product per axis, the most shrinking axis first.

    Of axes that shrink alike the last goes first, since its product needs no transposed copy.
    """
    for axis in sorted((2, 1, 0), key=lambda axis: size[axis] / levels.shape[axis]):
        weights = _weights(levels.shape[axis], size[axis])
        levels = _along(levels, axis, weights)
        levels *= np.float32(1 / UNIT)  # a power of two: exact
        np.rint(levels, out=levels)
    return levels


def _along(volume: np.ndarray, axis: int, weights: np.ndarray) -> np.ndarray:
    """Multiply one axis of a volume by ``weights (new, old)``.

    One flat product: a product per slice makes BLAS wake and join its threads for each, 20 times slower on a busy machine.
    """
    if axis == 2:
        return np.asarray((volume.reshape(-1, volume.shape[2]) @ weights.T).reshape(*volume.shape[:2], -1))
    leading = np.moveaxis(volume, axis, 0)
    product = weights @ leading.reshape(volume.shape[axis], -1)
    return np.ascontiguousarray(np.moveaxis(product.reshape(-1, *leading.shape[1:]), 0, axis))


def _weights(old: int, new: int) -> np.ndarray:
    """Whole weights ``float32 (new, old)``; every row adds up to UNIT."""
    exact = _area(old, new) if new < old else _linear(old, new)
    ends = np.rint(np.cumsum(exact.astype(np.float64), axis=1) * UNIT)
    return np.diff(ends, axis=1, prepend=0).astype(np.float32)


def _area(old: int, new: int) -> np.ndarray:
    """Share ``(new, old)`` that each old voxel has in the extent of each new one."""
    edges = np.linspace(0, old, new + 1)
    starts = np.arange(old)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.asarray(np.clip(overlap, 0, None) * (new / old))


def _linear(old: int, new: int) -> np.ndarray:
    """Interpolation weights ``float32 (new, old)`` between voxel centres; the ends are repeated outward."""
    centres = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    return np.asarray(np.clip(1 - np.abs(centres[:, None] - np.arange(old)), 0, None).astype(np.float32))


def _features(scan: Scan, box: Box, anatomy: Anatomy) -> dict[str, float]:
    features = {"slices": float(scan.shape[0])}
    if min(scan.spacing_mm) > 0:
        features |= {f"spacing_{axis}_mm": float(mm) for axis, mm in zip("zyx", scan.spacing_mm, strict=True)}
        features["lung_volume_ml"] = anatomy.lung_voxels * float(np.prod(scan.spacing_mm)) / 1000
    features |= {"lungs_found": float(anatomy.lungs is not None), "lung_share": anatomy.lung_share}
    strides = (slice(None, None, 1 + side // 64) for side in scan.shape)  # a sample is enough for a distribution
    sample = np.maximum(_within(scan.voxels, box)[tuple(strides)], lungs.AIR_HU)
    kind = "hu" if scan.intensity == "hu" else "grey"
    features[f"{kind}_mean"] = float(sample.mean())
    for percent, value in zip((5, 50, 95), np.percentile(sample, (5, 50, 95)), strict=True):
        features[f"{kind}_p{percent:02d}"] = float(value)
    return features
