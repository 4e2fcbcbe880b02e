"""What a map costs beside the forward pass, and which slices it ranks first on labelled real scans.

    python -m benchmarks.cam [--model results/retrain/S] [--bundle results/export/bundle] [--real ../shared/data/covid-ct-md]

The ranking is reported, not claimed: four patients, and a bundle of the demo has only ever seen phantoms.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.machine import facts
from covidnet.data.preprocess import Spec, box_to_scan, prepare
from covidnet.data.sources import read_scan
from covidnet.export.bundle import Bundle
from covidnet.inference.engine import load
from covidnet.models import saved
from covidnet.training import loop

REPEATS = 30


def cost(folder: Path) -> dict[str, float]:
    """Milliseconds of a forward pass with and without the maps, in turns, one scan, torch on CPU."""
    model, description = saved.load(folder)
    loop.place(model, torch.device("cpu"))
    given = loop.as_input(model, torch.randint(0, 256, (1, *description.size), dtype=torch.uint8))
    seconds: dict[str, list[float]] = {"forward": [], "forward and maps": []}
    with torch.inference_mode():
        for repeat in range(REPEATS + 5):
            for name, call in (("forward", model), ("forward and maps", model.explain)):
                start = time.perf_counter()
                call(given)
                if repeat >= 5:  # warm
                    seconds[name].append(time.perf_counter() - start)
    milliseconds = {name: 1e3 * median(values) for name, values in seconds.items()}
    return {**milliseconds, "overhead": milliseconds["forward and maps"] / milliseconds["forward"] - 1}


def slice_ranking(bundle: Bundle, real: Path) -> dict[str, float]:
    """AUROC of a slice's strongest evidence for its scan's class against a radiologist's labels, per scan."""
    engine, spec = load(bundle), Spec.from_dict(bundle.preprocess)
    infected: dict[str, dict[int, int]] = {}
    with (real / "slice_labels.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            infected.setdefault(row["patient"], {})[int(row["png_index_cranial_to_caudal"])] = int(row["infected"])
    ranking = {}
    for path in sorted((real / "nifti_256").glob("*.nii.gz")):
        name, patient = path.name.removesuffix(".nii.gz").split("_", 1)
        truth = infected.get(patient, {})
        scan = read_scan(path)
        labels = np.array([truth.get(2 * i, 0) for i in range(scan.shape[0])])  # every second slice was kept
        if name not in bundle.labels or not 0 < labels.sum() < len(labels):
            continue
        prepared = prepare(scan, spec)
        cam = engine.run(prepared.volume[None, None]).cam[0, bundle.labels.index(name)]
        heat = box_to_scan(cam, prepared.box, scan.shape)
        ranking[f"{name} scan {len(ranking) + 1}"] = float(roc_auc_score(labels, heat.max(axis=(1, 2))))
    return ranking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("results/retrain/S"))
    parser.add_argument("--bundle", type=Path, default=Path("results/export/bundle"))
    parser.add_argument("--real", type=Path, default=Path("../shared/data/covid-ct-md"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cam.json"))
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {"cost": cost(options.model)}
    print("  ".join(f"{name} {value:.2f} ms" for name, value in found["cost"].items() if name != "overhead"))
    print(f"the maps cost {found['cost']['overhead']:.1%} of the forward pass (expected at most 3 %)")
    if options.real.is_dir():
        found["slice_ranking"] = slice_ranking(Bundle.load(options.bundle), options.real)
        for name, auroc in found["slice_ranking"].items():
            print(f"{name:<16} AUROC of infected slices {auroc:.2f}  (reported, not claimed)")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**facts(), **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
