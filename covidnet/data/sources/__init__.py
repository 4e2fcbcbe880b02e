"""Raw scans, whatever their format, as `Scan`: `read_scan` decodes one, `discover` lists a dataset."""

from pathlib import Path
from typing import Any

from covidnet.data.scan import Scan
from covidnet.data.sources import archive, dicom, limits, nifti, slices
from covidnet.data.sources.discovery import ScanRef, discover, keyed_hash, pseudonym
from covidnet.errors import CovidnetError, ScanError, UsageError, fault_of_machine

__all__ = ["ScanRef", "discover", "facts", "keyed_hash", "pseudonym", "read_scan"]

SUPPORTED = (
    "a DICOM file, a folder or zip of one DICOM series, a NIfTI (.nii, .nii.gz), NRRD or MetaImage (.nrrd, .mha, .mhd) "
    "file, or a folder of 8-bit PNG/JPG or 16-bit TIFF slices"
)


def read_scan(path: Path) -> Scan:
    """Decode one chest CT into the project's axes; the format is recognised from the content and the file endings.

    Args:
        path: a file, a folder (its subfolders are searched for a DICOM series), or a zip of such a folder.

    Raises:
        UsageError: nothing lies at ``path`` (which isn't repeated, since it may carry a patient's name).
        ScanError: not a supported format, not an axial chest CT, damaged, or larger than the safety limits.
        OSError: the disk is full or broken, which is no fault of the scan.
    """
    try:
        return _read(Path(path))
    except (CovidnetError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything on damaged files, and quote names and values when they do
        if isinstance(error, OSError) and fault_of_machine(error):
            raise
        raise ScanError(f"can't be read ({type(error).__name__}); the file is damaged or of an unknown kind") from None


def _read(path: Path) -> Scan:
    if not path.exists():
        raise UsageError(f"no such file or folder; expected {SUPPORTED}")
    if path.is_dir():
        return _read_folder(path)
    limits.check_file(path)
    if path.suffix.lower() == ".zip":
        with archive.unpacked(path) as folder:
            return _read_folder(folder)
    if nifti.is_volume(path):
        return nifti.read(path)
    if dicom.is_dicom(path):
        return dicom.read([path])
    if slices.is_picture(path):
        raise ScanError("expected a whole scan, found one picture; give the folder that holds all its slices")
    raise ScanError(f"the file is in no format that can be read here; expected {SUPPORTED}")


def facts(scan: Scan) -> dict[str, Any]:
    """What `covidnet inspect` prints: JSON-ready, ``shape`` as [D, H, W], ``spacing_mm`` as [z, y, x]."""
    return {
        "format": scan.format,
        "shape": list(scan.shape),
        "spacing_mm": [round(mm, 4) for mm in scan.spacing_mm],
        "orientation": scan.orientation,
        "hu_min": int(scan.voxels.min()),
        "hu_max": int(scan.voxels.max()),
        "slices": scan.shape[0],
        "intensity": scan.intensity,
        "warnings": list(scan.warnings),
    }


def _read_folder(folder: Path) -> Scan:
    """The scan of a folder: its DICOM files if there are any, else a volume, else pictures."""
    files = limits.files_of(folder)
    volumes = [p for p in files if nifti.is_volume(p)]
    pictures = [p for p in files if slices.is_picture(p)]
    others = [p for p in files if p not in {*volumes, *pictures}]
    if any(dicom.is_dicom(p) for p in others):
        return dicom.read(others)
    if len(volumes) > 1:
        raise ScanError(f"expected one scan in the folder, found {len(volumes)} volume files; give one of them")
    if volumes:
        return nifti.read(volumes[0])
    folders = {p.parent for p in pictures}
    if len(folders) > 1:
        raise ScanError(f"expected one scan, found slices in {len(folders)} subfolders; give one of them")
    if pictures:
        return slices.read(pictures)
    raise ScanError(f"found {len(files)} file(s) in the folder and no scan among them; expected {SUPPORTED}")
