"""What reading scans costs while a network trains: packed data against MONAI's ways, and its share of a search step.

    python -m benchmarks.loader                              # about 5 minutes on two cores
    python -m benchmarks.loader --scans 64 --raw 2 --steps 3

The raw scans are phantoms as NIfTI files of MosMedData's size, 40 slices of 512 x 512; the packed ones are what `ingest`
makes of them, 16 x 64 x 64. Compared per scan and epoch: MONAI's usual chain of load, orient, window, crop and resize; its
`CacheDataset` of the outcome; and the packed array; without augmentation, and with that of the demo. Targets: loading
from files takes at least 1,000 times as long as the packed array, the cache with augmentation 5 times, and a search step
spends at most 5 % on its two batches.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import nibabel
import numpy as np
import torch
from monai import transforms as monai
from monai.data import CacheDataset, DataLoader, Dataset

from benchmarks.headlines import judge
from benchmarks.machine import facts
from covidnet.config import Augment, Budget, Search
from covidnet.data.augment import augment
from covidnet.data.preprocess import Spec, prepare
from covidnet.data.sources.phantom import LABELS, generate
from covidnet.models import cost
from covidnet.models.covidnet3d import SPACES
from covidnet.models.supernet import Supernet
from covidnet.search.budget import Costing
from covidnet.search.dnas import Run, search
from covidnet.training.loop import place
from covidnet.training.volumes import Volumes, generator

SIZE, RAW, BATCH = (16, 64, 64), (40, 512, 512), 16
RESULT = Path(__file__).parent / "results" / "loader.json"


def main() -> None:
    """Print the table, write it beside this file; exit code 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=512, help="packed scans")
    parser.add_argument("--raw", type=int, default=16, help="files that MONAI reads")
    parser.add_argument("--steps", type=int, default=30, help="iterations of the search")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="covidnet-loader-") as folder:
        files, volumes = scans(options.raw, Path(folder))
        files_s = per_scan(lambda: epoch(Dataset(files, chain())), options.raw)
    repeated = volumes[np.arange(options.scans) % len(volumes)]
    packed = Volumes(torch.from_numpy(repeated), torch.arange(options.scans) % len(LABELS))
    cached = [{"image": torch.from_numpy(volume[None].astype(np.float32))} for volume in repeated]
    plain, augmented = (
        {
            "files": files_s,
            "cache": per_scan(
                lambda steps=steps: epoch(CacheDataset(cached, monai.Compose(steps), progress=False)), len(cached)
            ),
            "packed": per_scan(lambda settings=settings: passes(packed, settings), len(packed)),
        }
        for steps, settings in (([still()], None), ([still(), *same_augmentation(Augment())], Augment()))
    )
    step_s, loading_s = search_step(packed, options.steps)
    ratios = {
        "files / packed": plain["files"] / plain["packed"],
        "cache / packed": plain["cache"] / plain["packed"],
        "cache / packed, augmented": augmented["cache"] / augmented["packed"],
        "share of a search step": loading_s / step_s,
    }
    print(f"{'ms per scan and epoch':<28}{'files':>10}{'cache':>10}{'packed':>10}")
    for name, row in (("no augmentation", plain), ("the demo's augmentation", augmented)):
        print(f"{name:<28}" + "".join(f"{1e3 * row[kind]:>10.3f}" for kind in ("files", "cache", "packed")))
    print(f"{'search step, ms':<28}{1e3 * step_s:>10.1f}, of which loading {1e3 * loading_s:.1f}\n")
    result: dict[str, Any] = {"scans": options.scans, "size": SIZE, "raw_size": RAW, "batch": BATCH}
    result |= {"seconds_per_scan": {"plain": plain, "augmented": augmented}, "search_step_s": step_s, "ratios": ratios}
    missed = judge("loader", result)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({**result, "threads": torch.get_num_threads(), **facts()}, indent=2) + "\n")
    sys.exit(bool(missed))


def scans(count: int, folder: Path) -> tuple[list[dict[str, str]], np.ndarray]:
    """Phantoms as compressed NIfTI files, and as ``uint8 (N, *SIZE)``."""
    files, volumes = [], []
    for index in range(count):
        scan = generate(LABELS[index % len(LABELS)], seed=0, index=index, difficulty=0.5, detail=RAW).scan
        volumes.append(prepare(scan, Spec(size=SIZE)).volume)
        z, y, x = scan.spacing_mm
        file = folder / f"{index}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(scan.voxels.T[:, :, ::-1], np.diag([-x, -y, z, 1.0])), file)
        files.append({"image": str(file)})
    return files, np.stack(volumes)


def chain() -> monai.Compose:
    """The usual one for chest CT in MONAI's tutorials."""
    return monai.Compose(
        [
            monai.LoadImaged("image"),
            monai.EnsureChannelFirstd("image"),
            monai.Orientationd("image", axcodes="SPL", labels=None),
            monai.ScaleIntensityRanged("image", -1000, 400, -1, 1, clip=True),
            monai.CropForegroundd("image", source_key="image", select_fn=lambda x: x > -0.9),
            monai.Resized("image", SIZE, mode="area"),
        ]
    )


def still() -> monai.MapTransform:
    """From bytes to -1..1, as the packed data goes."""
    return monai.ScaleIntensityRanged("image", 0, 255, -1, 1)


def same_augmentation(settings: Augment) -> list[monai.MapTransform]:
    """Like `covidnet.data.augment`: flip, affine in the axial plane, gain and offset, noise."""
    turn, zoom = np.radians(settings.rotate_deg), settings.scale
    shifts = [(0, 0), *((-settings.shift * side, settings.shift * side) for side in SIZE[1:])]
    return [
        monai.RandFlipd("image", prob=0.5, spatial_axis=2),
        monai.RandAffined(
            "image", prob=1.0, rotate_range=[(-turn, turn), (0, 0), (0, 0)], translate_range=shifts,
            scale_range=[(0, 0), (-zoom, zoom), (-zoom, zoom)], padding_mode="border",
        ),
        monai.RandScaleIntensityd("image", settings.intensity, prob=1.0),
        monai.RandShiftIntensityd("image", settings.intensity, prob=1.0),
        monai.RandGaussianNoised("image", prob=1.0, std=2 * settings.noise),
    ]  # fmt: skip


def epoch(dataset: Dataset) -> None:
    """All scans once, in shuffled batches."""
    for _ in DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=0):
        pass


def passes(packed: Volumes, settings: Augment | None) -> None:
    """The same from memory."""
    for step in range(len(packed) // min(BATCH, len(packed))):
        batch, _ = packed.batch(step, BATCH, 0)
        if settings is None:
            batch.float().div_(127.5).sub_(1)
        else:
            augment(batch, settings, generator(0, step))


def per_scan(run: Callable[[], None], count: int) -> float:
    """Seconds per scan: median of three epochs, or of as many as fit in a second."""
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < 1:
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return median(seconds) / count


def search_step(packed: Volumes, steps: int) -> tuple[float, float]:
    """Seconds of a joint iteration of the demo's search, and those that its two augmented batches take."""
    space, settings = SPACES["S"], Search(warmup_steps=0, steps=steps, batch=BATCH)
    costing = Costing(cost.table(space, SIZE, 1, len(LABELS)), Budget())
    torch.manual_seed(0)
    supernet = place(Supernet(space, 1, len(LABELS), share_weights=True), torch.device("cpu"))

    def load() -> None:
        for stream in (1, 3):
            batch, _ = packed.batch(0, BATCH, stream)
            augment(batch, Augment(), generator(0, stream, 0))

    with tempfile.TemporaryDirectory() as work:
        started = time.perf_counter()
        run = Run(supernet, costing, packed, packed, settings, Augment(), 0)
        search(run, work=Path(work), title="search", after_warmup=lambda: 0.0)
        step_s = (time.perf_counter() - started) / steps
    return step_s, per_scan(load, 1)


if __name__ == "__main__":
    main()
