import gzip
import io
import signal
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covidnet.data.preprocess import Spec, prepare
from covidnet.data.scan import Scan
from covidnet.data.sources import read_scan
from serving import decode
from serving.decode import Decoding
from serving.errors import UnknownFormat, Unreadable

SPEC = Spec(size=(16, 64, 64))


class Instead:
    """Calls a function in the process that unpickles it: here, the one that was to decode."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def test_a_file_is_decoded_and_prepared_as_in_this_process(nifti: Path) -> None:
    decoded = Decoding(nifti, SPEC, draw=False).run()
    here = prepare(read_scan(nifti), SPEC)
    assert np.array_equal(decoded.prepared.volume, here.volume)
    assert decoded.prepared.box == here.box
    assert decoded.picture is None


def test_a_picture_has_half_the_side_of_large_slices_and_the_mean_of_each_block() -> None:
    voxels = np.full((8, 512, 512), -1000, np.int16)
    voxels[:, ::2] = 400  # every block of 2 x 2 has two of each
    picture = decode.prepared(Scan(voxels, (5.0, 0.7, 0.7)), Spec((8, 16, 16), crop="none"), draw=True).picture
    assert picture is not None
    assert picture.voxels.shape == (8, 256, 256)
    assert np.unique(picture.voxels).tolist() == [-300]
    assert picture.spacing_mm == (5.0, 1.4, 1.4)
    assert picture.box == ((0, 8), (0, 256), (0, 256))


def test_a_picture_of_many_slices_is_no_larger_than_a_browser_is_sent() -> None:
    voxels = np.repeat(np.arange(600, dtype=np.int16), 256 * 256).reshape(600, 256, 256)
    picture = decode.prepared(Scan(voxels, (1.0, 1.0, 1.0)), Spec((8, 16, 16), crop="none"), draw=True).picture
    assert picture is not None
    assert picture.voxels.size <= decode.PICTURE_VOXELS
    assert picture.voxels[:2, 0, 0].tolist() == [1, 4]  # the means of slices 0, 1, 2 and 3, 4, 5
    assert picture.spacing_mm == (3.0, 1.0, 1.0)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crashing_decoder_is_an_unreadable_scan(nifti: Path, number: int) -> None:
    with pytest.raises(Unreadable, match="crashed"):
        Decoding(nifti, Instead(signal.raise_signal, number), draw=False).run()  # type: ignore[arg-type]


def test_a_hanging_decoder_is_ended(nifti: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "DEADLINE_S", 0.5)
    with pytest.raises(Unreadable, match=r"longer than 0\.5 s"):
        Decoding(nifti, Instead(time.sleep, 600), draw=False).run()  # type: ignore[arg-type]


def test_a_decoding_that_nobody_waits_for_is_ended(nifti: Path) -> None:
    decoding = Decoding(nifti, Instead(time.sleep, 600), draw=False)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(decoding.run)
        time.sleep(0.5)
        decoding.stop()
        with pytest.raises(Unreadable):
            result.result(timeout=10)


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", 6 * 2**30), (str(2**40), 6 * 2**30), (str(4 * 2**30), 3 * 2**29), ("1000", 2**30)]
)
def test_decoders_share_what_a_container_may_use(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "memory.max").write_text(limit)
    assert decode.memory_limit(tmp_path / "memory.max") == expected


def test_a_damaged_file_is_unreadable_and_its_content_is_not_quoted(tmp_path: Path, nifti: Path) -> None:
    content = nifti.read_bytes()
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(Unreadable) as refused:
        Decoding(path, SPEC, draw=False).run()
    assert str(tmp_path) not in str(refused.value)


def test_a_zip_may_not_have_a_header_that_names_a_file_of_the_server(tmp_path: Path) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(16 * 64 * 64 * 2))
    folder = tmp_path / "upload"
    folder.mkdir()
    header = f"NDims = 3\nDimSize = 64 64 16\nElementType = MET_SHORT\nElementDataFile = {secret}\n"
    with zipfile.ZipFile(folder / "scan.zip", "w") as archive:
        archive.writestr("scan.mhd", header)
    with pytest.raises(Unreadable, match="MetaImage"):
        Decoding(folder / "scan.zip", SPEC, draw=False).run()


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (gzip.compress(b"volume", mtime=0), ".nii.gz"),
        (bytes(344) + b"n+1\0" + bytes(4), ".nii"),
        (b"\x1c\x02\0\0n+2\0\r\n\x1a\n" + bytes(540), ".nii"),
        (bytes(128) + b"DICM" + bytes(200), ".dcm"),
    ],
)
def test_the_content_decides_the_format(head: bytes, expected: str) -> None:
    assert decode.suffix(head[: decode.HEAD_BYTES]) == expected


def test_a_zip_is_recognised() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", "b")
    assert decode.suffix(stream.getvalue()) == ".zip"


@pytest.mark.parametrize("head", [b"", b"\x1f", b"%PDF-1.7", b"<html>", bytes(352)])
def test_anything_else_is_no_scan(head: bytes) -> None:
    with pytest.raises(UnknownFormat):
        decode.suffix(head)
