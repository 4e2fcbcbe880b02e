"""Folders of pictures, and what `read_scan` makes of folders and zips in general."""

import contextlib
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covidnet.data.sources import archive, facts, read_scan
from covidnet.errors import ScanError, UsageError


def levels(depth: int = 12) -> np.ndarray:
    """``uint8 (depth, 20, 24)``, every slice another grey."""
    return np.random.default_rng(1).integers(0, 256, (depth, 20, 24)).astype(np.uint8)


def save(folder: Path, volume: np.ndarray, ending: str = "png", name: str = "IM{}") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, plane in enumerate(volume):
        Image.fromarray(plane).save(folder / f"{name.format(index)}.{ending}")
    return folder


def test_slices_are_in_the_natural_order_of_their_names(tmp_path: Path) -> None:
    scan = read_scan(save(tmp_path / "scan", levels()))  # IM10 comes after IM9, not after IM1
    assert np.array_equal(scan.voxels, levels())
    assert (scan.format, scan.intensity, scan.orientation) == ("slices", "display", "assumed")
    assert scan.spacing_mm == (0.0, 0.0, 0.0)


def test_grey_stored_as_colour_is_grey_and_colour_is_refused(tmp_path: Path) -> None:
    rgb = np.repeat(levels()[..., None], 3, axis=3)
    assert np.array_equal(read_scan(save(tmp_path / "grey", rgb)).voxels, levels())
    rgb[3, 5, 5] = (255, 0, 0)
    with pytest.raises(ScanError, match="in colour"):
        read_scan(save(tmp_path / "colour", rgb))


def test_jpeg_of_a_smooth_slice_is_within_its_rounding(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(20, 230, 24).astype(np.uint8), (3, 16, 1))
    scan = read_scan(save(tmp_path / "scan", ramp, "jpg"))
    assert np.abs(scan.voxels - ramp.astype(int)).max() <= 4


def test_sixteen_bit_tiff_holds_stored_ct_values(tmp_path: Path) -> None:
    stored = np.random.default_rng(2).integers(0, 5000, (9, 16, 16)).astype(np.uint16)
    scan = read_scan(save(tmp_path / "scan", stored, "tif", "137covid_patient1_SR_2_IM{:05d}"))
    assert scan.intensity == "hu"
    assert np.array_equal(scan.voxels, stored.astype(int) - 1024)
    assert any("HU = value -1024" in warning for warning in scan.warnings)


def test_sixteen_bit_files_of_eight_bit_values_are_display_levels(tmp_path: Path) -> None:
    scan = read_scan(save(tmp_path / "scan", levels().astype(np.uint16), "tiff"))
    assert scan.intensity == "display"
    assert np.array_equal(scan.voxels, levels())


def test_mixed_sizes_and_kinds_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "sizes", levels())
    Image.fromarray(levels()[0, :10]).save(folder / "IM5.png")
    with pytest.raises(ScanError, match="slice 5"):
        read_scan(folder)
    folder = save(tmp_path / "kinds", levels())
    Image.fromarray(levels()[0].astype(np.uint16)).save(folder / "IM5.png")
    with pytest.raises(ScanError, match="slice 5"):
        read_scan(folder)


def test_damaged_picture_is_refused_without_its_name(tmp_path: Path) -> None:
    folder = save(tmp_path / "Doe^Jane", levels())
    file = folder / "IM3.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ScanError, match="can't be decoded") as caught:
        read_scan(folder)
    assert "Doe" not in str(caught.value)


def test_a_damaged_length_claims_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "0.png"
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(file)
    content = bytearray(file.read_bytes())
    at = content.index(b"IDAT") - 4
    content[at : at + 4] = b"\xf0\0\0\0"  # 4 GB of compressed pixels
    file.write_bytes(content)
    tracemalloc.start()
    with contextlib.suppress(ScanError):  # what there is may be enough for the picture
        read_scan(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_huge_picture_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("covidnet.data.sources.slices.MAX_PIXELS", 479)
    with pytest.raises(ScanError, match="20 x 24"):
        read_scan(save(tmp_path / "scan", levels()))


def test_facts_are_json_ready_and_named_as_documented(tmp_path: Path) -> None:
    found = facts(read_scan(save(tmp_path / "scan", levels())))
    assert list(found) == [
        "format", "shape", "spacing_mm", "orientation", "hu_min", "hu_max", "slices", "intensity", "warnings",
    ]  # fmt: skip
    assert found["shape"] == [12, 20, 24]
    assert (found["hu_min"], found["hu_max"], found["slices"]) == (levels().min(), levels().max(), 12)


def test_what_is_no_scan_is_told_with_what_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    for path in (tmp_path / "notes.txt", tmp_path):
        with pytest.raises(ScanError, match=r"NIfTI \(\.nii, \.nii\.gz\)"):
            read_scan(path)
    with pytest.raises(UsageError, match="no such file or folder"):
        read_scan(tmp_path / "absent")
    with pytest.raises(ScanError, match="one picture"):
        read_scan(save(tmp_path / "scan", levels()) / "IM0.png")


def test_two_scans_in_one_folder_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "patient" / "a", levels())
    save(tmp_path / "patient" / "b", levels())
    with pytest.raises(ScanError, match="2 subfolders"):
        read_scan(tmp_path / "patient")


def zipped(target: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return target


def test_zip_of_a_folder(tmp_path: Path) -> None:
    folder = save(tmp_path / "scan", levels())
    file = zipped(tmp_path / "scan.zip", {f"scan/{p.name}": p.read_bytes() for p in folder.iterdir()})
    assert np.array_equal(read_scan(file).voxels, levels())


@pytest.mark.parametrize("name", ["../escape.png", "/etc/escape.png", "a/../../escape.png", "..\\escape.png"])
def test_zip_that_would_escape_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ScanError, match="leaves its folder"):
        read_scan(zipped(tmp_path / "scan.zip", {name: b"x"}))


def test_zip_with_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as packed:
        packed.writestr(link, "/etc/passwd")
    with pytest.raises(ScanError, match="symbolic link"):
        read_scan(tmp_path / "scan.zip")


def test_zip_bombs_are_refused_before_inflating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zipped(tmp_path / "bomb.zip", {"a.dcm": bytes(20 * 2**20)})
    with pytest.raises(ScanError, match="at most 200-fold"):
        read_scan(bomb)
    monkeypatch.setattr(archive, "MAX_FILES", 2)
    with pytest.raises(ScanError, match="3 members"):
        read_scan(zipped(tmp_path / "many.zip", dict.fromkeys("abc", b"x")))
    monkeypatch.setattr(archive, "MAX_BYTES", 2**20)
    with pytest.raises(ScanError, match="unpacks to"):
        read_scan(bomb)


def test_damaged_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scan.zip").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ScanError, match="can't be unpacked"):
        read_scan(tmp_path / "scan.zip")
