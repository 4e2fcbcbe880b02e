"""Maps at the scan's resolution."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from covidnet.data.preprocess import Spec, box_to_scan
from covidnet.data.sources import read_scan
from serving import decode, heat
from serving.decode import Geometry

SPEC = Spec(size=(16, 64, 64))


def test_a_map_has_the_interpolated_evidence_in_bytes_and_none_outside_of_the_box() -> None:
    rng = np.random.default_rng(0)
    cam = rng.normal(size=(3, 4, 5)).astype(np.float32)
    box = ((2, 14), (3, 30), (1, 25))
    evidence, peak = heat.on_scan(cam, box, (16, 32, 26))
    expected = np.clip(box_to_scan(cam, box, (16, 32, 26)), 0, None)
    assert peak == pytest.approx(cam.max())
    assert np.abs(evidence * (peak / 255) - expected).max() <= peak / 255
    assert evidence[:2].max() == evidence[:, :3].max() == 0
    assert evidence[2:14, 3:30, 1:25].max() > 200


def test_a_map_without_evidence_is_empty() -> None:
    evidence, _ = heat.on_scan(np.full((1, 1, 1), -2.0, np.float32), ((0, 4), (0, 4), (0, 4)), (4, 4, 4))
    assert evidence.max() == 0


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PIR"])
def test_a_map_as_nifti_lies_where_its_scan_lies(tmp_path: Path, codes: str) -> None:
    """One bright voxel of the scan and the map of it are at one place of the world, whatever the file's axes."""
    voxels = np.full((40, 36, 20), -1000, np.int16)  # right, anterior, superior
    voxels[10, 8, 5] = 1000
    image = nibabel.Nifti1Image(voxels, np.array([[0.8, 0, 0, -9], [0, 0.8, 0, 5], [0, 0, 2.5, 70], [0, 0, 0, 1.0]]))
    stored = image.as_reoriented(
        nibabel.orientations.ornt_transform(*map(nibabel.orientations.axcodes2ornt, ("RAS", codes)))
    )
    nibabel.save(stored, tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")
    geometry = Geometry(scan.shape, scan.spacing_mm, scan.orientation, scan.affine)
    content = heat.nifti((scan.voxels > 0).astype(np.uint8) * 255, 3.0, geometry)
    found = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    assert found.shape == stored.shape
    assert np.allclose(found.affine, stored.affine)
    assert np.array_equal(np.argwhere(found.get_fdata() > 0), np.argwhere(stored.get_fdata() > 0))
    assert found.get_fdata().max() == pytest.approx(3.0)


def test_the_page_gets_scan_and_map_on_one_grid(nifti: Path) -> None:
    decoded = decode.Decoding(nifti, SPEC, draw=True).run()
    assert decoded.picture is not None
    scan, evidence = (
        nibabel.Nifti1Image.from_bytes(part) for part in heat.viewer(decoded.picture, np.ones((1, 2, 2), np.float32))
    )
    assert scan.shape == evidence.shape == decoded.geometry.shape[::-1]
    assert np.array_equal(scan.affine, evidence.affine)
    assert nibabel.aff2axcodes(scan.affine) == ("L", "P", "I")
