"""What is wrong with scans in the wild: every case goes through `ingest`, with its reason in `rejected.csv` or its warning.

The DICOM cases are made from a generated series and, where the real scans are, from a real one as well.
"""

import csv
import os
import re
import struct
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom import FileDataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML, generate_uid

from covidnet.config import parse
from covidnet.data import packed
from covidnet.data.ingest import ingest, references
from tests.data.sources.dicom_series import body, series

Slices = list[FileDataset]
DEPTH = 12


def each(**header: object) -> Callable[[Slices], None]:
    """Set elements in every slice; None deletes."""

    def change(slices: Slices) -> None:
        for ds in slices:
            for keyword, value in header.items():
                if value is None:
                    ds.pop(keyword, None)
                else:
                    setattr(ds, keyword, value)

    return change


def move(shift: Callable[[int, np.ndarray], list[float]]) -> Callable[[Slices], None]:
    """Give every slice another position, in mm to the right, back and up."""

    def change(slices: Slices) -> None:
        for index, ds in enumerate(slices):
            moved = np.asarray(ds.ImagePositionPatient, float) + shift(
                index, np.asarray(ds.ImagePositionPatient, float)
            )
            ds.ImagePositionPatient = [round(float(mm), 4) for mm in moved]

    return change


def remove(*indices: int) -> Callable[[Slices], None]:
    def change(slices: Slices) -> None:
        for index in sorted(indices, reverse=True):
            del slices[index]

    return change


def again(copies: int, **header: object) -> Callable[[Slices], None]:
    """The first slices once more, as other objects at the same places, with other elements."""

    def change(slices: Slices) -> None:
        more = deepcopy(slices[:copies])
        each(**header)(more)
        for ds in more:
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        slices += more

    return change


def one(index: int, **header: object) -> Callable[[Slices], None]:
    return lambda slices: each(**header)(slices[index : index + 1])


def step(slices: Slices) -> float:
    return float(slices[0].ImagePositionPatient[2] - slices[1].ImagePositionPatient[2])


def as_film(slices: Slices) -> None:
    for ds in slices:
        ds.file_meta.TransferSyntaxUID = MPEG2MPML
        ds.PixelData = encapsulate([ds.PixelData])
        ds["PixelData"].is_undefined_length = True


SCOUT = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

REJECTED_SERIES: dict[str, tuple[Callable[[Slices], object], str]] = {
    "two slices missing": (remove(4, 5), "2 slices in a row are missing"),
    "every third slice missing": (remove(2, 5, 8), r"3 of 12 slices are missing"),
    "four slices": (remove(*range(4, DEPTH)), r"at least 8 slices \(data.min_slices\), found 4"),
    "uneven": (move(lambda i, at: [0, 0, 0.4 * (i % 2) * 2.5]), "unevenly spaced"),
    "other slices at the same places": (again(6), "6 of 18 slices lie where another one does"),
    "all at one place": (lambda s: each(ImagePositionPatient=list(s[0].ImagePositionPatient))(s), "share one position"),
    "gantry tilt": (move(lambda i, at: [0, 2.0 * i, 0]), r"\d+\.\d degrees off their normal \(gantry tilt\)"),
    "shifted sideways": (move(lambda i, at: [20.0 * (4 < i < 8), 0, 0]), "shifted sideways by"),
    "coronal": (each(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "found coronal ones"),
    "sagittal": (each(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "found sagittal ones"),
    "oblique": (each(ImageOrientationPatient=[1, 0, 0, 0, 0.8192, -0.5736]), "oblique ones .35 degrees off"),
    "two patients": (lambda s: each(PatientID="someone else")(s[6:]), r"slices of 2 \(PatientID\)"),
    "two patients in two series": (again(12, PatientID="x", SeriesInstanceUID="1.2.9"), r"slices of 2 \(PatientID\)"),
    "magnetic resonance": (each(Modality="MR"), "expected modality CT, found MR"),
    "a sentence for a modality": (each(Modality="=cmd Doe Jane"), "expected modality CT, found another"),
    "localizer": (each(ImageType=SCOUT), r"localizer, projection or screen copy"),
    "maximum projection": (each(ImageType=["DERIVED", "PRIMARY", "MIP"]), r"screen copy \(MIP\)"),
    "colour": (each(SamplesPerPixel=3), "3 .a colour picture"),
    "no pixel spacing": (each(PixelSpacing=None), "PixelSpacing is missing or zero"),
    "zero pixel spacing": (each(PixelSpacing=[0, 0.5]), "PixelSpacing is missing or zero"),
    "no position": (each(ImagePositionPatient=None), "ImagePositionPatient is missing"),
    "position not a number": (one(3, ImagePositionPatient=["NaN"] * 3), "ImagePositionPatient is missing"),
    "no orientation": (each(ImageOrientationPatient=None), "ImageOrientationPatient or"),
    "skewed orientation": (each(ImageOrientationPatient=[1, 0, 0, 0.5, 0.8, 0]), "two perpendicular directions"),
    "no pixels": (each(PixelData=None), "can't be decoded"),
    "half the pixels": (lambda s: one(5, PixelData=s[0].PixelData[: len(s[0].PixelData) // 2])(s), "slice 6 can't be"),
    "too large a matrix": (each(Rows=60000, Columns=60000), "of 60000 x 60000"),
    "too many frames": (one(0, NumberOfFrames=100_000), "100000 frames"),
    "more frames than pixels": (one(0, NumberOfFrames=9), "can't be decoded|where another one does"),
    "a film's compression": (as_film, "can't be decoded"),
}  # fmt: skip

KEPT_SERIES: dict[str, tuple[Callable[[Slices], object], str]] = {
    "untouched": (lambda s: None, "^$"),
    "one slice missing": (remove(4), "1 missing slice.* interpolated"),
    "one slice twice": (again(1), "1 slice.* already taken were dropped"),
    "no identity": (each(PatientID=None, PatientName=None, SeriesInstanceUID=None), "^$"),
    "empty and illegal UIDs": (each(SeriesInstanceUID="", StudyInstanceUID="no.UID", SOPInstanceUID="1..2"), "^$"),
    "no rescale": (each(RescaleSlope=None, RescaleIntercept=None), "no voxel is below 0 HU"),
    "secondary capture": (each(ImageType=["DERIVED", "SECONDARY"]), "not as acquired"),
    "hostile text": (each(PatientName="=HYPERLINK(1)\x1b[31m", SeriesDescription="'; DROP TABLE--"), "^$"),
    "a scout beside": (again(2, SeriesInstanceUID="1.2.8", ImageType=SCOUT), "2 series found.*LOCALIZER"),
    "a head beside": (again(9, SeriesInstanceUID="1.2.8", BodyPartExamined="HEAD"), "1 x not of the chest"),
    "a segmentation beside": (again(3, SeriesInstanceUID="1.2.8", Modality="SEG"), "found SEG"),
    "a report beside": (again(1, Modality="SR", Rows=None, PixelData=None), "1 DICOM object.* without pixels"),
}  # fmt: skip


def lungs(shape: tuple[int, int, int] = (40, 40, 16)) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 300, shape).astype(np.int16)


def nifti(file: Path, voxels: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    image = nibabel.Nifti1Image(
        lungs() if voxels is None else voxels, np.diag([-1, -1, 2.0, 1]) if affine is None else affine
    )
    nibabel.save(image, file)
    return file


def nii(folder: Path, voxels: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    return nifti(folder / "a.nii", voxels, affine)


def patched(file: Path, at: int, raw: bytes) -> Path:
    content = bytearray(file.read_bytes())
    content[at : at + len(raw)] = raw
    file.write_bytes(content)
    return file


def cut(file: Path, share: float = 0.5) -> Path:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    return file


def two_forms(file: Path) -> Path:
    image = nibabel.Nifti1Image(lungs(), np.diag([-1, -1, 2.0, 1]))
    image.set_qform(np.diag([1, -1, 2.0, 1]), code=1)
    nibabel.save(image, file)
    return file


def pictures(folder: Path, count: int = 10, **odd: Image.Image) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.fromarray(lungs((24, 24, 1))[..., 0].astype(np.uint8)).save(folder / f"{index}.png")
    for name, picture in odd.items():
        picture.save(folder / f"{name[1:]}.png")
    return folder


def zipped(file: Path, name: str = "a.dcm", content: bytes = b"x" * 200, **info: int) -> Path:
    member = zipfile.ZipInfo(name)
    for key, value in info.items():
        setattr(member, key, value)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed_file:
        packed_file.writestr(member, content, zipfile.ZIP_DEFLATED)
    return file


def linked(folder: Path) -> Path:
    pictures(folder, 9)
    (folder / "9.png").symlink_to(Path(__file__).parents[3] / "docs" / "images" / "overlay.png")
    return folder


def written(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def turned(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    affine = np.diag([-1, -1, 2.0, 1])
    affine[1:3, 1:3] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ affine[1:3, 1:3]
    return affine


def sheared() -> np.ndarray:
    affine = np.diag([-1, -1, 2.0, 1])
    affine[1, 2] = 0.6
    return affine


MHD = b"ObjectType = Image\nNDims = 3\nDimSize = 9 9 9\nElementType = MET_SHORT\nElementDataFile = ../../secret.raw\n"
RGB = [("R", "u1"), ("G", "u1"), ("B", "u1")]
GAPS = np.where(lungs() > 290, np.nan, lungs()).astype(np.float32)
NOISE = bytes(range(256)) * 20
NOT_A_NUMBER = np.full((40, 40, 16), np.nan, np.float32)

REJECTED_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nifti cut off": (lambda p: cut(nifti(p / "a.nii.gz")), "can't be read .* damaged or cut off"),
    "nifti cut in its header": (lambda p: cut(nii(p), 0.003), "can't be read"),
    "nifti of nothing": (lambda p: written(p / "a.nii.gz", b""), "can't be read"),
    "nifti of text": (lambda p: written(p / "a.nii", b"no scan at all" * 100), "can't be read"),
    "nifti not a number": (lambda p: nii(p, NOT_A_NUMBER), "100% of the voxels are not a number"),
    "nifti zero spacing": (lambda p: patched(nii(p), 80, bytes(4)), "spacing above 0 mm"),
    "nifti spacing not a number": (lambda p: patched(nii(p), 80, struct.pack("<f", np.nan)), "spacing above 0 mm"),
    "nifti metres apart": (lambda p: nii(p, affine=np.diag([-900.0, -1, 2, 1])), "at most 100, found"),
    "nifti of two frames": (lambda p: nii(p, np.stack([lungs()] * 2, -1)), "expected one 3D volume"),
    "nifti of four slices": (lambda p: nii(p, lungs((40, 40, 4))), "at least 8 slices"),
    "nifti normalised": (lambda p: nii(p, np.tile(np.float32([0, 1]), (20, 20, 10))), "span less than 1"),
    "nifti in colour": (lambda p: nii(p, np.zeros((9, 9, 9), RGB)), "whole or floating-point"),
    "nifti complex": (lambda p: nii(p, np.zeros((9, 9, 9), np.complex64)), "whole or floating-point"),
    "nifti rotated": (lambda p: nii(p, affine=turned(25)), "rotated 25 degrees"),
    "nifti tilted": (lambda p: nii(p, affine=sheared()), "gantry tilt"),
    "nifti of a huge side": (lambda p: patched(nii(p), 42, struct.pack("<3h", *[30000] * 3)), "expected 1 to .* voxels"),
    "nifti with a negative side": (lambda p: patched(nii(p), 42, struct.pack("<h", -5)), "can't be read|expected 1 to"),
    "nifti bomb": (lambda p: nifti(p / "a.nii.gz", np.zeros((512, 512, 64), np.int16)), "at most 200-fold"),
    "header to elsewhere": (lambda p: written(p / "a.mhd", MHD), "from another folder"),
    "nrrd of text": (lambda p: written(p / "a.nrrd", b"NRRD0004\nhello"), "can't be read"),
    "slices of two sizes": (lambda p: pictures(p / "a", x5=Image.new("L", (30, 24))), "slice 5 is .24, 30."),
    "slices in colour": (lambda p: pictures(p / "a", x5=Image.new("RGB", (24, 24), "red")), "in colour"),
    "slice cut off": (lambda p: cut(pictures(p / "a") / "3.png").parent, "can't be decoded"),
    "slice of text": (lambda p: written(pictures(p / "a") / "3.png", b"hello").parent, "can't be decoded"),
    "slice that is huge": (lambda p: pictures(p / "a", x0=Image.new("L", (3000, 3000))), "3000 x 3000 pixels"),
    "three slices": (lambda p: pictures(p / "a", 3), "at least 8 slices"),
    "one picture": (lambda p: pictures(p / "a") / "0.png", "expected a whole scan, found one picture"),
    "two scans of pictures": (lambda p: pictures(pictures(p / "a") / "b").parent, "slices in 2 subfolders"),
    "two volumes": (lambda p: nifti(nii(p).parent / "b.nii").parent, "found 2 volume files"),
    "zip bomb": (lambda p: zipped(p / "a.zip", content=bytes(32 * 2**20)), "at most 200-fold"),
    "zip that climbs": (lambda p: zipped(p / "a.zip", "../../a.dcm"), "leaves its folder"),
    "zip with a link": (lambda p: zipped(p / "a.zip", "a.dcm", external_attr=0o120777 << 16), "symbolic link"),
    "zip of nothing": (lambda p: zipped(p / "a.zip", "a.txt"), "no scan among them"),
    "zip cut off": (lambda p: cut(zipped(p / "a.zip")), "can't be unpacked"),
    "link within": (lambda p: linked(p / "a"), "symbolic link out of its folder"),
    "nothing": (lambda p: p, "found 0 file.s. in the folder"),
    "notes": (lambda p: written(p / "a.txt", b"notes"), "in no format that can be read"),
    "DICOM of zeros": (lambda p: written(p / "a.dcm", bytes(4000)), "in no format|no image|none among"),
    "DICOM magic and nothing": (lambda p: written(p / "a.dcm", bytes(128) + b"DICM"), "expected DICOM images"),
    "DICOM of noise": (lambda p: written(p / "a.dcm", bytes(128) + b"DICM" + NOISE), "expected DICOM images|malformed"),
}  # fmt: skip

KEPT_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nifti of one frame": (lambda p: nii(p, lungs()[..., None]), ""),
    "nifti with gaps": (lambda p: nii(p, GAPS), "not a number; read as air"),
    "nifti of two forms": (two_forms, "sform and qform disagree"),
    "nifti without form": (lambda p: patched(nii(p), 252, bytes(4)), "gives no orientation"),
    "nifti with a broken sform": (lambda p: patched(nii(p), 280, bytes(48)), "sform is no orientation"),
    "nifti a little oblique": (lambda p: nii(p, affine=turned(5)), "rotated 5.0 degrees"),
    "nifti without air": (lambda p: nii(p, np.abs(lungs())), "may not be Hounsfield units"),
}  # fmt: skip


def real_series(folder: Path) -> Slices:
    """Twelve slices of a real series, quartered in size, from cranial to caudal."""
    slices = sorted((dcmread(f) for f in folder.glob("*.dcm")), key=lambda ds: -float(ds.ImagePositionPatient[2]))[
        :DEPTH
    ]
    for ds in slices:
        ds.PixelData = ds.pixel_array[::8, ::8].tobytes()
        ds.Rows, ds.Columns = 64, 64
        ds.PixelSpacing = [float(mm) * 8 for mm in ds.PixelSpacing]
    return slices


def write(folder: Path, slices: Slices) -> Path:
    folder.mkdir(parents=True)
    for index, ds in enumerate(slices):
        ds.save_as(folder / f"{index:03d}.dcm", enforce_file_format=True)
    return folder


def run(root: Path, cases: dict[str, Path]) -> dict[str, tuple[bool, str]]:
    """Case to whether it was kept, and its warnings or the reason why not."""
    labels = root / "labels.csv"
    with labels.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "patient", "split"])
        names = list(cases)
        for number, name in enumerate(names):
            label = ("NCP", "Normal")[number % 2]
            writer.writerow(
                [cases[name].relative_to(root), label, f"patient {number}", ("train", "test")[number // 2 % 2]]
            )
    data = {
        "source": "nifti",
        "root": str(root),
        "labels": str(labels),
        "max_rejected": 0.99,
        "workers": 1,
        "crop": "none",
    }
    config = parse({"classes": ["NCP", "Normal"], "data": data})
    ingest(config, root.with_name("out"))
    case_of = {}
    for name, ref in zip(names, references(config), strict=True):
        case_of[ref.scan_id] = name
    found = {case_of[row.scan_id]: (True, row.warnings) for row in packed.read(root.with_name("out")).rows}
    with (root.with_name("out") / "rejected.csv").open(newline="") as stream:
        found |= {case_of[row["path"].split("/")[1]]: (False, row["reason"]) for row in csv.DictReader(stream)}
    return found


@pytest.fixture(scope="module", params=["generated", "real"])
def told_of_series(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[bool, str]]:
    root = tmp_path_factory.mktemp(request.param) / "raw"
    if request.param == "real":
        original = real_series(request.getfixturevalue("real_scans") / "tcia-lung-pet-ct-dx-A0002")
    else:
        original = series(body(DEPTH))
    cases = {}
    for number, (name, (change, _)) in enumerate({**REJECTED_SERIES, **KEPT_SERIES}.items()):
        slices = deepcopy(original)
        change(slices)
        cases[name] = write(root / str(number), slices)
    return run(root, cases)


@pytest.fixture(scope="module")
def told_of_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bool, str]]:
    root = tmp_path_factory.mktemp("files") / "raw"
    cases = {}
    for number, (name, (make, _)) in enumerate({**REJECTED_FILES, **KEPT_FILES}.items()):
        (root / str(number)).mkdir(parents=True)
        cases[name] = make(root / str(number) / "a.nii" if make is two_forms else root / str(number))
    cases["link out of the root"] = root / "link"
    nifti(root.with_name("outside.nii"))
    (root / "link").symlink_to(root.with_name("outside.nii"))
    cases["pipe"] = root / "pipe.nii"
    os.mkfifo(root / "pipe.nii")
    return run(root, cases)


@pytest.mark.parametrize("name", [*REJECTED_SERIES, *KEPT_SERIES])
def test_series(told_of_series: dict[str, tuple[bool, str]], name: str) -> None:
    kept, text = told_of_series[name]
    assert re.search({**REJECTED_SERIES, **KEPT_SERIES}[name][1], text), text
    assert kept == (name in KEPT_SERIES)


@pytest.mark.parametrize("name", [*REJECTED_FILES, *KEPT_FILES])
def test_files(told_of_files: dict[str, tuple[bool, str]], name: str) -> None:
    kept, text = told_of_files[name]
    assert re.search({**REJECTED_FILES, **KEPT_FILES}[name][1], text), text
    assert kept == (name in KEPT_FILES)


@pytest.mark.parametrize(
    ("name", "reason"), [("link out of the root", "outside of data.root"), ("pipe", "found a device, a pipe")]
)
def test_what_is_no_scan_of_the_root(told_of_files: dict[str, tuple[bool, str]], name: str, reason: str) -> None:
    assert not told_of_files[name][0]
    assert reason in told_of_files[name][1]
