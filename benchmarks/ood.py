"""How well do scores tell scans that aren't chest CTs like the training data? AUROC by kind, and false alarms.

    python -m benchmarks.ood [--bundle results/export/bundle] [--dataset results/dataset] [--scans 100]

The foreign scans are made from fresh phantoms. `novelty` is the bundle's detector; `energy` that of its logits.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from benchmarks.machine import facts
from covidnet.data import packed
from covidnet.data.preprocess import Spec, prepare
from covidnet.data.scan import Scan
from covidnet.data.sources import phantom
from covidnet.evaluation.calibration import energy
from covidnet.export.bundle import Bundle
from covidnet.inference.engine import load

SEED = 977  # another than any dataset's here


def abdomen(scan: Scan, rng: np.random.Generator) -> Scan:
    """The same body with organs and gas where lungs and airways were."""
    voxels = scan.voxels.astype(np.int32)
    for plane in voxels:
        body = ndimage.binary_fill_holes(ndimage.binary_opening(plane > -300))
        plane[body & (plane < -100)] = 50
        plane[body] += rng.normal(0, 15, int(body.sum())).astype(int)
        for y, x in np.argwhere(body)[rng.integers(max(body.sum(), 1), size=4)] if body.any() else ():
            plane[y : y + 4, x : x + 5] = rng.choice([-900, -100, 90])
    return replace(scan, voxels=voxels.astype(np.int16))


def half(scan: Scan, axis: int, rng: np.random.Generator) -> Scan:
    """One half of the scan along an axis."""
    side = scan.shape[axis]
    start = int(rng.integers(2)) * (side // 2)
    return replace(scan, voxels=np.ascontiguousarray(scan.voxels.take(range(start, start + side // 2), axis)))


KINDS: dict[str, Callable[[Scan, np.random.Generator], Scan]] = {
    "shuffled slices": lambda s, rng: replace(s, voxels=s.voxels[rng.permutation(len(s.voxels))]),
    "abdomen": abdomen,
    "inverted HU": lambda s, rng: replace(s, voxels=(-600 - s.voxels).clip(-1024, 3000).astype(np.int16)),
    "HU without intercept": lambda s, rng: replace(s, voxels=(s.voxels + 1024).clip(0).astype(np.int16)),
    "one lung cut off": lambda s, rng: half(s, 2, rng),
    "half the slices": lambda s, rng: half(s, 0, rng),
    "constant": lambda s, rng: replace(s, voxels=np.full_like(s.voxels, rng.integers(-1000, 400))),
    "noise": lambda s, rng: replace(s, voxels=rng.integers(-1000, 400, s.shape).astype(np.int16)),
}


def fresh_scan(difficulty: float, detail: tuple[int, int, int], index: int) -> Scan:
    """A phantom that no dataset here has, classes taking turns."""
    label = phantom.LABELS[index % len(phantom.LABELS)]
    return phantom.generate(label, seed=SEED, index=index, difficulty=difficulty, detail=detail).scan


def prepared(make: Callable[[int], Scan], spec: Spec, index: int) -> np.ndarray:
    """The volume that a network would see of a scan."""
    return prepare(make(index), spec).volume


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("results/export/bundle"))
    parser.add_argument("--dataset", type=Path, default=Path("results/dataset"))
    parser.add_argument("--scans", type=int, default=100, help="fresh phantoms per kind")
    parser.add_argument("--fresh", type=int, default=3000, help="fresh phantoms that should raise no alarm")
    parser.add_argument("--difficulty", type=float, default=0.0)
    parser.add_argument("--detail", type=int, nargs=3, default=(40, 96, 96))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ood.json"))
    options = parser.parse_args()
    bundle = Bundle.load(options.bundle)
    engine, spec = load(bundle), Spec.from_dict(bundle.preprocess)
    opened = packed.read(options.dataset)
    rng = np.random.default_rng(SEED)
    make = partial(fresh_scan, options.difficulty, tuple(options.detail))
    fresh = [make(i) for i in range(options.scans)]

    def scores(volumes: np.ndarray) -> dict[str, np.ndarray]:
        logits = np.concatenate([engine.run(np.ascontiguousarray(volumes[i : i + 16, None])).logits
                                 for i in range(0, len(volumes), 16)])  # fmt: skip
        return {"novelty": bundle.calibration.novelty.scores(volumes), "energy": energy(logits)}

    known = scores(opened.scans[opened.split("test")])
    detector = bundle.calibration.novelty
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        volumes = np.stack(list(pool.map(partial(prepared, make, spec), range(options.fresh), chunksize=25)))
    alarms = {
        "test split": float((known["novelty"] > 0).mean()),
        "fresh phantoms": float((detector.scores(volumes) > 0).mean()),
    }
    auroc: dict[str, dict[str, float]] = {}
    for kind, change in KINDS.items():
        foreign = scores(np.stack([prepare(change(scan, rng), spec).volume for scan in fresh]))
        truth = [0] * len(known["energy"]) + [1] * len(fresh)
        auroc[kind] = {name: float(roc_auc_score(truth, [*known[name], *foreign[name]])) for name in known}
        auroc[kind]["flagged"] = float((foreign["novelty"] > 0).mean())
    print(f"{'AUROC against':<24}{'novelty':>10}{'energy':>10}{'flagged':>10}")
    for kind, row in auroc.items():
        print(f"{kind:<24}{row['novelty']:>10.3f}{row['energy']:>10.3f}{row['flagged']:>10.1%}")
    rate = detector.false_alarm_rate
    print(f"false alarms, stated {rate:.1%}: " + ", ".join(f"{name} {share:.1%}" for name, share in alarms.items()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results = {
        "scans": options.scans,
        "fresh": options.fresh,
        "auroc": auroc,
        "stated_false_alarms": rate,
        "false_alarms": alarms,
    }
    options.out.write_text(json.dumps({**facts(), **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
