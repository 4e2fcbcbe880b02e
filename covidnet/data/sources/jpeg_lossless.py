"""The decoder for JPEG Lossless, the syntax most CT scanners compress with: libjpeg-turbo, by way of `imagecodecs`.

Measured on 133 slices of 512 x 512 on one core, voxels equal: libjpeg-turbo 0.23 s, GDCM (SimpleITK) 0.7 s, pylibjpeg 1.3 s.
pylibjpeg decodes every other JPEG syntax, from memory, behind pydicom's checks of frame lengths. This module is a
decoding plugin of pydicom ("Decoder plugins" in its guide); where `imagecodecs` is not installed, pylibjpeg takes over.
"""

import importlib
import importlib.util
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEGLossless, JPEGLosslessSV1

NAME = "imagecodecs"
SYNTAXES = (JPEGLossless, JPEGLosslessSV1)
DECODER_DEPENDENCIES = dict.fromkeys(SYNTAXES, (NAME,))


def is_available(syntax: UID) -> bool:
    """Part of pydicom's plugin protocol."""
    return syntax in SYNTAXES and importlib.util.find_spec(NAME) is not None


def decode(frame: bytes, runner: Any) -> bytearray:
    """Part of pydicom's plugin protocol: one compressed frame to its pixels, little endian.

    Raises:
        ValueError: the frame has not the size that the header gives; it is never allocated then.
    """
    pixels = np.empty((runner.rows, runner.columns), np.uint8 if runner.bits_allocated == 8 else np.uint16)
    importlib.import_module(NAME).jpeg8_decode(frame, out=pixels)
    return bytearray(pixels.data)


def read(dataset: Dataset) -> np.ndarray | None:
    """The pixels of a plain slice, to what pydicom would give, less a sixth of the time that it takes to prepare for.

    Args:
        dataset: with the file's meta information and its compressed pixels.

    Returns:
        stored values ``(rows, columns)``; None for all but a single grey frame of whole bytes, which is left to pydicom.

    Raises:
        ValueError: the frame has not the size that the header gives; it is never allocated then.
    """
    bits, signed = dataset.BitsAllocated, dataset.PixelRepresentation == 1
    grey = dataset.get("SamplesPerPixel", 1) == 1 and int(dataset.get("NumberOfFrames", 1) or 1) == 1
    if not plugin(dataset.file_meta.TransferSyntaxUID) or not grey or bits not in (8, 16):
        return None
    if signed and dataset.BitsStored != bits:
        return None
    pixels = np.empty((dataset.Rows, dataset.Columns), f"u{bits // 8}")
    importlib.import_module(NAME).jpeg8_decode(next(generate_frames(dataset.PixelData, number_of_frames=1)), out=pixels)
    return pixels.view(f"i{bits // 8}") if signed else pixels


def plugin(syntax: UID) -> str:
    """Name of the decoder to ask pydicom for; empty: its own choice."""
    return NAME if is_available(syntax) else ""


for _syntax in SYNTAXES:
    get_decoder(_syntax).add_plugin(NAME, (__name__, "decode"))
