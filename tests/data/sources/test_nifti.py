"""NIfTI and its kin: every axis order and sign, number types, and damaged headers."""

import itertools
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from covidnet.data.sources import axes, limits, read_scan
from covidnet.errors import ScanError

SPACING_MM = (4.0, 1.5, 0.8)  # z, y, x of `phantom`
# index directions of the project's array (slice, row, column) as RAS+ vectors: inferior, posterior, left
PROJECT_TO_RAS = np.array([[0, 0, -1], [0, -1, 0], [-1, 0, 0]], float)


def phantom() -> np.ndarray:
    """``int16 (5, 7, 9)`` that equals none of its permutations or mirror images."""
    return np.random.default_rng(0).integers(-1000, 1000, (5, 7, 9)).astype(np.int16)


def stored(order: tuple[int, ...], signs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The phantom with its axes permuted and mirrored, and the affine that says so; built without nibabel."""
    voxels = phantom().transpose(order)
    affine = np.eye(4)
    for index, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[:3, index] = PROJECT_TO_RAS[:, axis] * SPACING_MM[axis] * sign
        if sign < 0:
            voxels = np.flip(voxels, index)
    return voxels, affine


def save(file: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, stored((2, 1, 0), (1, 1, 1))[1] if affine is None else affine), file)
    return file


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_all_48_orientations_come_out_alike(tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    scan = read_scan(save(tmp_path / "scan.nii", *stored(order, signs)))
    assert np.array_equal(scan.voxels, phantom())
    assert scan.spacing_mm == pytest.approx(SPACING_MM)
    letters = ["IS", "PA", "LR"]
    assert scan.orientation == "".join(letters[a][0 if s > 0 else 1] for a, s in zip(order, signs, strict=True))
    assert scan.warnings == ()


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd", "scan.mha", "scan.mhd"])
def test_file_kinds(tmp_path: Path, name: str) -> None:
    image = sitk.GetImageFromArray(phantom())  # SimpleITK: identity direction is LPS, so slices run to the head
    image.SetSpacing(SPACING_MM[::-1])
    sitk.WriteImage(image, str(tmp_path / name))
    scan = read_scan(tmp_path / name)
    assert np.array_equal(scan.voxels, phantom()[::-1])
    assert scan.spacing_mm == pytest.approx(SPACING_MM)
    assert (scan.format, scan.intensity, scan.orientation) == ("nifti", "hu", "LPS")


@pytest.mark.parametrize("elsewhere", ["../secret.raw", "/secret.raw", "LIST"])
def test_headers_that_point_to_other_files_are_refused(tmp_path: Path, elsewhere: str) -> None:
    for name, key in (("scan.mhd", "ElementDataFile ="), ("scan.nrrd", "data file:")):
        sitk.WriteImage(sitk.GetImageFromArray(phantom()), str(tmp_path / name))
        lines = (tmp_path / name).read_bytes().split(b"\n")
        kept = [line for line in lines[:12] if not line.startswith(b"ElementDataFile")]
        (tmp_path / name).write_bytes(b"\n".join([kept[0], f"{key} {elsewhere}".encode(), *kept[1:]]))
        with pytest.raises(ScanError, match="from another folder or a list"):
            read_scan(tmp_path / name)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32, np.float64])
def test_number_types(tmp_path: Path, kind: type) -> None:
    voxels = phantom().transpose(2, 1, 0).astype(kind)
    image = nibabel.Nifti1Image(voxels, stored((2, 1, 0), (1, 1, 1))[1], dtype=kind)
    nibabel.save(image, tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    assert scan.voxels.dtype == np.int16
    assert np.array_equal(scan.voxels, phantom())


def test_slope_and_intercept(tmp_path: Path) -> None:
    half = (phantom() + 1024) // 2
    file = save(tmp_path / "scan.nii", half.transpose(2, 1, 0))
    raw = bytearray(file.read_bytes())
    raw[112:120] = struct.pack("<ff", 2, -1024)  # scl_slope and scl_inter, NIfTI-1 standard
    file.write_bytes(raw)
    assert np.array_equal(read_scan(file).voxels, half * 2 - 1024)


def test_one_frame_in_four_dimensions_is_a_volume_and_two_are_not(tmp_path: Path) -> None:
    voxels = phantom().transpose(2, 1, 0)[..., None]
    assert np.array_equal(read_scan(save(tmp_path / "one.nii", voxels)).voxels, phantom())
    with pytest.raises(ScanError, match="one 3D volume"):
        read_scan(save(tmp_path / "two.nii", np.repeat(voxels, 2, axis=3)))


def test_a_few_not_a_numbers_become_air_and_are_told(tmp_path: Path) -> None:
    voxels = phantom().transpose(2, 1, 0).astype(np.float32)
    voxels[8, 6, 4], voxels[0, 0, 0] = np.nan, np.inf
    scan = read_scan(save(tmp_path / "scan.nii", voxels))
    assert scan.voxels[4, 6, 8] == scan.voxels[0, 0, 0] == -1024
    assert any("0.63% of the voxels are not a number" in warning for warning in scan.warnings)  # 2 of 315
    with pytest.raises(ScanError, match="not a number"):
        read_scan(save(tmp_path / "mostly.nii", np.where(voxels > -500, np.nan, voxels).astype(np.float32)))


def test_sform_and_qform_that_disagree_are_told_and_sform_wins(tmp_path: Path) -> None:
    voxels, affine = stored((2, 1, 0), (1, 1, 1))
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_qform(np.diag([-1, 1, 1, 1]) @ affine, code=1)
    image.set_sform(affine, code=1)
    nibabel.save(image, tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii")
    assert np.array_equal(scan.voxels, phantom())
    assert any("sform and qform disagree" in warning for warning in scan.warnings)


def test_no_orientation_in_the_header_is_told(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(phantom(), None)
    nibabel.save(image, tmp_path / "scan.nii")
    assert any("no orientation" in warning for warning in read_scan(tmp_path / "scan.nii").warnings)


def test_zero_spacing_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "scan.nii", phantom())
    raw = bytearray(file.read_bytes())
    raw[80:84] = bytes(4)  # pixdim[1], NIfTI-1 standard
    file.write_bytes(raw)
    with pytest.raises(ScanError, match="above 0 mm"):
        read_scan(file)
    with pytest.raises(ScanError, match="above 0 mm"):
        axes.place(phantom(), np.diag([0.0, 1, 1, 1]))


def test_oblique_volumes(tmp_path: Path) -> None:
    def turned(degrees: float) -> Path:
        angle = np.deg2rad(degrees)
        about_x = np.eye(4)
        about_x[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        voxels, affine = stored((2, 1, 0), (1, 1, 1))
        return save(tmp_path / f"{degrees}.nii", voxels, about_x @ affine)

    assert read_scan(turned(0.5)).warnings == ()
    assert read_scan(turned(5)).warnings == ("rotated 5.0 degrees from the body's axes; read on the nearest ones",)
    with pytest.raises(ScanError, match="rotated 25 degrees"):
        read_scan(turned(25))


def test_sheared_volumes_are_refused(tmp_path: Path) -> None:
    voxels, affine = stored((2, 1, 0), (1, 1, 1))
    affine[1, 2] = 1.0  # each 4 mm slice moves on by 1 mm: 14 degrees
    with pytest.raises(ScanError, match=r"14\.0 degrees off their normal"):
        read_scan(save(tmp_path / "scan.nii", voxels, affine))


def test_eight_bit_volumes_are_display_levels(tmp_path: Path) -> None:
    levels = (phantom() % 256).astype(np.uint8)
    assert read_scan(save(tmp_path / "scan.nii", levels.transpose(2, 1, 0))).intensity == "display"


def test_values_that_are_no_hounsfield_units_are_told_or_refused(tmp_path: Path) -> None:
    offset = read_scan(save(tmp_path / "offset.nii", phantom() + np.int16(1024)))
    assert any("may not be Hounsfield" in warning for warning in offset.warnings)
    with pytest.raises(ScanError, match="span less than 1"):
        read_scan(save(tmp_path / "unit.nii", (phantom() / 4000).astype(np.float32)))


@pytest.mark.parametrize("keep", [100, 348, 500])
def test_cut_off_files_are_refused(tmp_path: Path, keep: int) -> None:
    file = save(tmp_path / "scan.nii", phantom())
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ScanError, match="damaged or cut off"):
        read_scan(file)


def test_size_is_checked_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_VOXELS", 314)
    with pytest.raises(ScanError, match="1 to 314 voxels"):
        read_scan(save(tmp_path / "scan.nii", phantom()))
