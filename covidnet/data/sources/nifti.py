"""NIfTI, and NRRD and MetaImage through SimpleITK, in any orientation and number type."""

import logging
import os
import re
import zlib
from math import prod
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

from covidnet.data.scan import Intensity, Scan
from covidnet.data.sources import axes
from covidnet.data.sources.limits import check_ratio, check_voxels
from covidnet.errors import ScanError

NIFTI = (".nii", ".nii.gz")
ITK = (".nrrd", ".mha", ".mhd")
DATA_FILE = re.compile(rb"(?im)^(?:ElementDataFile|data ?file)[ \t]*[=:][ \t]*(\S[^\r\n]*)")
AIR_HU = -1024.0
UNITS_MM = {"meter": 1000.0, "micron": 0.001}
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# what these libraries write to the log quotes file names and header values
sitk.ProcessObject.SetGlobalWarningDisplay(False)
logging.getLogger("nibabel").setLevel(logging.CRITICAL)


def is_volume(path: Path) -> bool:
    """Whether the file's ending is one that this module reads."""
    return path.name.lower().endswith(NIFTI + ITK)


def stem(path: Path) -> str:
    """The file's name without its (possibly double) ending."""
    name = path.name
    ending = next(end for end in (".nii.gz", *NIFTI, *ITK) if name.lower().endswith(end))
    return name[: -len(ending)]


def read(path: Path) -> Scan:
    """Read one volume file.

    A file with unsigned 8-bit voxels was windowed before it was written, so its intensity is ``"display"``; anything
    else is taken as Hounsfield units, with a warning where no voxel is below zero.

    Raises:
        ScanError: damaged, not one 3D volume, without usable spacing, not scalar, too large, or mostly not a number.
    """
    try:
        voxels, affine, remarks = _read_itk(path) if path.name.lower().endswith(ITK) else _read_nifti(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, RuntimeError, zlib.error) as error:
        raise ScanError(f"the volume file can't be read ({type(error).__name__}); it is damaged or cut off") from None
    voxels, notes = _whole_numbers(voxels)
    placed = axes.place(voxels, affine)
    intensity: Intensity = "display" if voxels.dtype == np.uint8 else "hu"
    if intensity == "hu" and placed.voxels.min() >= 0:
        notes.append("no voxel is below 0; the values may not be Hounsfield units")
    return Scan(
        placed.voxels.astype(np.int16, copy=False),
        placed.spacing_mm,
        intensity,
        "nifti",
        placed.orientation,
        (*remarks, *notes, *placed.warnings),
        placed.affine,
    )


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Voxels in index order ``(i, j, k)``, the RAS affine, and what is odd about the header's geometry."""
    image = nibabel.load(path)
    header = image.header
    shape = _one_volume(image.shape)
    if header.get_data_dtype().kind not in "iuf":
        raise ScanError(f"expected whole or floating-point voxels, found {header.get_data_dtype()}; export grey values")
    with ImageOpener(path) as stream:
        as_stored = type(header).from_fileobj(stream, check=False)  # nibabel mends a spacing of 0 to 1 mm when it opens
    if not (np.abs(as_stored["pixdim"][1:4]) > 0).all():
        raise ScanError("expected voxel spacing above 0 mm in the header (pixdim); mend the header's geometry")
    check_ratio(prod(shape) * header.get_data_dtype().itemsize, path.stat().st_size)
    affine, remarks = _affine(header)
    scaled = (image.dataobj.slope, image.dataobj.inter) != (1, 0)  # the header forgets them once the file is open
    voxels = image.get_fdata(dtype=np.float32, caching="unchanged") if scaled else np.asanyarray(image.dataobj)
    return voxels.reshape(shape), affine, remarks


def _affine(header: nibabel.Nifti1Header) -> tuple[np.ndarray, list[str]]:
    """Index to RAS millimetres: by sform, else qform, else the standard's default; and what is odd about them."""
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    remarks = []
    if sform is not None and not abs(np.linalg.det(sform[:3, :3])) > 1e-9:  # not a number compares false
        sform = None
        remarks.append("sform is no orientation (its axes don't span a volume); it is ignored")
    if sform is None and qform is None:
        remarks.append("the header gives no orientation (sform and qform are unset); NIfTI's default LAS is assumed")
    elif sform is not None and qform is not None and not np.allclose(qform, sform, atol=0.05):
        remarks.append("sform and qform disagree; sform is used")
    affine = next((form for form in (sform, qform) if form is not None), header.get_base_affine())
    unit_mm = UNITS_MM.get(header.get_xyzt_units()[0], 1.0)
    return np.diag([unit_mm, unit_mm, unit_mm, 1.0]) @ affine, remarks


def _read_itk(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    stored_bytes = _data_bytes(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    shape = _one_volume(reader.GetSize())
    if reader.GetNumberOfComponents() != 1:
        raise ScanError(f"expected one value per voxel, found {reader.GetNumberOfComponents()}; export grey values")
    check_ratio(2 * prod(shape), stored_bytes)
    affine = np.eye(4)
    rank = reader.GetDimension()
    affine[:3, :3] = np.reshape(reader.GetDirection(), (rank, rank))[:3, :3] * np.asarray(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    voxels = sitk.GetArrayFromImage(reader.Execute()).T.reshape(shape)  # SimpleITK's arrays are (k, j, i)
    return voxels, LPS_TO_RAS @ affine, []


def _data_bytes(path: Path) -> int:
    """Size of a volume's files, once it is sure that its header names none elsewhere: it could be any of this machine."""
    with path.open("rb") as stream:
        named = [name.strip() for name in DATA_FILE.findall(stream.read(2**16))]
    if any(b"/" in name or b"\\" in name or b"%" in name or name.split()[0] == b"LIST" for name in named):
        raise ScanError("the header takes its voxels from another folder or a list of files; store them beside it")
    beside = [path.parent / os.fsdecode(name) for name in named]
    if any(file.is_symlink() for file in beside):
        raise ScanError("the header takes its voxels through a symbolic link; put the file itself beside it")
    return sum(file.stat().st_size for file in (path, *beside) if file.is_file())


def _one_volume(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise ScanError(f"expected one 3D volume, found shape {list(shape)}; export a single time point or channel")
    check_voxels(shape)
    return shape[0], shape[1], shape[2]


def _whole_numbers(voxels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Voxels as uint8 or int16, and what had to be changed for that."""
    if voxels.dtype in (np.dtype(np.uint8), np.dtype(np.int16)):
        return voxels, []
    notes = []
    if voxels.dtype.kind == "f":
        broken = ~np.isfinite(voxels)
        share = float(broken.mean())
        if share > 0.5:
            raise ScanError(f"{share:.0%} of the voxels are not a number, expected Hounsfield units; export again")
        if share > 0:
            notes.append(f"{share:.2%} of the voxels are not a number; read as air")
            voxels = np.where(broken, AIR_HU, voxels)
        if np.ptp(voxels) <= 1.0:
            raise ScanError("the voxels span less than 1, expected Hounsfield units; export without normalising")
        voxels = np.rint(voxels)
    limits = np.iinfo(np.int16)
    return np.clip(voxels, limits.min, limits.max).astype(np.int16), notes
