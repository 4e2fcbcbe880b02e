"""Heat maps as files lie where the scan lies, in every format."""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from covidnet.data.scan import Scan
from covidnet.data.sources import read_scan
from covidnet.errors import CovidnetError, UsageError
from covidnet.inference import maps

SHAPE = (9, 20, 24)  # (D, H, W)
SPACING = (5.0, 1.5, 1.25)
BLOB = (slice(2, 4), slice(3, 8), slice(15, 20))  # cranial, anterior, left


def heat() -> np.ndarray:
    found = np.full(SHAPE, -0.2, np.float32)
    found[BLOB] = 2.0
    return found


def explained(path: Path, scan: Scan) -> maps.Explained:
    return maps.Explained(path, scan, heat(), "NCP", "Predicted NCP (0.93)", (-1000, 400))


def write_series(folder: Path, voxels: np.ndarray, shuffled: bool = True) -> Path:
    """A CT series, head first, supine, slices stored caudal to cranial under names that say nothing."""
    folder.mkdir()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    order = np.random.default_rng(0).permutation(len(voxels)) if shuffled else range(len(voxels))
    for number, index in enumerate(order):
        file = pydicom.FileDataset(str(folder), {}, preamble=b"\0" * 128)
        file.file_meta = pydicom.dataset.FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.file_meta.MediaStorageSOPClassUID = CTImageStorage
        uid = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        tags = {
            "SOPClassUID": CTImageStorage, "SOPInstanceUID": uid, "StudyInstanceUID": study,
            "SeriesInstanceUID": series, "FrameOfReferenceUID": frame, "Modality": "CT", "PatientName": "Doe^Jane",
            "PatientID": "4711", "PatientBirthDate": "", "PatientSex": "O", "StudyDate": "20200101", "StudyTime": "",
            "StudyID": "1", "AccessionNumber": "", "ReferringPhysicianName": "", "SeriesNumber": 1,
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "InstanceNumber": int(index), "Rows": SHAPE[1],
            "Columns": SHAPE[2], "PixelSpacing": list(SPACING[1:]), "SliceThickness": SPACING[0],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [-11.0, -22.0, 33.0 - SPACING[0] * float(index)],
            "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16,
            "HighBit": 15, "PixelRepresentation": 1, "RescaleSlope": 1, "RescaleIntercept": 0,
            "PositionReferenceIndicator": "",
        }  # fmt: skip
        for keyword, value in tags.items():
            setattr(file, keyword, value)
        file.PixelData = voxels[index].tobytes()
        file.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return np.random.default_rng(1).integers(-1000, 300, SHAPE).astype(np.int16)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory, voxels: np.ndarray) -> Path:
    return write_series(tmp_path_factory.mktemp("dicom") / "series", voxels)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRP", "PIL"])
def test_nifti_has_the_affine_and_the_axes_of_its_source(tmp_path: Path, voxels: np.ndarray, codes: str) -> None:
    to = nibabel.orientations
    spaced = np.array([[0, 0, -SPACING[2], 7], [0, -SPACING[1], 0, 8], [-SPACING[0], 0, 0, 9], [0, 0, 0, 1]])
    stored = nibabel.Nifti1Image(voxels, spaced)  # in the project's axes
    change = to.ornt_transform(to.io_orientation(spaced), to.axcodes2ornt(tuple(codes)))
    nibabel.save(stored.as_reoriented(change), tmp_path / "scan.nii.gz")
    expected = nibabel.Nifti1Image(heat(), spaced).as_reoriented(change)
    written = maps.write(
        tmp_path, "map", ["nifti"], explained(tmp_path / "scan.nii.gz", read_scan(tmp_path / "scan.nii.gz"))
    )
    found = nibabel.load(written["nifti"])
    source = nibabel.load(tmp_path / "scan.nii.gz")
    assert found.shape == source.shape
    np.testing.assert_allclose(found.affine, source.affine, atol=1e-5)
    np.testing.assert_allclose(found.get_fdata(), expected.get_fdata(), atol=1e-6)


def test_sweep_shows_every_slice_once_at_one_scale(tmp_path: Path, voxels: np.ndarray) -> None:
    written = maps.write(tmp_path, "map", ["gif"], explained(tmp_path, Scan(voxels, SPACING)))
    with Image.open(written["gif"]) as movie:
        assert movie.n_frames == SHAPE[0]
        coloured = []
        for index in range(SHAPE[0]):
            movie.seek(index)
            right = np.asarray(movie.convert("RGB")).astype(int)[50:-60, 400:700]
            coloured.append(int((np.ptp(right, axis=2) > 60).sum()))
    assert [index for index, count in enumerate(coloured) if count > 500] == [2, 3]


def test_secondary_captures_lie_on_the_slices_of_their_source(tmp_path: Path, series: Path) -> None:
    pytest.importorskip("highdicom", reason="DICOM output needs highdicom: pip install 'covidnet3d[dicom]'")
    written = maps.write(tmp_path, "map", ["dicom-sc"], explained(series, read_scan(series)))
    captures = [pydicom.dcmread(p) for p in Path(written["dicom-sc"]).iterdir()]
    sources = [pydicom.dcmread(p) for p in series.iterdir()]
    assert len(captures) == SHAPE[0]
    assert {c.StudyInstanceUID for c in captures} == {sources[0].StudyInstanceUID}
    assert {c.FrameOfReferenceUID for c in captures} == {sources[0].FrameOfReferenceUID}
    assert len({c.SeriesInstanceUID for c in captures} - {sources[0].SeriesInstanceUID}) == 1
    for capture in captures:
        index = round((33.0 - float(capture.ImagePositionPatient[2])) / SPACING[0])
        assert list(capture.ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
        pixels = capture.pixel_array.astype(int)
        coloured = np.ptp(pixels, axis=2) > 60
        expected = np.zeros(SHAPE[1:], bool)
        if index in (2, 3):
            expected[BLOB[1:]] = True
        np.testing.assert_array_equal(coloured, expected)


def test_segmentation_marks_the_same_voxels_in_the_source_series(tmp_path: Path, series: Path) -> None:
    hd = pytest.importorskip("highdicom", reason="DICOM output needs highdicom: pip install 'covidnet3d[dicom]'")
    written = maps.write(tmp_path, "map", ["dicom-seg"], explained(series, read_scan(series)))
    found = hd.seg.segread(written["dicom-seg"])
    volume = found.get_volume(segment_numbers=[1], combine_segments=True)
    marked = np.argwhere(volume.array)
    positions = np.c_[marked, np.ones(len(marked))] @ volume.affine.T  # LPS
    z, y, x = np.meshgrid(*(np.arange(s.start, s.stop) for s in BLOB), indexing="ij")
    expected = np.stack([-11 + x * SPACING[2], -22 + y * SPACING[1], 33 - z * SPACING[0]], axis=-1).reshape(-1, 3)
    assert sorted(map(tuple, positions[:, :3].round(3))) == sorted(map(tuple, expected.round(3)))
    assert found.segmentation_type.value == "BINARY"


def test_what_has_no_geometry_or_is_no_dicom_is_refused(tmp_path: Path, voxels: np.ndarray) -> None:
    flat = explained(tmp_path, Scan(voxels, SPACING, format="slices"))
    with pytest.raises(CovidnetError, match="nothing of its geometry"):
        maps.write(tmp_path, "map", ["nifti"], flat)
    with pytest.raises(CovidnetError, match="needs a DICOM series as its source, found slices"):
        maps.write(tmp_path, "map", ["dicom-seg"], flat)
    with pytest.raises(UsageError, match="expected png, gif, nifti, dicom-sc, dicom-seg"):
        maps.write(tmp_path, "map", ["mp4"], flat)


def test_a_real_series_gets_all_formats(tmp_path: Path, real_scans: Path) -> None:
    pytest.importorskip("highdicom", reason="DICOM output needs highdicom: pip install 'covidnet3d[dicom]'")
    path = real_scans / "tcia-lung-pet-ct-dx-A0002"
    scan = read_scan(path)
    warm = np.zeros(scan.shape, np.float32)
    warm[10:14, 200:300, 100:200] = 1
    e = maps.Explained(path, scan, warm, "NCP", "Predicted NCP (0.93)", (-1000, 400))
    written = maps.write(tmp_path, "0001_NCP", ["png", "nifti", "dicom-sc", "dicom-seg"], e)
    assert len(list(Path(written["dicom-sc"]).iterdir())) == 30
    assert nibabel.load(written["nifti"]).shape == (512, 512, 30)
