"""Damaged files by the thousand through the readers: none may crash a process, hang, or blow up the memory.

    python -m benchmarks.fuzz_readers              # 10,000 files, about 10 minutes on two cores
    python -m benchmarks.fuzz_readers 200 7        # 200 files, drawn with seed 7

Sound files of every format are made, bytes of them flipped, cut, doubled or set to extreme numbers, and each is read by
the workers of `ingest`, under the limits of 20 s and 2 GiB. Exit code 1 if any died, hung or ran out of memory.
"""

import json
import random
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from benchmarks import machine
from covidnet.config import Config, parse
from covidnet.data import worker
from covidnet.data.preprocess import Spec
from covidnet.data.sources import ScanRef

RESULT = Path(__file__).parent / "results" / "fuzz_readers.json"
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "covid-ct-md" / "dicom" / "P002" / "IM0066.dcm"
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff\xff", b"\0\x80", b"nan ")
FAULTS = {"died": "died (", "hung": "not read within", "memory": "needs more than"}


@dataclass
class Tally:
    """What became of the files of one format."""

    files: int = 0
    kept: int = 0
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter)


def main() -> None:
    """Print a table, write `benchmarks/results/fuzz_readers.json`."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    started = time.perf_counter()
    tallies, reasons = fuzz(count, seed)
    print(f"{'format':<18}{'files':>8}{'kept':>8}{'refused':>9}{'died':>7}{'hung':>7}{'memory':>8}")
    for name, tally in sorted(tallies.items()):
        print(f"{name:<18}{tally.files:>8}{tally.kept:>8}{tally.refused:>9}", end="")
        print(f"{tally.faults['died']:>7}{tally.faults['hung']:>7}{tally.faults['memory']:>8}")
    faults = sum((tally.faults for tally in tallies.values()), Counter())
    print(f"{count} files in {time.perf_counter() - started:.0f} s; {faults.total()} faults; commonest reasons:")
    for reason, times in reasons.most_common(8):
        print(f"  {times:>6} x {reason[:100]}")
    result: dict[str, Any] = {"files": count, "seed": seed, "faults": dict(faults), **machine.facts()}
    result["formats"] = {n: {"files": t.files, "kept": t.kept, "refused": t.refused} for n, t in tallies.items()}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(faults.total() > 0)


def fuzz(count: int, seed: int = 0) -> tuple[dict[str, Tally], Counter[str]]:
    """Read ``count`` mutated files; by format what became of them, and the reasons by number."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    reasons: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="covidnet-fuzz-") as folder:
        root, scratch = Path(folder) / "raw", Path(folder) / "unpacked"
        root.mkdir()
        scratch.mkdir()
        config = settings(root)
        originals = seeds(Path(folder))
        kinds = dict(zip(range(count), names(originals), strict=False))
        files = mutated(originals, kinds, root, random.Random(seed))
        for index, scan in worker.run(files, config, Spec(config.data.size), scratch):
            tally = tallies[kinds[index]]
            tally.files += 1
            fault = next((name for name, text in FAULTS.items() if text in scan.reason), "")
            tally.faults.update([fault] if fault else [])
            tally.kept += not scan.reason
            tally.refused += bool(scan.reason) and not fault
            reasons.update([scan.reason.split(";")[0]] if scan.reason else [])
            for path in root.glob(f"{index:06d}.*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return dict(tallies), reasons


def settings(root: Path) -> Config:
    """Any volume is good enough to be decoded."""
    data = {"source": "nifti", "root": str(root), "min_slices": 1, "seconds_per_scan": 20, "memory_gib": 2}
    return parse({"data": {**data, "size": [8, 16, 16]}})


def names(originals: dict[str, bytes]) -> Iterator[str]:
    while True:
        yield from originals


def mutated(
    originals: dict[str, bytes], kinds: dict[int, str], root: Path, rng: random.Random
) -> Iterator[tuple[int, ScanRef]]:
    """Write mutated files one by one, as they are asked for; of zips, what lies within is mutated as often."""
    for index, kind in kinds.items():
        path = root / f"{index:06d}{ENDINGS.get(kind, '.' + kind)}"
        if kind == "zip" and rng.random() < 0.5:
            zipped(path, mutate(originals["dicom"], rng))
        else:
            path.write_bytes(mutate(originals[kind], rng))
        if kind == "png":  # pictures are read by the folder
            folder = path.with_suffix(".folder")
            folder.mkdir(exist_ok=True)
            path = path.replace(folder / "0.png").parent
        yield index, ScanRef(f"{index}", f"{index}", kind, path)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Damage at one to six places, half of them in the header."""
    raw = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        at = rng.randrange(min(len(raw), 800) if rng.random() < 0.5 else len(raw)) if raw else 0
        kind = rng.random()
        if kind < 0.4:
            raw[at : at + 1] = bytes([rng.randrange(256)])
        elif kind < 0.7:
            extreme = rng.choice(EXTREMES)
            raw[at : at + len(extreme)] = extreme
        elif kind < 0.8:
            raw[at : at + rng.randrange(1, 400)] = b""
        elif kind < 0.9:
            raw[at:at] = raw[at : at + rng.randrange(1, 400)]
        else:
            del raw[at:]
    return bytes(raw)


ENDINGS = dict.fromkeys(("dicom", "rle", "jpeg2000", "deflated", "multiframe", "jpeg lossless"), ".dcm")


def seeds(folder: Path) -> dict[str, bytes]:
    """A sound file of every format, and of every DICOM compression that can be written here."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, (6, 32, 32)).astype(np.int16)
    voxels[:, 8:24, 8:24] = 40
    found = {}
    for ending in ("nii", "nii.gz", "nrrd", "mha"):
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / f"a.{ending}"), useCompression=True)
        found[ending] = (folder / f"a.{ending}").read_bytes()
    for name, syntax in (("dicom", None), ("rle", RLELossless), ("jpeg2000", JPEG2000Lossless)):
        ds = slice_of(voxels[:1])
        if syntax:
            ds.compress(syntax)
        found[name] = saved(ds, folder)
    ds = slice_of(voxels[:1])
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    found["deflated"] = saved(ds, folder)
    found["multiframe"] = saved(slice_of(voxels), folder)
    if REAL.exists():
        found["jpeg lossless"] = REAL.read_bytes()
    zipped(folder / "a.zip", found["dicom"])
    found["zip"] = (folder / "a.zip").read_bytes()
    for ending in ("png", "tif"):
        Image.fromarray((voxels[0] + 1000).astype(np.uint16)).save(folder / f"a.{ending}")
    found["png"] = (folder / "a.png").read_bytes()
    return found


def slice_of(voxels: np.ndarray) -> FileDataset:
    """An uncompressed CT object of ``(frames, rows, columns)``."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, meta.MediaStorageSOPInstanceUID, "CT"
    frames, ds.Rows, ds.Columns = voxels.shape
    if frames > 1:
        ds.NumberOfFrames = frames
        ds.PerFrameFunctionalGroupsSequence = [placed(2.0 * index) for index in range(frames)]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.RescaleSlope, ds.RescaleIntercept, ds.PixelSpacing, ds.SliceThickness = 1, 0, [1, 1], 1
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    ds.PixelData = voxels.tobytes()
    return ds


def placed(z_mm: float) -> Dataset:
    """Functional groups of a frame."""
    position, frame = Dataset(), Dataset()
    position.ImagePositionPatient = [0, 0, z_mm]
    frame.PlanePositionSequence = [position]
    return frame


def saved(ds: FileDataset, folder: Path) -> bytes:
    ds.save_as(folder / "a.dcm", enforce_file_format=True)
    return (folder / "a.dcm").read_bytes()


def zipped(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("series/1.dcm", content)


if __name__ == "__main__":
    main()
