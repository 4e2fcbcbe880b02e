"""What a DICOM header says about a CT slice, classic or enhanced multi-frame, read without its pixels."""

import mmap
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from covidnet.data.sources.axes import MAX_ROTATION_DEG
from covidnet.errors import ScanError

MAX_INFLATED_BYTES = 2**29
MAX_FRAMES = 4096
MAX_SIDE = 4096
# what pydicom and its decoders raise on damaged or hostile files
PARSE_ERRORS = (
    InvalidDicomError, BytesLengthException, OSError, EOFError, ValueError, TypeError, KeyError, IndexError,
    AttributeError, NotImplementedError, RuntimeError, OverflowError, struct.error, zlib.error,
)  # fmt: skip
BARE_ENDINGS = ("", ".dcm", ".ima")  # files with these names may lack the preamble
PROJECTIONS = {"LOCALIZER", "SCOUT", "MIP", "MINIP", "MAX_IP", "PROJECTION IMAGE", "VOLUME", "VRT", "SCREEN SAVE"}
PROCESSED = {"DERIVED", "SECONDARY", "REFORMATTED", "MPR"}
CHEST = ("CHEST", "THORAX", "LUNG", "TORSO", "BODY")
_KEYWORDS = [
    "SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "ConvolutionKernel", "BodyPartExamined",
    "InstanceNumber", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsStored", "PixelRepresentation",
    "PhotometricInterpretation", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness",
    "RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "PatientID", "SOPInstanceUID", "AcquisitionNumber", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "BitsAllocated", "HighBit", "PlanarConfiguration", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
]  # fmt: skip
TAG_OF = {keyword: Tag(keyword) for keyword in _KEYWORDS}  # once, not for every file
TAGS = list(TAG_OF.values())
PIXELS = [Tag("PixelData")]


@dataclass(frozen=True)
class Slice:
    """One slice: a file, or a frame of one.

    Args:
        series: slices with equal keys are of one series.
        patient: PatientID, to tell two patients in one folder; no message has it.
        instance: SOPInstanceUID, to tell a copy of a slice from another one at its place; no message has it.
        orientation: direction cosines of a row and of a column (ImageOrientationPatient); None: not stated.
        position: of the first pixel, LPS mm; None: not stated.
        pixel_spacing_mm: between rows, between columns.
        padding: first and last stored value that mean "no data".
        header: what `read_pixels` needs of it.
        pixels_at: byte in the file at which the element with the pixels begins; None where the file is deflated.
        inverted: MONOCHROME1.
    """

    file: Path
    frame: int
    frames: int
    series: tuple[object, ...]
    modality: str
    image_type: frozenset[str]
    body_part: str
    number: int
    shape: tuple[int, int]
    samples: int
    bits_stored: int
    signed: bool
    inverted: bool
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    pixel_spacing_mm: tuple[float, ...]
    thickness_mm: float | None
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    acquisition: str
    patient: str = field(repr=False)
    instance: str = field(repr=False)
    header: Dataset = field(repr=False, compare=False)
    pixels_at: int | None

    @property
    def directions(self) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors along a row and along a column."""
        return _plane(self.orientation)[:2]

    @property
    def normal(self) -> np.ndarray:
        """Unit vector perpendicular to the image plane."""
        return _plane(self.orientation)[2]

    @property
    def position_mm(self) -> np.ndarray:
        return np.asarray(self.position, float)

    @property
    def depth_mm(self) -> float:
        """Position along the normal."""
        return float(self.position_mm @ self.normal)

    @property
    def stored_range(self) -> tuple[int, int]:
        half = 2 ** (self.bits_stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    @property
    def acquired(self) -> bool:
        return not self.image_type & PROCESSED

    @property
    def chest(self) -> bool:
        return not self.body_part or any(word in self.body_part for word in CHEST)

    def refusal(self) -> str:
        """Why the slice's series can't be read as an axial chest CT; empty: it can."""
        if self.modality != "CT":
            # one of the standard's codes; anything else could be text that a person typed
            found = self.modality if re.fullmatch("[A-Z]{2,8}", self.modality) else "another"
            return f"expected modality CT, found {found}"
        if self.image_type & PROJECTIONS:
            return f"found a localizer, projection or screen copy ({', '.join(sorted(self.image_type & PROJECTIONS))})"
        if self.samples != 1:
            return f"expected one value per pixel, found {self.samples} (a colour picture)"
        if self.orientation is None or self.position is None:
            return "ImageOrientationPatient or ImagePositionPatient is missing; export the series with its geometry"
        if len(self.pixel_spacing_mm) != 2 or min(self.pixel_spacing_mm) <= 0:
            return "PixelSpacing is missing or zero; export the series with its geometry"
        lengths = np.linalg.norm(np.reshape(self.orientation, (2, 3)), axis=1)
        if lengths.min() < 0.5 or abs(self.directions[0] @ self.directions[1]) > 0.01:
            return "ImageOrientationPatient isn't two perpendicular directions; export the series with its geometry"
        return _plane_refusal(self.normal)


@lru_cache(64)
def _plane(orientation: tuple[float, ...] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors along a row, along a column, and perpendicular to both."""
    cosines = np.asarray(orientation, float).reshape(2, 3)
    along_row, along_column = cosines / np.linalg.norm(cosines, axis=1, keepdims=True)
    normal = np.cross(along_row, along_column)
    return along_row, along_column, normal / np.linalg.norm(normal)


def _plane_refusal(normal: np.ndarray) -> str:
    tilt_deg = float(np.rad2deg(np.arccos(np.abs(normal).max().clip(0, 1))))
    plane = ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())]
    if plane != "axial":
        return f"expected axial slices, found {plane} ones; export the axial series"
    if tilt_deg > MAX_ROTATION_DEG:
        return f"expected axial slices, found oblique ones ({tilt_deg:.0f} degrees off); export the axial series"
    return ""


def is_dicom(file: Path) -> bool:
    """Whether a file is DICOM: by its magic number, or by its header where the preamble was left out."""
    return _head(file)[128:132] == b"DICM" or _parse(file)[0] is not None


def read_headers(files: Sequence[Path]) -> tuple[list[Slice], list[str]]:
    """Every CT-like slice among ``files``, and remarks; files that aren't DICOM images are passed over.

    Raises:
        ScanError: no image at all, or one larger than the limits.
    """
    slices: list[Slice] = []
    parsed: dict[tuple[object, ...], Any] = {}
    damaged = pixelless = 0
    for file in files:
        header, pixels_at = _parse(file)
        if header is None:
            damaged += file.suffix.lower() in BARE_ENDINGS[1:]
        elif "Rows" in header:
            try:
                slices += _slices(file, _Header(header, parsed), pixels_at)
            except PARSE_ERRORS as error:
                raise ScanError(f"a header has a malformed value ({type(error).__name__}); export again") from None
        else:
            pixelless += 1
    if not slices:
        raise ScanError(f"expected DICOM images, found none among {len(files)} file(s)")
    remarks = [f"{damaged} damaged DICOM file(s) were passed over"] if damaged else []
    remarks += [f"{pixelless} DICOM object(s) without pixels were passed over"] if pixelless else []
    return slices, remarks


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(1024)


def _parse(file: Path) -> tuple[Dataset | None, int | None]:
    """The header, or None where the file isn't DICOM, and where the pixels begin, if that is a place in the file."""
    head = _head(file)
    if head[128:132] != b"DICM" and file.suffix.lower() not in BARE_ENDINGS:
        return None, None
    deflated = DeflatedExplicitVRLittleEndian.encode() in head
    try:
        if deflated:
            _check_inflated_bytes(file)
        with mapped(file) as content:
            header = dcmread(content, force=True, stop_before_pixels=True, specific_tags=TAGS)
            pixels_at = None if deflated else content.tell()
    except PARSE_ERRORS:
        return None, None
    return (header if "SOPClassUID" in header or "Rows" in header else None), pixels_at


def read_pixels(item: Slice) -> Dataset:
    """The slice's header with its file's pixels, still compressed; what lies before them isn't read again.

    Raises:
        any of `PARSE_ERRORS`.
    """
    with mapped(item.file) as content:
        if item.pixels_at is None:
            return dcmread(content, force=True)
        content.seek(item.pixels_at)
        dataset = read_dataset(content, *item.header.original_encoding, specific_tags=PIXELS)
    dataset.update(item.header)
    dataset.file_meta = item.header.file_meta
    return dataset


@contextmanager
def mapped(file: Path) -> Iterator[mmap.mmap]:
    """A file's bytes, with no more to give than is there: a length in a header may say 4 GiB."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _check_inflated_bytes(file: Path) -> None:
    """Inflate a deflated file up to the limit only, since pydicom inflates all of it before it can be asked."""
    with file.open("rb") as stream:
        stream.seek(132)
        start = stream.read(12)
        length = struct.unpack("<I", start[8:12])[0] if start[:4] == b"\x02\x00\x00\x00" else 0
        stream.seek(144 + length)
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        total = 0
        while packed := inflater.unconsumed_tail or stream.read(2**20):
            total += len(inflater.decompress(packed, 2**24))
            if total > MAX_INFLATED_BYTES:
                raise ScanError(
                    f"a deflated file inflates beyond {MAX_INFLATED_BYTES // 2**20} MiB; export it uncompressed"
                )
            if inflater.eof:
                return


class _Header:
    """A dataset whose elements aren't parsed where an equal one has been: slices of a series share most of theirs.

    Args:
        dataset: of one file.
        parsed: values by element, kept between files.
    """

    def __init__(self, dataset: Dataset, parsed: dict[tuple[object, ...], Any]) -> None:
        self.dataset, self._parsed = dataset, parsed

    def get(self, keyword: str, default: Any = None) -> Any:
        """Value of the element, or the default where there is none."""
        element = self.dataset.get_item(TAG_OF[keyword])
        if element is None:
            return default
        if not isinstance(element, RawDataElement) or not isinstance(element.value, bytes):
            return self.dataset[element.tag].value
        key = (element.tag, element.VR, element.value, element.is_little_endian)
        if key not in self._parsed:
            self._parsed[key] = self.dataset[element.tag].value
        return self._parsed[key]


def _slices(file: Path, header: _Header, pixels_at: int | None) -> list[Slice]:
    frames = int(header.get("NumberOfFrames") or 1)
    rows, columns = int(header.get("Rows")), int(header.get("Columns") or 0)
    if not (0 < frames <= MAX_FRAMES and 0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise ScanError(
            f"a file has {frames} frames of {rows} x {columns}; at most {MAX_FRAMES} of {MAX_SIDE}^2 are read"
        )
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    per_frame = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    return [
        _slice(file, header, pixels_at, frame, frames, [*per_frame[frame : frame + 1], *shared])
        for frame in range(frames)
    ]


def _slice(file: Path, header: _Header, pixels_at: int | None, frame: int, frames: int, groups: list[Dataset]) -> Slice:
    def find(macro: str, keyword: str) -> Any:
        """Value of a frame: from its functional groups (enhanced CT), else from the header (classic CT)."""
        for group in groups:
            items = group.get(macro)
            if items and keyword in items[0]:
                return items[0].get(keyword)
        return header.get(keyword)

    orientation = _numbers(find("PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    spacing_mm = _numbers(find("PixelMeasuresSequence", "PixelSpacing"), 2) or ()
    thickness_mm = _numbers(find("PixelMeasuresSequence", "SliceThickness"), 1)
    signed = bool(header.get("PixelRepresentation"))
    kernel = str(header.get("ConvolutionKernel"))
    shape = (int(header.get("Rows")), int(header.get("Columns")))
    geometry = tuple(round(value, 2) for value in (*(orientation or ()), *spacing_mm, *(thickness_mm or ())))
    slope = _numbers(find("PixelValueTransformationSequence", "RescaleSlope"), 1)
    intercept = _numbers(find("PixelValueTransformationSequence", "RescaleIntercept"), 1)
    return Slice(
        file=file,
        frame=frame,
        frames=frames,
        series=(str(header.get("SeriesInstanceUID")), shape, geometry, kernel),
        modality=_modality(header),
        image_type=frozenset(str(word).upper() for word in _list(header.get("ImageType"))),
        body_part=str(header.get("BodyPartExamined") or "").upper(),
        number=int(header.get("InstanceNumber") or 0),
        shape=shape,
        samples=int(header.get("SamplesPerPixel") or 1),
        bits_stored=int(header.get("BitsStored") or 16),
        signed=signed,
        inverted=header.get("PhotometricInterpretation") == "MONOCHROME1",
        orientation=orientation,
        position=_numbers(find("PlanePositionSequence", "ImagePositionPatient"), 3),
        pixel_spacing_mm=spacing_mm,
        thickness_mm=thickness_mm[0] if thickness_mm else None,
        slope=slope[0] if slope else 1.0,
        intercept=intercept[0] if intercept else 0.0,
        padding=_padding(header, signed),
        acquisition=str(header.get("AcquisitionNumber")),
        patient=str(header.get("PatientID") or "").strip(),
        instance=str(header.get("SOPInstanceUID") or "").strip(),
        header=header.dataset,
        pixels_at=pixels_at,
    )


def _modality(header: _Header) -> str:
    """The stated modality; where there is none, what the kind of object implies (de-identified files lose the tag)."""
    stated = str(header.get("Modality") or "").strip().upper()
    if stated:
        return stated
    name = getattr(header.get("SOPClassUID"), "name", "")
    return "CT" if not name or "CT Image" in name else "unknown"


def _padding(header: _Header, signed: bool) -> tuple[int, int] | None:
    first = header.get("PixelPaddingValue")
    if first is None:
        return None
    last = header.get("PixelPaddingRangeLimit", first)
    kind = np.int16 if signed else np.uint16
    ends = sorted(int(np.array(int(end) & 0xFFFF, np.uint16).astype(kind)) for end in (first, last))
    return ends[0], ends[1]


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """``count`` finite numbers, or None where the header has something else."""
    numbers = tuple(float(part) for part in _list(value))
    return numbers if len(numbers) == count and all(map(np.isfinite, numbers)) else None


def _list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | int | float) else list(value)
