"""How well a trained 3D CNN tells phantoms apart: accuracy by difficulty and number of training scans.

    python -m benchmarks.phantoms                                   # an hour on two cores
    python -m benchmarks.phantoms --difficulty 1 --scans 400 --steps 200

The network is a plain one of four 3x3x3 convolutions, 16 to 96 channels, which learns in fewer steps than a deep one,
trained by the project's own loop with the settings of the demo. Every row trains for the same number of steps, so a
small set is repeated more often. Test scans are patients of their own.
"""

import argparse
import json
import os
import tempfile
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from torch import nn

from benchmarks.machine import facts
from covidnet.config import Augment, Training
from covidnet.data.preprocess import Spec, prepare
from covidnet.data.sources.phantom import LABELS, generate
from covidnet.models.blocks import Classifier
from covidnet.models.covidnet3d import conv_bn
from covidnet.training.loop import fit, logits, place
from covidnet.training.volumes import Volumes

SIZE, VALIDATION, TEST = (16, 64, 64), 300, 600
WIDTHS = (16, 32, 64, 96)
RESULTS = Path(__file__).parent / "results" / "phantoms.json"


def main() -> None:
    """Print the table and write it beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--difficulty", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--scans", type=int, nargs="+", default=[400, 1600, 3200], help="training scans")
    parser.add_argument("--steps", type=int, default=2000, help="weight updates of 16 scans")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    print(
        f"{'difficulty':>10} {'scans':>6} {'steps':>6} {'accuracy':>9} {'95 %':>12}   sensitivity {' / '.join(LABELS)}"
    )
    rows = []
    for difficulty in options.difficulty:
        scans, labels = phantoms(VALIDATION + TEST + max(options.scans), difficulty)
        for count in options.scans:
            row = {"difficulty": difficulty, "training_scans": count, "steps": options.steps}
            row |= accuracy(scans, labels, count, options.steps)
            rows.append(row)
            low, high = row["interval"]
            per_class = " / ".join(f"{100 * value:.0f}" for value in row["sensitivity"].values())
            print(
                f"{difficulty:10g} {count:6} {options.steps:6} {100 * row['accuracy']:8.1f}% "
                f"{100 * low:5.1f}-{100 * high:5.1f}   {per_class}",
                flush=True,
            )
            options.out.parent.mkdir(exist_ok=True)
            options.out.write_text(
                json.dumps({**facts(), "network": WIDTHS, "size": SIZE, "rows": rows}, indent=2) + "\n"
            )


def phantoms(count: int, difficulty: float) -> tuple[np.ndarray, np.ndarray]:
    """Prepared scans ``uint8 (N, D, H, W)`` of as many patients, classes in turn, and their class indices."""
    with get_context("fork").Pool(os.cpu_count()) as pool:
        scans = pool.map(partial(_phantom, difficulty=difficulty), range(count), chunksize=16)
    return np.stack(scans), np.arange(count) % len(LABELS)


def _phantom(index: int, difficulty: float) -> np.ndarray:
    scan = generate(LABELS[index % len(LABELS)], seed=0, index=index, difficulty=difficulty).scan
    return prepare(scan, Spec(size=SIZE)).volume


def network() -> Classifier:
    """Four convolutions; the first halves the axial plane only, since there are few slices."""
    layers: list[nn.Module] = [nn.AvgPool3d((1, 2, 2)), conv_bn(1, WIDTHS[0], 3)]
    layers += [conv_bn(c_in, c_out, 3, stride=2) for c_in, c_out in pairwise(WIDTHS)]
    return Classifier(nn.Sequential(*layers), nn.Linear(WIDTHS[-1], len(LABELS)), dropout=0.2)


def accuracy(scans: np.ndarray, labels: np.ndarray, training_scans: int, steps: int) -> dict:
    """Train on the last ``training_scans`` patients; accuracy on the first `TEST`, with its Wilson interval."""
    tensors = torch.from_numpy(scans), torch.from_numpy(labels)
    test, validation, train = (
        Volumes(*(tensor[part] for tensor in tensors))
        for part in (slice(TEST), slice(TEST, TEST + VALIDATION), slice(len(scans) - training_scans, None))
    )
    torch.manual_seed(0)
    model = place(network(), torch.device("cpu"))
    settings = Training()
    with tempfile.TemporaryDirectory() as work:
        fit(
            model, train, validation, settings, Augment(),
            scans=steps * settings.batch, seed=0, work=Path(work), title=f"{training_scans} scans",
        )  # fmt: skip
    hits = logits(model, test).argmax(1) == labels[:TEST]
    interval = binomtest(int(hits.sum()), TEST).proportion_ci(method="wilson")
    return {
        "accuracy": float(hits.mean()),
        "interval": [interval.low, interval.high],
        "sensitivity": {label: float(hits[labels[:TEST] == i].mean()) for i, label in enumerate(LABELS)},
    }


if __name__ == "__main__":
    main()
