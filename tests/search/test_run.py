"""A whole search, of a space so small that it takes a second."""

import csv
import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from covidnet.config import Budget, Config
from covidnet.data.packed import Packed, Row
from covidnet.errors import CovidnetError
from covidnet.models import cost
from covidnet.models.covidnet3d import SPACES, Genotype
from covidnet.search import run
from tests.toy_space import SIZE, SPACE

CLASSES = ("NCP", "CP", "Normal")
BUDGET = 0.02  # MiB


def packed(patients: dict[str, int], scans: int = 2) -> Packed:
    """Noise with a bright bar whose place tells the class."""
    draw, rows, voxels = np.random.default_rng(0), [], []
    for split, count in patients.items():
        for patient in range(count):
            label = patient % 3
            for scan in range(scans):
                name = f"{split}{patient}"
                rows.append(Row(f"{name}-{scan}", name, CLASSES[label], split, "phantom", "", "1;1;1", 8, ""))
                voxels.append(draw.integers(0, 90, SIZE, dtype=np.uint8))
                voxels[-1][:, :, 5 * label : 5 * label + 5] += 120
    return Packed(np.stack(voxels), tuple(rows))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder, the metrics, the settings and the dataset of one search."""
    work = tmp_path_factory.mktemp("search")
    config = Config()
    search = config.search.model_copy(
        update={
            "size": SIZE, "strides": None, "batch": 8, "warmup_steps": 12, "steps": 6, "random": 5, "candidates": 4,
            "budget": Budget(size_mib=BUDGET),
        }
    )  # fmt: skip
    config = config.model_copy(update={"search": search})
    data = packed({"train": 12, "validation": 6, "test": 3})
    logged, judged = [], SimpleNamespace(of=0, done=0)

    @contextmanager
    def counted(title, total):
        judged.of = total
        yield lambda note: setattr(judged, "done", judged.done + 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "progress", counted)
        patch.setitem(SPACES, "S", SPACE)
        metrics = run.run(
            config, data, "S", torch.device("cpu"), work, log=lambda step, figures: logged.append((step, figures))
        )
        yield SimpleNamespace(work=work, metrics=metrics, config=config, data=data, logged=logged, judged=judged)


def test_its_folder_holds_the_network_its_reasons_and_nothing_of_the_way_there(searched):
    names = {path.name for path in searched.work.iterdir()}
    assert names == {"genotype.json", "search.json", "history.csv", "probabilities.npy", "metrics.json"}
    assert json.loads((searched.work / "metrics.json").read_text()) == searched.metrics
    tree = json.loads((searched.work / "search.json").read_text())
    found = Genotype.load(searched.work / "genotype.json")
    chosen = [SPACE.operations[i].name for i in tree["found"]["path"]]
    assert [name for layer in found.blocks for name in layer] == chosen
    assert tree["budget"]["size_mib"] == BUDGET
    assert tree["collapse"] is None


def test_the_network_is_the_candidate_of_least_loss_and_keeps_to_the_budget(searched):
    tree = json.loads((searched.work / "search.json").read_text())
    best = min(tree["candidates"], key=lambda candidate: candidate["loss"])
    assert tree["found"]["path"] == best["path"]
    costs = cost.table(SPACE, SIZE, 1, 3)
    chosen = torch.nn.functional.one_hot(torch.tensor(best["path"]), len(SPACE.operations))
    assert searched.metrics["size_mib"] == pytest.approx(float(costs.size_mib(chosen.float())))
    assert searched.metrics["size_mib"] <= BUDGET
    identity = len(SPACE.operations) - 1
    assert searched.metrics["identity_blocks"] == best["path"].count(identity)


def test_the_progress_of_judging_ends_at_all_that_is_judged(searched):
    told = json.loads((searched.work / "search.json").read_text())
    assert searched.judged.of == searched.judged.done == len(told["candidates"]) + 1 + len(told["random"])


def test_it_is_set_beside_random_networks_of_the_same_budget(searched):
    tree = json.loads((searched.work / "search.json").read_text())
    others = tree["random"]
    assert len(others) == 5
    accuracies = [other["accuracy"] for other in others]
    assert searched.metrics["random_accuracy_mean"] == pytest.approx(np.mean(accuracies))
    assert searched.metrics["random_accuracy_max"] == max(accuracies)
    beaten = np.mean([tree["found"]["loss"] < other["loss"] for other in others])
    assert searched.metrics["random_beaten"] == pytest.approx(beaten)


def test_the_accuracy_at_the_end_of_the_warm_up_says_whether_the_supernet_has_learned(searched):
    assert searched.metrics["chance"] == pytest.approx(1 / 3)
    assert 0.2 <= searched.metrics["warmup_accuracy"] <= 1
    learned = run.above_chance(searched.metrics["warmup_accuracy"], 1 / 3, 12)
    assert searched.metrics["supernet_learned"] == learned
    assert run.above_chance(0.61, 0.5, 2304)  # three standard errors are .03125
    assert not run.above_chance(0.53, 0.5, 2304)


def test_its_history_has_a_row_per_update_and_the_architecture_moves_after_the_warm_up(searched):
    with (searched.work / "history.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["phase"] for row in rows] == ["warm-up"] * 12 + ["joint"] * 6
    assert [row["alpha_loss"] == "" for row in rows] == [True] * 12 + [False] * 6
    assert [step for step, _ in searched.logged] == list(range(18))
    assert float(rows[-1]["entropy"]) == pytest.approx(searched.metrics["entropy"])
    probabilities = np.load(searched.work / "probabilities.npy").astype(np.float32)
    assert probabilities.shape == (18, 4, 8)
    assert probabilities.sum(axis=2) == pytest.approx(1, abs=0.01)
    assert np.array_equal(probabilities[0], probabilities[10])
    assert not np.array_equal(probabilities[0], probabilities[-1])


def test_the_halves_share_no_patient_and_leave_none_out(searched):
    halves = run.halves(searched.config, searched.data, torch.device("cpu"))
    seen = [{scan.numpy().tobytes() for scan in half.scans} for half in halves]
    assert not seen[0] & seen[1]
    assert sum(map(len, seen)) == 24
    assert [half.labels.bincount().tolist() for half in halves] == [[4, 4, 4], [4, 4, 4]]
    by_patient = searched.data.scans[searched.data.split("train")].reshape(12, 2, *SIZE)
    for both in by_patient:
        assert len([1 for half in seen if any(scan.tobytes() in half for scan in both)]) == 1


def test_a_class_of_one_patient_cannot_be_halved(searched):
    with pytest.raises(CovidnetError, match="patient"):
        run.halves(searched.config, packed({"train": 3, "validation": 3}), torch.device("cpu"))


def test_an_evolutionary_search_leaves_the_same_files(searched, tmp_path, monkeypatch):
    monkeypatch.setitem(SPACES, "S", SPACE)
    search = searched.config.search.model_copy(update={"method": "evolution", "steps": 8})
    config = searched.config.model_copy(update={"search": search})
    metrics = run.run(config, searched.data, "S", torch.device("cpu"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in searched.work.iterdir()}
    assert metrics.keys() == searched.metrics.keys()
    told = json.loads((tmp_path / "search.json").read_text())
    assert (told["method"], told["alpha"]) == ("evolution", None)
    assert metrics["size_mib"] <= BUDGET
    assert told["found"]["path"] == min(told["candidates"], key=lambda one: one["loss"])["path"]
    assert np.load(tmp_path / "probabilities.npy").shape == (20, 4, 8)
    assert [row["phase"] for row in told["history"]] == ["warm-up"] * 12 + ["evolution"] * 8
