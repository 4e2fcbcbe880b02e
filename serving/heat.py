"""Class activation maps on the scan's own grid: as bytes 0..255, as NIfTI, as a picture."""

import gzip
from collections.abc import Sequence
from dataclasses import replace

import nibabel
import numpy as np

from covidnet.data.preprocess import Box, box_to_scan
from covidnet.data.sources.axes import as_stored
from covidnet.evaluation import overlay
from serving.answers import Answer, ScanMap
from serving.decode import Decoded, Geometry, Picture
from serving.errors import Invalid

ON_SCAN = frozenset({"cam_scan", "cam_nifti"})
MAX_VOXELS = 48 * 2**20  # of one answer's maps; 180 slices of 512 x 512, and fits a gRPC message


def check_size(scans: Sequence[Decoded]) -> None:
    """Refuse maps that would take too much memory, before they are asked of the network.

    Raises:
        Invalid: naming the size and the limit.
    """
    voxels = sum(depth * height * width for depth, height, width in (scan.geometry.shape for scan in scans))
    if voxels > MAX_VOXELS:
        raise Invalid(f"maps of {voxels} voxels are too large, expected at most {MAX_VOXELS}; ask for cam instead")


def mapped(scan: Decoded, answer: Answer, maps: frozenset[str]) -> Answer:
    """The answer with its `ScanMap`, and with that as a file where ``maps`` has ``cam_nifti``."""
    heat, peak = on_scan(answer.predicted_cam, scan.prepared.box, scan.geometry.shape)
    file = nifti(heat, peak, scan.geometry) if "cam_nifti" in maps else b""
    return replace(answer, scan_map=ScanMap(heat, peak, file))


def on_scan(cam: np.ndarray, box: Box, shape: tuple[int, int, int]) -> tuple[np.ndarray, float]:
    """The evidence for a class, voxel by voxel; a slice at a time, since floats would take four times the memory.

    Args:
        cam: the class's map ``(d, h, w)``, of which the positive part is evidence.
        box: what of the scan the map covers.
        shape: ``(D, H, W)`` of the scan.

    Returns:
        ``uint8 (D, H, W)``, and the evidence that 255 stands for, in units of the logit.
    """
    peak = max(float(cam.max()), 1e-30)
    cells = cam.shape[0]
    planes = box_to_scan(cam, ((0, cells), *box[1:]), (cells, *shape[1:]))  # (d, H, W)
    # how much of each plane is in each slice (D, d): a map that is the identity, interpolated
    shares = box_to_scan(np.eye(cells)[..., None], (box[0], (0, cells), (0, 1)), (shape[0], cells, 1))[..., 0]
    heat = np.zeros(shape, np.uint8)
    for z in range(*box[0]):
        heat[z] = np.rint(np.clip(np.tensordot(shares[z], planes, 1) * (255 / peak), 0, 255))
    return heat, peak


def nifti(heat: np.ndarray, peak: float, geometry: Geometry) -> bytes:
    """A ``.nii.gz`` on the grid of the file that the scan came from, so that any viewer lays one over the other.

    Args:
        heat: ``uint8 (D, H, W)``.
        peak: what 255 stands for; readers that heed the header's slope get units of the logit.
        geometry: of the scan.
    """
    if geometry.affine is None:
        image = _placed(heat, geometry.spacing_mm)
    else:
        image = nibabel.Nifti1Image(*as_stored(heat, geometry.affine, geometry.orientation))
    image.header.set_slope_inter(peak / 255, 0)
    image.header["descrip"] = b"class activation map, research use only"
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def viewer(picture: Picture, cam: np.ndarray) -> tuple[bytes, bytes]:
    """The scan and its map on one grid, as two uncompressed ``.nii`` for the page."""
    heat, _ = on_scan(cam, picture.box, picture.voxels.shape)
    return _placed(picture.voxels, picture.spacing_mm).to_bytes(), _placed(heat, picture.spacing_mm).to_bytes()


def png(picture: Picture, cam: np.ndarray, title: str, label: str, window_hu: tuple[float, float]) -> bytes:
    """Slices in two rows, plain and with the map, as a PNG."""
    voxels = picture.voxels if picture.intensity == "hu" else picture.voxels.astype(np.uint8)
    heat = box_to_scan(cam, picture.box, picture.voxels.shape)
    return overlay.png(overlay.montage(voxels, heat, title, label=label, window_hu=window_hu))


def _placed(volume: np.ndarray, spacing_mm: tuple[float, float, float]) -> nibabel.Nifti1Image:
    """(D, H, W) in the project's axes: NIfTI's point right, anterior and superior, the other way each."""
    z, y, x = (mm or 1.0 for mm in spacing_mm)  # pictures have no spacing
    return nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.diag([-x, -y, -z, 1.0]))
