"""DICOM series written here with pydicom: order, geometry, intensities, compression, and what is refused."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    RLELossless,
)

from covidnet.data.sources import limits, read_scan
from covidnet.errors import ScanError
from tests.data.sources.dicom_series import AXIAL, NAME, PATIENT, STEP_MM, body, series, slice_of, write


def test_reads_what_simpleitk_reads(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", series(body()))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    scan = read_scan(folder)
    assert np.array_equal(scan.voxels, sitk.GetArrayFromImage(image)[::-1])  # SimpleITK stacks from feet to head
    assert scan.spacing_mm == pytest.approx(image.GetSpacing()[::-1])
    assert scan.spacing_mm == pytest.approx((STEP_MM, 0.7, 0.5))
    assert (scan.format, scan.intensity, scan.orientation, scan.warnings) == ("dicom", "hu", "LPS", ())


def test_order_is_by_position_not_by_name_or_number(tmp_path: Path) -> None:
    slices = series(body())
    for ds, number in zip(slices, (3, 1, 6, 2, 5, 4), strict=True):
        ds.InstanceNumber = number
    shuffled = [slices[i] for i in (4, 0, 5, 2, 1, 3)]
    assert np.array_equal(read_scan(write(tmp_path / "s", shuffled)).voxels, body())


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        ([-1, 0, 0, 0, -1, 0], np.s_[:, ::-1, ::-1]),  # prone, or rotated by 180 degrees
        ([-1, 0, 0, 0, 1, 0], np.s_[:, :, ::-1]),
        ([1, 0, 0, 0, -1, 0], np.s_[:, ::-1]),
    ],
)
def test_mirrored_pictures_come_out_in_the_project_axes(tmp_path: Path, orientation: list[int], turned: Any) -> None:
    stored = body()[turned]
    scan = read_scan(write(tmp_path / "s", series(stored, ImageOrientationPatient=orientation)))
    assert np.array_equal(scan.voxels, body())


def test_rows_that_run_along_the_body_height_of_the_picture(tmp_path: Path) -> None:
    stored = body().transpose(0, 2, 1)  # a row of the file runs from front to back
    scan = read_scan(write(tmp_path / "s", series(stored, ImageOrientationPatient=[0, 1, 0, 1, 0, 0])))
    assert np.array_equal(scan.voxels, body())
    assert scan.spacing_mm == pytest.approx((STEP_MM, 0.5, 0.7))


def test_slope_and_intercept_are_applied_per_slice(tmp_path: Path) -> None:
    slices = series(body())
    slices[2].RescaleSlope, slices[2].RescaleIntercept = 2, -1000
    voxels = read_scan(write(tmp_path / "s", slices)).voxels
    assert np.array_equal(voxels[2], (body()[2].astype(int) + 1024) * 2 - 1000)
    assert np.array_equal(voxels[3], body()[3])


def test_missing_rescale_is_told(tmp_path: Path) -> None:
    scan = read_scan(write(tmp_path / "s", series(body(), RescaleIntercept=None, RescaleSlope=None)))
    assert scan.voxels.min() == 24
    assert any("intercept" in warning for warning in scan.warnings)


@pytest.mark.parametrize(("kind", "padding"), [("SS", -2000), ("US", 2**16 - 2000)])
def test_padding_becomes_air(tmp_path: Path, kind: str, padding: int) -> None:
    slices = series(body(), PixelRepresentation=1, BitsStored=16, HighBit=15, RescaleIntercept=0)
    for ds, plane in zip(slices, body(), strict=True):
        plane[0] = -2000
        ds.PixelData = plane.tobytes()
        ds.add_new("PixelPaddingValue", kind, padding)
    expected = body()
    expected[:, 0] = -1024
    assert np.array_equal(read_scan(write(tmp_path / "s", slices)).voxels, expected)


def test_monochrome1_is_a_matter_of_display(tmp_path: Path) -> None:
    scan = read_scan(write(tmp_path / "s", series(body(), PhotometricInterpretation="MONOCHROME1")))
    assert np.array_equal(scan.voxels, body())


def test_monochrome1_with_inverted_values_is_turned_back(tmp_path: Path) -> None:
    slices = series(body(), PhotometricInterpretation="MONOCHROME1")
    for ds in slices:
        ds.PixelData = (4095 - ds.pixel_array).astype("<u2").tobytes()
    assert np.array_equal(read_scan(write(tmp_path / "s", slices)).voxels, body())


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed(tmp_path: Path, syntax: str) -> None:
    hu = np.kron(body(), np.ones((1, 8, 8), np.int16))  # JPEG 2000 halves the picture five times
    slices = series(hu)
    for ds in slices:
        ds.compress(syntax)
    assert np.array_equal(read_scan(write(tmp_path / "s", slices)).voxels, hu)


def test_deflated(tmp_path: Path) -> None:
    slices = series(body())
    for ds in slices:
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert np.array_equal(read_scan(write(tmp_path / "s", slices)).voxels, body())


def test_deflated_bomb_is_refused_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("covidnet.data.sources.dicom_headers.MAX_INFLATED_BYTES", 1000)
    slices = series(body())
    for ds in slices:
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        ds.PixelData = bytes(2**21)
    with pytest.raises(ScanError, match="inflates beyond"):
        read_scan(write(tmp_path / "s", slices))


def test_big_endian(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for index, ds in enumerate(series(body())):
        ds.PixelData = ds.pixel_array.astype(">u2").tobytes()
        ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dcmwrite(folder / f"{index}.dcm", ds, enforce_file_format=True)
    assert np.array_equal(read_scan(folder).voxels, body())


def enhanced(hu: np.ndarray) -> FileDataset:
    """An enhanced multi-frame CT whose frames are stored from feet to head."""
    ds = slice_of(hu[0], 0, 1, ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    del ds.RescaleSlope, ds.RescaleIntercept
    orientation, measures, transform, shared = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = AXIAL
    measures.PixelSpacing, measures.SliceThickness = [0.7, 0.5], STEP_MM
    transform.RescaleSlope, transform.RescaleIntercept = 1, -1024
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PixelValueTransformationSequence = Sequence([transform])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for index in range(len(hu)):
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = [-100, -90, STEP_MM * index]
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    ds.NumberOfFrames = len(hu)
    ds.PixelData = (hu[::-1].astype(np.int32) + 1024).astype("<u2").tobytes()
    return ds


def test_enhanced_multi_frame(tmp_path: Path) -> None:
    file = tmp_path / "enhanced.dcm"
    enhanced(body()).save_as(file, enforce_file_format=True)
    scan = read_scan(file)
    assert np.array_equal(scan.voxels, body())
    assert scan.spacing_mm == pytest.approx((STEP_MM, 0.7, 0.5))


def test_one_missing_slice_is_interpolated_and_told(tmp_path: Path) -> None:
    hu = body(12)
    slices = series(hu)
    del slices[4]
    scan = read_scan(write(tmp_path / "s", slices))
    assert scan.shape[0] == 12
    assert np.array_equal(scan.voxels[4], (hu[3].astype(int) + hu[5]) // 2)
    assert any("1 missing slice" in warning for warning in scan.warnings)
    assert scan.spacing_mm[0] == pytest.approx(STEP_MM)


def test_two_missing_in_a_row_are_refused(tmp_path: Path) -> None:
    slices = series(body(12))
    del slices[4:6]
    with pytest.raises(ScanError, match="2 slices in a row are missing"):
        read_scan(write(tmp_path / "s", slices))


def test_duplicates_are_dropped_and_told(tmp_path: Path) -> None:
    slices = series(body())
    slices.append(slice_of(body()[2] + 7, 50 - 2 * STEP_MM, 99))
    scan = read_scan(write(tmp_path / "s", slices))
    assert np.array_equal(scan.voxels, body())
    assert any("1 slice(s) at a position already taken" in warning for warning in scan.warnings)


def test_uneven_spacing_is_refused(tmp_path: Path) -> None:
    slices = series(body())
    slices[-1].ImagePositionPatient = [-100, -90, 50 - STEP_MM * 5.5]
    with pytest.raises(ScanError, match="unevenly spaced"):
        read_scan(write(tmp_path / "s", slices))


def test_gantry_tilt_is_refused_above_one_degree(tmp_path: Path) -> None:
    def tilted(degrees: float) -> list[FileDataset]:
        slices = series(body())
        for index, ds in enumerate(slices):
            drift_mm = index * STEP_MM * np.tan(np.deg2rad(degrees))
            ds.ImagePositionPatient = [-100, -90 + drift_mm, 50 - STEP_MM * index]
        return slices

    with pytest.raises(ScanError, match="gantry tilt"):
        read_scan(write(tmp_path / "15", tilted(15)))
    assert np.array_equal(read_scan(write(tmp_path / "half", tilted(0.5))).voxels, body())


@pytest.mark.parametrize(
    ("orientation", "reason"),
    [
        ([1, 0, 0, 0, 0, -1], "coronal"),
        ([0, 1, 0, 0, 0, -1], "sagittal"),
        ([1, 0, 0, 0, 0.8192, -0.5736], "oblique"),
    ],
)
def test_other_planes_are_refused(tmp_path: Path, orientation: list[float], reason: str) -> None:
    with pytest.raises(ScanError, match=reason):
        read_scan(write(tmp_path / "s", series(body(), ImageOrientationPatient=orientation)))


def test_the_axial_series_with_most_slices_is_chosen_and_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", series(body(9), SeriesInstanceUID="1.2.9"), "b")
    write(folder, series(body(4) + 100, SeriesInstanceUID="1.2.1"), "a")
    write(folder, series(body(9), SeriesInstanceUID="1.2.2", ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "c")
    write(folder, series(body(10), SeriesInstanceUID="1.2.3", ImageType=["DERIVED", "SECONDARY", "REFORMATTED"]), "d")
    write(folder, series(body(11), SeriesInstanceUID="1.2.4", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "e")
    write(folder, series(body(12), SeriesInstanceUID="1.2.5", BodyPartExamined="HEAD"), "f")
    write(folder, series(body(8), SeriesInstanceUID="1.2.6", Modality="PT"), "g")
    scan = read_scan(folder)
    assert np.array_equal(scan.voxels, body(9))
    (warning,) = scan.warnings
    assert warning.startswith("7 series found; read the axial one of 9 slices, 2.5 mm thick; left out: ")
    assert set(warning.partition("left out: ")[2].split("; 1 x ")) == {
        "1 x expected axial slices, found coronal ones; export the axial series",
        "expected modality CT, found PT",
        "fewer than 8 slices",
        "found a localizer, projection or screen copy (LOCALIZER)",
        "not as acquired",
        "not of the chest",
    }


def test_eight_derived_slices_are_rather_read_than_a_test_shot(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", series(body(8), SeriesInstanceUID="1.2.9", ImageType=["DERIVED", "PRIMARY"]), "b")
    write(folder, series(body(3), SeriesInstanceUID="1.2.1"), "a")
    scan = read_scan(folder)
    assert np.array_equal(scan.voxels, body(8))
    assert any("marked as derived" in warning for warning in scan.warnings)


def test_two_breath_holds_in_one_series_are_not_mixed(tmp_path: Path) -> None:
    inspiration = series(body(10), AcquisitionNumber=1)
    expiration = series(body(9) + 50, AcquisitionNumber=2)
    for ds in expiration:
        ds.InstanceNumber -= 100  # would come first, were order by number
    scan = read_scan(write(tmp_path / "s", inspiration + expiration))
    assert np.array_equal(scan.voxels, body(10))
    assert any("left out: 1 x fewer slices" in warning for warning in scan.warnings)


def test_an_acquisition_per_slice_is_one_volume(tmp_path: Path) -> None:
    slices = series(body())
    for number, ds in enumerate(slices):
        ds.AcquisitionNumber = number
    slices.append(slices[2])
    scan = read_scan(write(tmp_path / "s", slices))
    assert np.array_equal(scan.voxels, body())
    assert scan.warnings == ("1 slice(s) at a position already taken were dropped",)


def test_a_folder_copied_into_itself_is_one_scan(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", series(body()))
    write(folder / "copy", series(body()))
    for file in (folder / "copy").iterdir():
        file.write_bytes((folder / file.name).read_bytes())
    scan = read_scan(folder)
    assert np.array_equal(scan.voxels, body())
    assert any("6 slice(s) at a position already taken" in warning for warning in scan.warnings)


def test_a_preview_beside_the_slices_is_not_taken_for_the_scan(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", series(body()))
    Image.new("L", (16, 12)).save(folder / "preview.png")
    assert np.array_equal(read_scan(folder).voxels, body())


def test_what_stands_in_the_unused_high_bits_is_no_density(tmp_path: Path) -> None:
    slices = series(body())
    for ds in slices:  # overlays were stored there
        ds.PixelData = (ds.pixel_array | 0xA000).astype("<u2").tobytes()
    assert np.array_equal(read_scan(write(tmp_path / "s", slices)).voxels, body())


def test_of_equal_series_the_thinner_is_chosen(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", series(body() + 100, SliceThickness=5), "a")
    write(folder, series(body(), SeriesInstanceUID="1.2.9", SliceThickness=1), "b")
    assert np.array_equal(read_scan(folder).voxels, body())


def test_other_modalities_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="expected modality CT, found MR"):
        read_scan(write(tmp_path / "s", series(body(), Modality="MR")))


def test_missing_identity_and_illegal_uids_are_tolerated_in_silence(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    slices = series(body(), PatientID=None, PatientName=None, SeriesInstanceUID=None)
    folder = write(tmp_path / "s", slices)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"ORIGINAL", b"not-good"))
    assert np.array_equal(read_scan(folder).voxels, body())
    assert not recwarn.list


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_missing_geometry_is_refused(tmp_path: Path, keyword: str) -> None:
    with pytest.raises(ScanError, match=keyword):
        read_scan(write(tmp_path / "s", series(body(), **{keyword: None})))


def test_files_without_preamble_and_other_files_beside_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", series(body()))
    for file in folder.iterdir():
        ds = dcmread(file)
        ds.preamble = None
        ds.save_as(file.with_suffix(""), enforce_file_format=False)
        file.unlink()
    (folder / "readme.txt").write_text("not a slice")
    assert np.array_equal(read_scan(folder).voxels, body())


def test_errors_name_no_patient(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", series(body()))
    broken = folder / "0003.dcm"
    broken.write_bytes(broken.read_bytes()[:-40])
    with pytest.raises(ScanError, match="can't be decoded") as caught:
        read_scan(folder)
    assert not any(secret in str(caught.value) for secret in (NAME, PATIENT, "1.2.3", str(tmp_path)))


@pytest.mark.filterwarnings("ignore:End of file")
def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", series(body()))
    (folder / "9999.dcm").write_bytes(b"\xff" * 300)
    assert any("1 damaged" in warning for warning in read_scan(folder).warnings)


def test_size_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "s", series(body()))
    monkeypatch.setattr(limits, "MAX_VOXELS", body().size - 1)
    monkeypatch.setattr("covidnet.data.sources.dicom._pixels", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ScanError, match="6 x 12 x 16"):
        read_scan(folder)


def test_every_file_order_gives_the_same_scan(tmp_path: Path) -> None:
    scans = []
    for number, order in enumerate(itertools.islice(itertools.permutations(range(4)), 0, 24, 5)):
        slices = series(body(4))
        scans.append(read_scan(write(tmp_path / str(number), [slices[i] for i in order])).voxels)
    assert all(np.array_equal(voxels, body(4)) for voxels in scans)
