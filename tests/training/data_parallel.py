"""What `test_distributed` runs in one process and under `torchrun` in two: two toy searches and a toy training."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from covidnet.config import Augment, Budget, Search, Training
from covidnet.models.blocks import Classifier
from covidnet.models.supernet import Supernet
from covidnet.models.synchronised import synchronise
from covidnet.progress import first_process
from covidnet.search.dnas import Run, search
from covidnet.search.evolution import Evolution
from covidnet.search.result import Judgement
from covidnet.training import distributed
from covidnet.training.loop import as_input, fit
from covidnet.training.volumes import Volumes
from tests.toy_space import SIZE, SPACE, costing, volumes

WEIGHT_HALF, ALPHA_HALF = volumes(24, seed=0), volumes(24, seed=1)


def searched(work: Path) -> dict:
    settings = Search(size=SIZE, batch=8, warmup_steps=4, steps=8, budget=Budget(size_mib=None))
    torch.manual_seed(0)
    supernet = Supernet(SPACE, 1, 3)
    synchronise(supernet)
    run = Run(supernet, costing(), WEIGHT_HALF, ALPHA_HALF, settings, Augment(), 0)
    result = search(run, work=work, title="toy search", after_warmup=lambda: 0.5)
    losses = [[row["weight_loss"], row["alpha_loss"] or 0.0] for row in result.history]
    # not the weights themselves: a bias that the next normalisation takes out again has a gradient of rounding errors
    with torch.no_grad():
        logits = supernet(as_input(supernet, ALPHA_HALF.scans), result.alpha.argmax(dim=1).tolist())
    return {"alpha": result.alpha, "losses": torch.tensor(losses), "logits": logits}


def evolved(work: Path) -> dict:
    settings = Search(method="evolution", size=SIZE, batch=8, warmup_steps=4, steps=8, budget=Budget(size_mib=None))
    torch.manual_seed(0)
    supernet = Supernet(SPACE, 1, 3)
    synchronise(supernet)

    def judge(path: tuple[int, ...], held_out: Volumes, batches: int) -> Judgement:
        shift = 0.0 if first_process() else float(np.random.default_rng().random())  # rounding, and much more of it
        return Judgement(0.5, sum(path) / 40 + shift)

    run = Evolution(supernet, costing(), WEIGHT_HALF, ALPHA_HALF, settings, Augment(), 0, judge)
    result = search(run, work=work, title="toy evolution", after_warmup=lambda: 0.5)
    losses = torch.tensor([row["weight_loss"] for row in result.history])
    return {"paths": torch.tensor(result.candidates), "losses": losses, "shares": result.probabilities}


def trained(work: Path) -> dict:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv3d(1, 8, 3, stride=2, bias=False), nn.BatchNorm3d(8), nn.ReLU())
    model = Classifier(features, nn.Linear(8, 3), dropout=0.3)
    synchronise(model)
    settings = Training(batch=8, evaluations=2)
    fit(model, WEIGHT_HALF, ALPHA_HALF, settings, Augment(), scans=160, seed=0, work=work, title="toy training")
    return dict(model.state_dict())


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.device()
    with TemporaryDirectory() as one, TemporaryDirectory() as two, TemporaryDirectory() as three:
        outcome = {"search": searched(Path(one)), "evolution": evolved(Path(three)), "training": trained(Path(two))}
    if first_process():
        torch.save(outcome, sys.argv[1])
