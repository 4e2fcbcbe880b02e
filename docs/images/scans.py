"""Pictures of a good and a rejected scan for docs/data.md: `python docs/images/scans.py` writes them beside itself.

A phantom is written as a DICOM series, whole and without some of its slices, and read as `ingest` reads it. What was read,
or the reason why not, is drawn with it.
"""

import tempfile
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from covidnet.data.preprocess import Spec, prepare
from covidnet.data.scan import Scan
from covidnet.data.sources import read_scan
from covidnet.data.sources.phantom import generate
from covidnet.errors import ScanError

HERE = Path(__file__).parent
LOST = range(24, 33)
MM_PER_PIXEL, GAP = 1.25, 8
WINDOW_HU = (-1000.0, 400.0)


def main() -> None:
    """Write both pictures."""
    phantom = generate("NCP", seed=0, index=0, difficulty=0.3, detail=(60, 192, 192)).scan
    with tempfile.TemporaryDirectory() as folder:
        whole, torn = Path(folder) / "whole", Path(folder) / "torn"
        write(phantom, whole, ())
        write(phantom, torn, LOST)
        scan = read_scan(whole)
        try:
            reason = f"read, warnings: {list(read_scan(torn).warnings)}"
        except ScanError as error:
            reason = str(error)
    size = (32, 128, 128)
    packed = prepare(scan, Spec(size=size)).volume
    spacing = "x".join(f"{mm:.2g}" for mm in scan.spacing_mm)
    draw(
        HERE / "scan_good.png",
        [*views(scan), *(enlarged(plane) for plane in (packed[size[0] // 2], packed[:, size[1] // 2]))],
        f"Good: {scan.shape[0]} slices, {spacing} mm (z, y, x), no warnings. Left: an axial and a coronal plane as read. "
        f"Right: the same cropped to the lungs, windowed and resized to {'x'.join(map(str, size))}, as the models see it.",
    )
    naive = Scan(np.delete(scan.voxels, LOST, axis=0), scan.spacing_mm, "hu", "dicom")
    draw(
        HERE / "scan_rejected.png",
        views(naive),
        f"Rejected: {reason}. The coronal plane shows what a reader would get that stacks whatever files there are: "
        "lungs that jump.",
    )


def write(scan: Scan, folder: Path, without: tuple[int, ...] | range) -> None:
    """One file per slice, the most cranial one at the top."""
    folder.mkdir()
    z, y, x = scan.spacing_mm
    series, study, frame = (generate_uid() for _ in range(3))
    for index, plane in enumerate(scan.voxels):
        if index in without:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        file.SOPClassUID, file.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = study, series, frame
        file.Modality, file.PatientID, file.ImageType = "CT", "phantom", ["ORIGINAL", "PRIMARY", "AXIAL"]
        file.ImageOrientationPatient, file.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, -index * z]
        file.PixelSpacing, file.SliceThickness = [y, x], z
        file.Rows, file.Columns = plane.shape
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
        file.RescaleSlope, file.RescaleIntercept = 1, 0
        file.PixelData = plane.astype("<i2").tobytes()
        file.save_as(folder / f"{index:04d}.dcm", enforce_file_format=True)


def views(scan: Scan) -> list[Image.Image]:
    """The middle axial and coronal planes, in millimetres."""
    low, high = WINDOW_HU
    grey = (np.clip((scan.voxels.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    z, y, x = scan.spacing_mm
    depth, height, width = scan.shape
    planes = (grey[depth // 2], (height * y, width * x)), (grey[:, height // 2], (depth * z, width * x))
    return [
        Image.fromarray(plane).resize(
            (round(across / MM_PER_PIXEL), round(down / MM_PER_PIXEL)), Image.Resampling.BICUBIC
        )
        for plane, (down, across) in planes
    ]


def enlarged(plane: np.ndarray) -> Image.Image:
    return Image.fromarray(np.asarray(plane)).resize((192, 192), Image.Resampling.BICUBIC)


def draw(path: Path, pictures: list[Image.Image], text: str) -> None:
    """Pictures side by side, text below."""
    width = GAP + sum(picture.width + GAP for picture in pictures)
    height = max(picture.height for picture in pictures)
    letters = width // 48  # pages show every picture at one width
    font = ImageFont.load_default(letters)
    lines = textwrap.wrap(text, int((width - 2 * GAP) / font.getlength("n")))
    sheet = Image.new("L", (width, height + 3 * GAP + round(1.35 * letters) * len(lines)), 16)
    left = GAP
    for picture in pictures:
        sheet.paste(picture, (left, GAP + (height - picture.height) // 2))
        left += picture.width + GAP
    ImageDraw.Draw(sheet).multiline_text((GAP, height + 2 * GAP), "\n".join(lines), fill=235, font=font)
    sheet.save(path, optimize=True)


if __name__ == "__main__":
    main()
