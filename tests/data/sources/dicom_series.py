"""Classic CT series as hospitals have them, written with pydicom, small and under a patient's name to look for."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = [1, 0, 0, 0, 1, 0]
STEP_MM = 2.5
NAME = "Doe^Jane"
PATIENT = "MRN-4711"


def body(depth: int = 6) -> np.ndarray:
    """``int16 (depth, 12, 16)``: a different number in every voxel of a block, air around it."""
    hu = np.full((depth, 12, 16), -1000, np.int16)
    hu[:, 3:9, 4:12] = np.arange(depth * 48).reshape(depth, 6, 8)
    return hu


def slice_of(hu: np.ndarray, z_mm: float, number: int, **header: Any) -> FileDataset:
    """A classic CT slice; ``header`` replaces or, with None, deletes elements."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.PatientName, ds.PatientID, ds.SeriesInstanceUID = "CT", NAME, PATIENT, "1.2.3"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Rows, ds.Columns = hu.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.PixelSpacing, ds.SliceThickness = [0.7, 0.5], STEP_MM
    ds.ImageOrientationPatient, ds.ImagePositionPatient = AXIAL, [-100, -90, z_mm]
    ds.InstanceNumber = number
    ds.PixelData = (hu.astype(np.int32) + 1024).astype("<u2").tobytes()
    for keyword, value in header.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def series(hu: np.ndarray, first_z_mm: float = 50.0, **header: Any) -> list[FileDataset]:
    """Slices from cranial to caudal, as `Scan` has them; instance numbers run the same way."""
    return [slice_of(plane, first_z_mm - STEP_MM * i, i + 1, **header) for i, plane in enumerate(hu)]


def write(folder: Path, slices: list[FileDataset], prefix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    for index, ds in enumerate(slices):
        ds.save_as(folder / f"{prefix}{index:04d}.dcm", enforce_file_format=True)
    return folder
