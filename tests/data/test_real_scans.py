"""Real chest CTs: one patient in three formats, against SimpleITK and against the facts published with the data."""

import csv
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.pixels import pixel_array

from covidnet.data.preprocess import NO_LUNGS, Spec, prepare
from covidnet.data.scan import Scan
from covidnet.data.sources import jpeg, read_scan
from covidnet.errors import ScanError

SPEC = Spec((32, 128, 128))
NIFTI = ["NCP_P001", "NCP_P002", "CP_cap001", "CP_cap002", "Normal_normal001", "Normal_normal002"]
NON_AXIAL = [
    "A002304/sagittal", "A098752/coronal", "A072894/coronal", "A067967/coronal", "A067967/sagittal",
]  # fmt: skip


@pytest.fixture(scope="session")
def p002(real_scans: Path) -> dict[str, Scan]:
    """One patient's scan as it was acquired, pooled to 256 x 256 at every second slice, and as 8-bit pictures."""
    base = real_scans / "covid-ct-md"
    return {
        "dicom": read_scan(base / "dicom" / "P002"),
        "nifti": read_scan(base / "nifti_256" / "NCP_P002.nii.gz"),
        "slices": read_scan(base / "png_ccccii_layout" / "NCP" / "P002" / "P002_s1"),
    }


def facts_of(real_scans: Path, patient: str) -> dict[str, str]:
    with (real_scans / "covid-ct-md" / "volumes.csv").open() as stream:
        return next(row for row in csv.DictReader(stream) if row["patient"] == patient)


def pooled(hu: np.ndarray) -> np.ndarray:
    """2 x 2 mean within each slice."""
    depth, height, width = hu.shape
    return hu.reshape(depth, height // 2, 2, width // 2, 2).mean(axis=(2, 4))


def test_hounsfield_units_equal_simpleitk_in_every_voxel(real_scans: Path, p002: dict[str, Scan]) -> None:
    files = sorted((real_scans / "covid-ct-md" / "dicom" / "P002").iterdir())
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])  # volumes.csv: lexical order is spatial for this patient
    assert np.array_equal(p002["dicom"].voxels, sitk.GetArrayFromImage(reader.Execute()))


def test_the_straight_way_to_jpeg_lossless_gives_what_pydicom_gives(real_scans: Path) -> None:
    dataset = dcmread(real_scans / "covid-ct-md" / "dicom" / "P002" / "IM0066.dcm")
    usual = pixel_array(dataset, decoding_plugin="imagecodecs")
    straight = jpeg.read(dataset)
    assert straight is not None
    assert straight.dtype == usual.dtype
    assert np.array_equal(usual, straight)
    dataset.BitsStored, dataset.PixelRepresentation = 12, 1
    assert jpeg.read(dataset) is None  # signs are pydicom's to extend


def test_facts_equal_the_published_ones(real_scans: Path, p002: dict[str, Scan]) -> None:
    facts = facts_of(real_scans, "P002")
    scan = p002["dicom"]
    width, height, depth = (int(side) for side in facts["shape_full"].split("x"))
    assert scan.shape == (depth, height, width) == (int(facts["n_slices"]), 512, 512)
    assert scan.spacing_mm == pytest.approx([float(mm) for mm in facts["spacing_mm"].split("x")][::-1], abs=1e-4)
    assert (scan.voxels.min(), scan.voxels.max()) == (int(facts["hu_min"]), int(facts["hu_max"]))
    assert scan.warnings == ()


def test_the_nifti_file_is_the_dicom_series_pooled(p002: dict[str, Scan]) -> None:
    difference = pooled(p002["dicom"].voxels)[::2] - p002["nifti"].voxels
    assert np.abs(difference).max() <= 1  # rounding of the mean
    assert np.allclose(p002["nifti"].spacing_mm, np.multiply(p002["dicom"].spacing_mm, 2))


def test_the_pictures_are_the_dicom_series_windowed(p002: dict[str, Scan]) -> None:
    expected = np.clip((pooled(p002["dicom"].voxels) + 1150) / 1500 * 255, 0, 255)  # PROVENANCE: window -1150..350
    assert np.abs(expected - p002["slices"].voxels).max() <= 1.5


@pytest.mark.parametrize("other", ["nifti", "slices"])
def test_formats_are_prepared_alike(p002: dict[str, Scan], other: str) -> None:
    scan, volumes = p002["dicom"], {name: prepare(p002[name], SPEC) for name in ("dicom", other)}
    overlap, union = 1.0, 1.0
    for (a0, a1), (b0, b1), side_a, side_b in zip(
        volumes["dicom"].box, volumes[other].box, scan.shape, p002[other].shape, strict=True
    ):
        ends = (a0 / side_a, a1 / side_a), (b0 / side_b, b1 / side_b)
        overlap *= min(ends[0][1], ends[1][1]) - max(ends[0][0], ends[1][0])
        union *= max(ends[0][1], ends[1][1]) - min(ends[0][0], ends[1][0])
    assert overlap / union > 0.9
    pair = [volumes[name].volume.ravel() for name in ("dicom", other)]
    assert np.corrcoef(*pair)[0, 1] > 0.95
    dark = [volume < np.median(volume) * 0.6 for volume in pair]
    assert 2 * (dark[0] & dark[1]).sum() / (dark[0].sum() + dark[1].sum()) > 0.95  # Dice of the air in the two


def test_lung_volume_does_not_depend_on_the_grid(p002: dict[str, Scan]) -> None:
    fine, coarse = (prepare(p002[name], SPEC).features["lung_volume_ml"] for name in ("dicom", "nifti"))
    assert coarse == pytest.approx(fine, rel=0.02)
    assert 2000 < fine < 7000  # an adult's


@pytest.mark.parametrize("name", NIFTI)
def test_every_patient_has_lungs_where_they_belong(real_scans: Path, name: str) -> None:
    scan = read_scan(real_scans / "covid-ct-md" / "nifti_256" / f"{name}.nii.gz")
    facts = facts_of(real_scans, name.split("_")[1])
    assert "x".join(map(str, scan.shape[::-1])) == facts["nifti_shape"]
    assert scan.voxels.min() >= int(facts["hu_min"])
    assert scan.voxels.max() <= int(facts["hu_max"])  # pooling can't exceed the original
    prepared = prepare(scan, SPEC)
    assert NO_LUNGS not in prepared.warnings
    assert 2000 < prepared.features["lung_volume_ml"] < 7000
    sides = [(stop - start) * mm for (start, stop), mm in zip(prepared.box, scan.spacing_mm, strict=True)]
    assert 180 < sides[0] < 360  # mm, cranial to caudal
    assert 150 < sides[1] < 300
    assert 230 < sides[2] < 400
    volume = prepared.volume.astype(float)
    assert volume[-6:, :, :64].mean() > volume[-6:, :, 64:].mean()  # the liver is on the patient's right
    assert volume[:, 96:, 56:72].mean() > volume[:, :24, 56:72].mean()  # the spine is behind
    assert volume[-6:].mean() > volume[6:12].mean()  # the abdomen is below


def test_a_thick_slice_series(real_scans: Path) -> None:
    scan = read_scan(real_scans / "tcia-lung-pet-ct-dx-A0002")
    assert scan.shape == (30, 512, 512)
    assert scan.spacing_mm == pytest.approx((8.0, 0.646484, 0.646484), abs=1e-5)
    assert scan.warnings == ()
    assert NO_LUNGS not in prepare(scan, SPEC).warnings


def test_slices_with_a_nearly_empty_header(real_scans: Path) -> None:
    scan = read_scan(real_scans / "lungmask-testdata")
    assert scan.shape == (2, 512, 512)
    assert scan.spacing_mm == (1.0, 0.625, 0.625)
    upper = sitk.GetArrayFromImage(sitk.ReadImage(str(real_scans / "lungmask-testdata" / "1.dcm")))[0]
    assert np.array_equal(scan.voxels[0], upper)  # z = 1 mm lies above z = 0
    assert NO_LUNGS not in prepare(scan, SPEC).warnings


@pytest.mark.parametrize("plane", NON_AXIAL)
def test_reformatted_planes_are_refused_with_the_reason(real_scans: Path, plane: str) -> None:
    with pytest.raises(ScanError, match=f"expected axial slices, found {plane.split('/')[1]}") as caught:
        read_scan(real_scans / "tcia-covid-19-ny-sbu-slices" / plane)
    assert plane.split("/")[0] not in str(caught.value)


def test_axial_single_slices_equal_simpleitk_but_for_padding(real_scans: Path) -> None:
    files = sorted((real_scans / "tcia-covid-19-ny-sbu-slices").glob("*/axial/*.dcm"))
    assert len(files) == 10
    for file in files:
        scan = read_scan(file)
        expected = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        assert np.array_equal(np.maximum(scan.voxels, -1024), np.maximum(expected, -1024))
        assert scan.warnings == ("a single slice, not a volume",)
