"""Class activation maps as files: pictures for people, NIfTI and DICOM for viewers, aligned with the scan they are of.

    write(Path("overlays"), "0001_NCP", ["png", "gif", "nifti"], explained)

File names hold nothing of the scan's own name. DICOM objects join the study of their source, so they carry the identity
that the source carries.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from covidnet.data.scan import Scan
from covidnet.data.sources.axes import as_stored
from covidnet.errors import CovidnetError, UsageError
from covidnet.evaluation import overlay

if TYPE_CHECKING:
    from pydicom import Dataset

warnings.filterwarnings("ignore", module="highdicom")  # they quote the name of the patient
PRODUCT, SERIES_NUMBER = "covidnet3d", 9900
SEGMENT_FROM = 0.5  # of the map's maximum
FRAME_MS = 120


@dataclass(frozen=True, slots=True)
class Explained:
    """A scan with the map of its predicted class.

    Args:
        path: where the scan was read from.
        scan: the scan.
        heat: ``float32 (D, H, W)`` on its grid; positive is evidence for the class.
        label: the class.
        title: of pictures.
        window_hu: of pictures.
    """

    path: Path
    scan: Scan
    heat: np.ndarray
    label: str
    title: str
    window_hu: tuple[float, float]

    @property
    def voxels(self) -> np.ndarray:
        """Voxels as `overlay.overlay_slices` takes them."""
        return self.scan.voxels if self.scan.intensity == "hu" else self.scan.voxels.astype(np.uint8)


def write(folder: Path, name: str, formats: Sequence[str], explained: Explained) -> dict[str, str]:
    """Write the chosen formats, each ``<name>`` with its own ending.

    Returns:
        Format to the file, or the folder of a DICOM series.

    Raises:
        UsageError: an unknown format.
        CovidnetError: the scan has no geometry, isn't DICOM, or highdicom isn't installed.
    """
    require(formats)
    folder.mkdir(parents=True, exist_ok=True)
    return {chosen: str(WRITERS[chosen](folder / name, explained)) for chosen in formats}


def require(formats: Sequence[str]) -> None:
    """Refuse unknown formats.

    Raises:
        UsageError: naming those that there are.
    """
    for name in formats:
        if name not in WRITERS:
            raise UsageError(f"--explain-format {name}: expected {', '.join(WRITERS)}")


def _png(base: Path, e: Explained) -> Path:
    path = base.with_name(base.name + ".png")
    path.write_bytes(overlay.png(overlay.montage(e.voxels, e.heat, e.title, label=e.label, window_hu=e.window_hu)))
    return path


def _gif(base: Path, e: Explained) -> Path:
    """A sweep through all slices, at one colour scale."""
    path = base.with_name(base.name + ".gif")
    frames = overlay.sweep(e.voxels, e.heat, e.title, label=e.label, window_hu=e.window_hu)
    palette = frames[int(e.heat.max(axis=(1, 2)).argmax())].quantize(255)  # one for all, so that colours don't flicker
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    reduced[0].save(path, save_all=True, append_images=reduced[1:], duration=FRAME_MS, loop=0, optimize=False)
    return path


def _nifti(base: Path, e: Explained) -> Path:
    """The map in the axes and with the affine of the source."""
    import nibabel

    stored, affine = as_stored(e.heat, _affine(e.scan), e.scan.orientation)
    image = nibabel.Nifti1Image(np.ascontiguousarray(stored, dtype=np.float32), affine)
    image.header["descrip"] = f"class activation map, {e.label}, {PRODUCT}"[:79].encode()
    path = base.with_name(base.name + ".nii.gz")
    nibabel.save(image, path)
    return path


def _dicom_sc(base: Path, e: Explained) -> Path:
    """One Secondary Capture per slice, the overlay in colour, at the position of its source slice."""
    hd, sources, _ = _dicom(e)
    pictures = overlay.overlay_slices(e.voxels, e.heat, range(len(e.heat)), e.window_hu)  # (D, H, W, 3)
    stored = [_on_source_axes(pictures[..., channel], e.scan) for channel in range(3)]
    rgb = np.stack(stored, axis=-1)  # (slices, rows, columns, 3)
    base.mkdir(parents=True, exist_ok=True)
    series = hd.UID()
    for number, (index, source) in enumerate(sources.items(), start=1):
        picture = hd.sc.SCImage.from_ref_dataset(
            ref_dataset=source,
            pixel_array=np.ascontiguousarray(rgb[index]),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            series_instance_uid=series,
            series_number=SERIES_NUMBER,
            sop_instance_uid=hd.UID(),
            instance_number=number,
            manufacturer=PRODUCT,
            pixel_spacing=[float(mm) for mm in source.PixelSpacing],
            patient_orientation=("L", "P"),
        )
        for keyword in ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness"):
            if keyword in source:
                setattr(picture, keyword, source[keyword].value)
        picture.SeriesDescription = f"{PRODUCT} evidence for {e.label}, research only"
        picture.BurnedInAnnotation = "NO"
        picture.save_as(base / f"{number:04d}.dcm")
    return base


def _dicom_seg(base: Path, e: Explained) -> Path:
    """Where the map reaches half of its maximum, as a segmentation of the source series."""
    hd, sources, codes = _dicom(e)
    peak = max(float(e.heat.max()), 1e-30)
    mask = _on_source_axes(e.heat >= SEGMENT_FROM * peak, e.scan)  # (slices, rows, columns)
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=f"evidence for {e.label}",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="class activation map", version="1", family=codes.DCM.ArtificialIntelligence
        ),
    )
    segmentation = hd.seg.Segmentation(
        source_images=list(sources.values()),
        pixel_array=mask[list(sources)],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER + 1,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=PRODUCT,
        manufacturer_model_name=PRODUCT,
        software_versions="1",
        device_serial_number="0",
        content_description="Class activation map above half its maximum; research only",
        omit_empty_frames=False,
    )
    path = base.with_name(base.name + "_seg.dcm")
    segmentation.save_as(path)
    return path


WRITERS: dict[str, Callable[[Path, Explained], Path]] = {
    "png": _png,
    "gif": _gif,
    "nifti": _nifti,
    "dicom-sc": _dicom_sc,
    "dicom-seg": _dicom_seg,
}


def _affine(scan: Scan) -> np.ndarray:
    if scan.affine is None:
        raise CovidnetError("the scan's files say nothing of its geometry; choose png or gif for it")
    return scan.affine


def _on_source_axes(volume: np.ndarray, scan: Scan) -> np.ndarray:
    """A map over the scan as ``(slices, rows, columns)`` of its DICOM files."""
    stored, _ = as_stored(volume, _affine(scan), scan.orientation)  # (column, row, slice)
    return np.ascontiguousarray(stored.transpose(2, 1, 0))


def _dicom(e: Explained) -> tuple[Any, "dict[int, Dataset]", Any]:
    """highdicom, the source's slices by their index along its normal, and the codes of DICOM's dictionaries."""
    try:
        import highdicom
        from pydicom.sr.codedict import codes
    except ModuleNotFoundError:
        raise CovidnetError("DICOM output needs highdicom: `pip install 'covidnet3d[dicom]'`") from None
    if e.scan.format != "dicom":
        raise CovidnetError(f"DICOM output needs a DICOM series as its source, found {e.scan.format}; choose nifti")
    return highdicom, _source_slices(e), codes


def _source_slices(e: Explained) -> "dict[int, Dataset]":
    """The headers whose position is that of a slice of the scan; slices that were interpolated have none."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    stored, affine = as_stored(np.empty(e.scan.shape, np.bool_), _affine(e.scan), e.scan.orientation)
    to_index = np.linalg.inv(affine)
    series: dict[str, dict[int, Dataset]] = {}
    for file in sorted(e.path.rglob("*")) if e.path.is_dir() else [e.path]:
        try:
            header = dcmread(file, stop_before_pixels=True) if file.is_file() else None
        except InvalidDicomError:
            continue
        if header is None or "ImagePositionPatient" not in header:
            continue
        x, y, z = (float(mm) for mm in header.ImagePositionPatient)
        column, row, index = (to_index @ (-x, -y, z, 1.0))[:3]  # DICOM's millimetres are LPS
        same_grid = (header.Columns, header.Rows) == stored.shape[:2] and max(abs(column), abs(row)) < 0.5
        if same_grid and abs(index - round(index)) < 0.2 and 0 <= round(index) < stored.shape[2]:
            series.setdefault(str(header.SeriesInstanceUID), {}).setdefault(round(index), header)
    if not series:
        raise CovidnetError(
            "the DICOM files of the scan can't be matched with its slices (is it a zip or multi-frame?)"
        )
    found = max(series.values(), key=len)
    return dict(sorted(found.items()))
