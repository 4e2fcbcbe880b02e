"""A folder of one picture per slice: 8-bit PNG or JPG as in CC-CCII, 16-bit TIFF as in COVID-CTset."""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from covidnet.data.scan import Intensity, Scan
from covidnet.data.sources.limits import check_file, check_ratio, check_voxels
from covidnet.errors import ScanError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MAX_SLICES = 4096
MAX_PIXELS = 2048 * 2048
GREY_TOLERANCE = 8  # JPEG's colour rounding; a drawn-on annotation differs by far more
STORED_OFFSET_HU = -1024


def is_picture(path: Path) -> bool:
    """Whether the file's ending is one that this module reads."""
    return path.suffix.lower() in PICTURES


def natural_key(path: Path) -> list[tuple[int, str]]:
    """Sort key under which ``IM2`` comes before ``IM10``."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def read(files: list[Path]) -> Scan:
    """Stack pictures in the natural order of their names, which is taken as cranial to caudal.

    Pictures have no geometry, so spacing is 0 and the orientation assumed. 8-bit values are display grey levels. Values
    above 255 are a CT's stored values, read as Hounsfield units with the offset -1024: COVID-CTset (Rahimzadeh et al.,
    Biomed. Signal Process. Control 68, 2021) published the pixels of a SOMATOM Scope unchanged, 0 to almost 5000,
    without the rescale tags; DICOM series of that scanner (COVID-CT-MD) have the intercept -1024, and COVIDNet-CT reads
    COVID-CTset with it.

    Raises:
        ScanError: mixed sizes or kinds, colour, damaged, or larger than the safety limits.
    """
    ordered = sorted(files, key=natural_key)
    if len(ordered) > MAX_SLICES:
        raise ScanError(f"expected at most {MAX_SLICES} slices, found {len(ordered)}; give the folder of one scan")
    first = _grey(ordered[0])
    check_voxels((len(ordered), *first.shape))
    check_ratio(first.nbytes * len(ordered), sum(file.stat().st_size for file in ordered))
    volume = np.empty((len(ordered), *first.shape), first.dtype)  # (D, H, W)
    for index, file in enumerate(ordered):
        picture = _grey(file)
        if picture.shape != first.shape or picture.dtype != first.dtype:
            raise ScanError(
                f"slice {index} is {picture.shape} {picture.dtype}, expected {first.shape} {first.dtype} as the first; "
                "give slices of one scan only"
            )
        volume[index] = picture
    stored = volume.dtype == np.uint16 and int(volume.max()) > 255
    intensity: Intensity = "hu" if stored else "display"
    remarks = ["pictures carry no geometry: slices are assumed to run from head to feet, spacing is unknown"]
    if stored:
        remarks.append(f"values above 255 are read as stored CT values, HU = value {STORED_OFFSET_HU}")
        volume = np.minimum(volume, np.iinfo(np.int16).max) + np.int32(STORED_OFFSET_HU)
    return Scan(volume.astype(np.int16), (0.0, 0.0, 0.0), intensity, "slices", "assumed", tuple(remarks))


def _grey(file: Path) -> np.ndarray:
    """One picture as uint8 or uint16 ``(H, W)``; its size is checked before it is decoded."""
    check_file(file)
    try:
        # from memory: of a file, Pillow takes as much as a damaged length says, which may be gigabytes
        with Image.open(BytesIO(file.read_bytes())) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ScanError(f"a slice has {image.height} x {image.width} pixels, expected at most {MAX_PIXELS}")
            if image.mode == "L":
                return np.asarray(image)
            if image.mode in ("I;16", "I;16B", "I"):
                return _sixteen_bits(np.asarray(image))
            if image.mode in ("RGB", "RGBA", "P", "LA"):
                return _same_channels(np.asarray(image.convert("RGB")))
            raise ScanError(f"a slice has pixels of kind {image.mode}, expected 8-bit or 16-bit grey; export again")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise ScanError(f"a slice can't be decoded ({type(error).__name__}); it is damaged or not a picture") from None


def _sixteen_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max:
        raise ScanError("a slice has values outside 0..65535, expected 16-bit grey; export the slices again")
    return pixels.astype(np.uint16)


def _same_channels(pixels: np.ndarray) -> np.ndarray:
    """The grey level of an RGB picture ``(H, W, 3)`` whose channels agree."""
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    if spread.max() > GREY_TOLERANCE:
        raise ScanError("a slice is in colour, expected grey levels; export the slices without annotations")
    return pixels[:, :, 1]
