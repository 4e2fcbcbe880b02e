"""Every JPEG that a CT comes in, written by one library and read as a series."""

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from covidnet.data.sources import jpeg, read_scan
from covidnet.errors import ScanError
from tests.data.sources.dicom_series import series, write

GREYS = (
    np.add.outer(np.arange(6), np.add.outer(np.arange(32), np.arange(40))).astype(np.uint16) * 20
)  # (D, H, W), 12 bits
WAYS = {
    JPEGBaseline8Bit: (8, 2, lambda plane: imagecodecs.jpeg8_encode(plane, level=100)),
    JPEGExtended12Bit: (12, 8, lambda plane: imagecodecs.jpeg8_encode(plane, level=100, bitspersample=12)),
    JPEGLossless: (12, 0, lambda plane: imagecodecs.jpeg8_encode(plane, lossless=True, predictor=4, bitspersample=12)),
    JPEGLosslessSV1: (16, 0, lambda plane: imagecodecs.jpeg8_encode(plane, lossless=True, bitspersample=16)),
    JPEGLSLossless: (12, 0, imagecodecs.jpegls_encode),
    JPEGLSNearLossless: (12, 3, lambda plane: imagecodecs.jpegls_encode(plane, level=3)),
}


@pytest.mark.parametrize("syntax", WAYS, ids=lambda syntax: syntax.name)
def test_grey_levels_survive(tmp_path: Path, syntax: str) -> None:
    bits, tolerance, encode = WAYS[syntax]
    kind = np.uint8 if bits == 8 else np.uint16
    planes = (GREYS >> (4 if bits == 8 else 0)).astype(kind)
    slices = series(planes.astype(np.int16) - 1000)
    for ds, plane in zip(slices, planes, strict=True):
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8 * kind().itemsize, bits, bits - 1, 0
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1000
        ds.PixelData = encapsulate([encode(plane)])
        ds["PixelData"].VR = "OB"
        ds.file_meta.TransferSyntaxUID = syntax
    found = read_scan(write(tmp_path / "s", slices)).voxels
    assert np.abs(found.astype(int) - (planes.astype(int) - 1000)).max() <= tolerance


def test_a_frame_of_another_size_than_the_header_says_is_refused(tmp_path: Path) -> None:
    slices = series(np.zeros((4, 16, 16), np.int16))
    for ds in slices:
        ds.PixelData = encapsulate([imagecodecs.jpegls_encode(np.zeros((8, 8), np.uint16))])
        ds["PixelData"].VR = "OB"
        ds.file_meta.TransferSyntaxUID = JPEGLSLossless
    with pytest.raises(ScanError, match="can't be decoded"):
        read_scan(write(tmp_path / "s", slices))


def test_other_syntaxes_are_left_to_pydicom() -> None:
    assert jpeg.plugin(JPEGLosslessSV1) == "imagecodecs"
    assert jpeg.plugin("1.2.840.10008.1.2.5") == ""  # RLE
