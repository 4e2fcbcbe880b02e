"""Training on mixed scans with boxes blotted out: the stages as users run them, again and after an interruption."""

import json
from contextlib import nullcontext

import pytest

from covidnet import config, folder, stages
from covidnet.errors import CovidnetError
from covidnet.models.covidnet3d import SPACES, Genotype
from covidnet.training import loop

AUGMENT = {"mixup": 0.2, "cutout": 0.3}
SETTINGS = {
    "data": {"phantom": {"patients": 45, "detail": [16, 32, 32]}, "size": [16, 32, 32]},
    "training": {"budget": "epochs", "epochs": 2, "evaluations": 2, "batch": 8},
    "augment": AUGMENT,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("mixed") / "dataset"
    stages.ingest(config.parse(SETTINGS), out)
    return out


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A small architecture of the space, without a search."""
    out = tmp_path_factory.mktemp("mixed") / "search"
    blocks = tuple(("3x3_MBConv3", *("Identity",) * (count - 1)) for count in SPACES["S"].blocks)
    with folder.write(out, "search", {}, {}) as work:
        Genotype("S", ("NCP", "CP", "Normal"), 1, (16, 32, 32), blocks).save(work / "genotype.json")
    return out


def retrain(settings, dataset, searched, out):
    return stages.retrain(config.parse(settings), dataset, searched, out, "S")


def baseline(settings, dataset, searched, out):
    return stages.baseline(config.parse(settings), dataset, out, "densenet3d121")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [retrain, baseline], ids=lambda stage: stage.__name__)
def test_mixed_training_goes_on_to_the_same_weights_bit_for_bit(dataset, searched, tmp_path, monkeypatch, stage):
    stage(SETTINGS, dataset, searched, tmp_path / "whole")
    real, steps, labels = loop.update, [], []

    def interrupted_update(model, volume, targets, *rest):
        steps.append(1)
        labels.append(targets)
        return real(model, volume, targets, *rest)

    monkeypatch.setattr(loop, "update", interrupted_update)
    monkeypatch.setattr(loop, "graceful", lambda: nullcontext(lambda: len(steps) == 5))
    with pytest.raises(CovidnetError, match="its state is saved"):
        stage(SETTINGS, dataset, searched, tmp_path / "parts")
    assert len(steps) == 5
    stage(SETTINGS, dataset, searched, tmp_path / "parts")
    assert len(steps) == json.loads((tmp_path / "whole/history.json").read_text())[-1]["step"]  # none was run twice
    assert all(((target > 0.01) & (target < 0.99)).any() for target in labels)  # mixed labels
    for name in ("model.safetensors", "history.json", "validation.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_what_is_mixed_in_changes_the_result(dataset, searched, tmp_path):
    plain = {**SETTINGS, "augment": {}}
    retrain(SETTINGS, dataset, searched, tmp_path / "mixed")
    retrain(plain, dataset, searched, tmp_path / "plain")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("mixed", "plain")]
    assert weights[0] != weights[1]
