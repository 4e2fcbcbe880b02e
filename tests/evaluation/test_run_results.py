"""What an evaluation of two networks writes, held to the predictions that it saved beside."""

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_bad_splits import CLASSES, SIZE

from covidnet.config import parse
from covidnet.data import packed
from covidnet.data.packed import Row, write_manifest
from covidnet.evaluation import novelty
from covidnet.evaluation import run as evaluation
from covidnet.evaluation.candidates import Candidate
from covidnet.evaluation.metrics import Predictions
from covidnet.models import saved
from covidnet.models.covidnet3d import SPACES, Genotype
from covidnet.training import loop

CONFIG = parse({"evaluate": {"bootstrap": 100, "overlays": 2}, "export": {"false_alarm_rate": 0.2}})


def write_dataset(folder: Path) -> Path:
    """Noise: ten scans to train with, nine to validate, and sixty scans of twenty patients to test, some with lesions."""
    folder.mkdir()
    plan = [("train", i % 3) for i in range(10)] + [("validation", i % 3) for i in range(9)]
    plan += [("test", i // 3 % 3) for i in range(60)]
    scans = np.random.default_rng(0).integers(0, 256, (len(plan), *SIZE), dtype=np.uint8)
    np.save(folder / "scans.npy", scans)
    lesions = np.zeros_like(scans)
    for i, (split, k) in enumerate(plan):
        if split == "test" and k < 2:  # of an NCP at the centre, of a CP in a corner
            lesions[i, 2, 3:9, 4:12] = k == 0
            lesions[i, 6, 13:, 13:] = k == 1
    np.save(folder / "lesions.npy", lesions)
    rows = [
        Row(f"s{i}", f"p{i}" if i < 19 else f"p{19 + (i - 19) // 3}", CLASSES[k], split, ("png", "dicom")[i % 2], str(i),
            "5;1;1", 40, "")
        for i, (split, k) in enumerate(plan)
    ]  # fmt: skip
    write_manifest(folder / "manifest.csv", rows)
    (folder / "rejected.csv").write_text("path,reason\na,too few slices\nb,no CT\nc,too few slices\n")
    return folder


def write_candidate(folder: Path, variant: str, seed: int) -> Path:
    """An untrained network without a searchable block in use, its logits scaled so that it calls each class at times."""
    folder.mkdir(parents=True)
    blocks = tuple(("Identity",) * count for count in SPACES[variant].blocks)
    description = saved.of_genotype(Genotype(variant, CLASSES, 1, SIZE, blocks), SIZE)
    torch.manual_seed(seed)
    model = description.build().eval()
    noise = np.random.default_rng(9).integers(0, 256, (30, *SIZE), dtype=np.uint8)
    with torch.inference_mode():
        logits = model(loop.as_input(model, torch.from_numpy(noise)))
        mean, spread = logits.mean(dim=0), logits.std(dim=0)
        model.head.weight.div_(spread[:, None])
        model.head.bias.sub_(mean).div_(spread)
    saved.save(folder, model, description)
    ids = tuple(f"s{10 + i}" for i in range(9))
    logits = np.eye(3)[(np.arange(9) + (np.arange(9) < 1 + 2 * seed)) % 3]  # eight or six of nine are right
    Predictions(ids, ids, np.arange(9) % 3, logits, CLASSES).save(folder / "validation.csv")
    figures = {"size_mib": 1.5 + seed, "parameters": 10**6, "macs": 2e9, "scans_seen": 5000, "epochs": 2.5}
    (folder / "metrics.json").write_text(json.dumps(figures))
    return folder


def write_search(folder: Path) -> None:
    folder.mkdir(parents=True)
    blocks = tuple(("Identity",) * count for count in SPACES["S"].blocks)
    Genotype("S", CLASSES, 1, SIZE, blocks).save(folder / "genotype.json")
    history = [
        {"step": i, "entropy": 2.0, "temperature": 1.0, "weight_loss": 1.0, "alpha_loss": 1.0, "expected_size_mib": 4.0}
        for i in range(4)
    ]
    random = [{"accuracy": 0.5}, {"accuracy": 0.7}, {"accuracy": 0.9}]
    told = {"history": history, "found": {"accuracy": 0.7}, "random": random}
    (folder / "search.json").write_text(json.dumps(told))
    (folder / "metrics.json").write_text(json.dumps({"chance": 0.34, "warmup_accuracy": 0.45}))
    (folder / "provenance.json").write_text(json.dumps({"outputs": ["search.json", "genotype.json", "metrics.json"]}))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("evaluated")
    data = write_dataset(root / "data")
    folders = [
        write_candidate(root / "retrain" / "S", "S", 0),
        write_candidate(root / "baseline" / "L", "L", 1),
    ]
    write_search(root / "search" / "S")
    work = root / "out"
    work.mkdir()
    told = evaluation.run(CONFIG, data, folders, torch.device("cpu"), work, root / "uses.jsonl")
    results = json.loads((work / "results.json").read_text())
    names = list(results["metrics"])
    test = {name: Predictions.load(work / f"test-{name}.csv") for name in names}
    winner = results["winner"]["name"]
    (other,) = (name for name in names if name != winner)
    return SimpleNamespace(
        told=told,
        results=results,
        flat=json.loads((work / "metrics.json").read_text()),
        page=(work / "report.html").read_text(),
        data=data,
        work=work,
        folders=folders,
        log=root / "uses.jsonl",
        winner=winner,
        other=other,
        ours=test[winner],
        theirs=test[other],
        temperature=results["winner"]["temperature"],
    )


def test_the_test_split_is_predicted_scan_by_scan(done: SimpleNamespace) -> None:
    for saved_predictions in (done.ours, done.theirs):
        assert saved_predictions.scan_ids == tuple(f"s{i}" for i in range(19, 79))
        assert len(set(saved_predictions.patients)) == 20
        assert saved_predictions.labels.tolist() == [i // 3 % 3 for i in range(60)]


def test_the_winner_is_the_best_on_validation(done: SimpleNamespace) -> None:
    assert done.results["winner"]["folder"] == "retrain/S"
    assert "it has the best validation accuracy, 88.9%" in done.told["reason"]
    assert done.told["winner"] == done.winner
    assert done.told["reason"] == done.results["winner"]["reason"]


def test_figures_are_those_of_the_saved_predictions(done: SimpleNamespace) -> None:
    for name, one in ((done.winner, done.ours), (done.other, done.theirs)):
        accuracy = float((one.predicted == one.labels).mean())
        assert done.results["metrics"][name]["accuracy"] == pytest.approx(accuracy)
        assert done.flat[f"{name}.accuracy"] == pytest.approx(accuracy)
        assert done.flat[f"{name}.kappa"] == pytest.approx(done.results["metrics"][name]["kappa"])


def test_the_comparison_is_the_winners_accuracy_less_the_others(done: SimpleNamespace) -> None:
    (found,) = done.results["comparisons"]
    right, others = ((one.predicted == one.labels) for one in (done.ours, done.theirs))
    assert found["difference"]["difference"] == pytest.approx(right.mean() - others.mean())
    assert found["p_adjusted"] == found["difference"]["p_value"]  # of a single comparison
    only = [int((right & ~others).sum()), int((others & ~right).sum())]
    tail = sum(math.comb(sum(only), k) for k in range(min(only) + 1)) / 2 ** sum(only)
    assert found["mcnemar_p"] == pytest.approx(min(1.0, 2 * tail))


def test_patients_of_several_scans_have_figures_of_their_own(done: SimpleNamespace) -> None:
    p = done.ours.probabilities(done.temperature).reshape(20, 3, 3).mean(axis=1)  # patient by patient
    accuracy = (p.argmax(axis=1) == done.ours.labels[::3]).mean()
    assert done.results["by_patient"]["accuracy"] == pytest.approx(accuracy)


def test_calibration_is_told_before_and_after_scaling(done: SimpleNamespace) -> None:
    found, truth = done.results["calibration"], np.eye(3)[done.ours.labels]
    assert found["temperature"] == done.temperature
    for when, temperature in (("before", 1.0), ("after", done.temperature)):
        p = done.ours.probabilities(temperature)
        assert found[f"brier_{when}"] == pytest.approx(((p - truth) ** 2).sum(axis=1).mean())
        bins = np.argsort(p.max(axis=1), kind="stable").reshape(15, 4)  # sixty scans
        right = done.ours.predicted == done.ours.labels
        gaps = [abs(p.max(axis=1)[b].mean() - right[b].mean()) for b in bins]
        assert found[f"ece_{when}"] == pytest.approx(np.mean(gaps))
    assert done.flat["ece_before"] == found["ece_before"]
    assert done.flat["ece_after"] == found["ece_after"]
    assert done.flat["brier_after"] == found["brier_after"]


def test_abstention_is_the_error_of_the_surest(done: SimpleNamespace) -> None:
    order = np.argsort(-done.ours.probabilities(done.temperature).max(axis=1), kind="stable")
    wrong = (done.ours.predicted != done.ours.labels)[order]
    found = done.results["abstention"]
    for percent in (70, 80, 90, 100):
        assert found[f"risk_at_{percent}_coverage"] == pytest.approx(wrong[: 60 * percent // 100].mean())
    assert found["aurc"] == pytest.approx(np.mean(np.cumsum(wrong) / np.arange(1, 61)))
    assert done.flat["aurc"] == found["aurc"]


def test_the_flag_for_foreign_scans_is_that_of_the_bundle(done: SimpleNamespace) -> None:
    scans = packed.read(done.data).scans
    detector = novelty.fit(scans[:10], scans[10:19], 0.2)
    found = done.results["abstention"]
    assert found["stated_false_alarms"] == 0.2
    assert found["false_alarms"] == pytest.approx((detector.scores(scans[19:]) > 0).mean())
    assert done.flat["foreign.false_alarms"] == found["false_alarms"]


def test_maps_are_measured_over_the_lesions_of_right_answers_and_beside_the_baselines(done: SimpleNamespace) -> None:
    found = done.results["localisation"]
    right = done.ours.predicted == done.ours.labels
    of_class = [int((right & (done.ours.labels == k)).sum()) for k in (0, 1)]
    assert [one["scans"] for one in found[:3]] == [sum(of_class), *of_class]
    assert [one["name"] for one in found] == [
        "Class activation map", "Class activation map, NCP", "Class activation map, CP", "Grad-CAM of CovidNet3D-L",
    ]  # fmt: skip
    assert done.flat["cam.hit_rate"] == found[0]["hit_rate"]
    assert done.flat["cam.centre_hit_rate"] == found[0]["centre_hit_rate"]


def test_grad_cam_is_that_of_the_best_baseline_by_validation_that_did_not_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation.explanations, "localise", lambda *given: ["ours"])
    monkeypatch.setattr(evaluation.explanations, "localise_by_gradient", lambda model, *given: f"of {model}")
    ids, labels = tuple("abcdef"), np.zeros(6, int)

    def candidate(folder: str, right: int) -> Candidate:
        validation = Predictions(ids, ids, labels, np.eye(3)[(np.arange(6) >= right).astype(int)], CLASSES)
        return Candidate(folder, folder.partition("/")[2], {}, validation, validation, 1.0)

    judged = [candidate(*c) for c in (("retrain/S", 6), ("retrain/L", 5), ("baseline/a", 2), ("baseline/b", 4))]
    models = {c.name: c.name for c in judged}

    def with_winner(winner: Candidate, among: list[Candidate]) -> list[str]:
        return evaluation._localisations(models, among, winner, None, None, None)  # type: ignore[arg-type, return-value]

    assert with_winner(judged[0], judged) == ["ours", "of b"]
    assert with_winner(judged[3], judged) == ["ours", "of a"]
    assert with_winner(judged[0], judged[:2]) == ["ours"]
    monkeypatch.setattr(evaluation.explanations, "localise_by_gradient", lambda *given: None)  # no lesion, no map
    assert with_winner(judged[0], judged) == ["ours"]


def test_subgroups_are_those_of_the_manifest(done: SimpleNamespace) -> None:
    right = done.ours.predicted == done.ours.labels
    found = {(g["column"], g["value"]): g for g in done.results["subgroups"]}
    assert set(found) == {("source", "dicom"), ("source", "png")}
    dicom = np.arange(19, 79) % 2 == 1
    assert found["source", "dicom"]["accuracy"] == pytest.approx(right[dicom].mean())
    assert found["source", "dicom"]["scans"] == 30


def test_overlays_are_numbered_the_right_ones_first(done: SimpleNamespace) -> None:
    names = sorted(path.name for path in (done.work / "overlays").iterdir())
    assert names == ["01-right.png", "02-right.png", "03-wrong.png", "04-wrong.png"]


def test_the_page_says_what_went_in(done: SimpleNamespace) -> None:
    assert "Left out on reading: 3 scans (2: too few slices; 1: no CT)" in done.page
    assert "<td>8 x 16 x 16 voxels</td>" in done.page
    assert "<td>-1000 to 400 HU</td>" in done.page
    assert "<td>synthetic scans: figures say how the method works, nothing about patients</td>" in done.page
    assert "better than 1 of 3 random architectures under the same budget" in done.page
    assert f"with the same compute, {CONFIG.training.tmacs:g} trillion forward multiply-accumulates" in done.page
    assert "No earlier reading is on record here" in done.page
    assert "read with 2 sets of models" not in done.page
    assert "<small>1 M</small></td>" in done.page
    assert ">2 G</td>" in done.page
    assert ">5 k<small>2.5</small></td>" in done.page


def test_curves_hold_the_points_of_the_figures(done: SimpleNamespace) -> None:
    def rows(name: str) -> list[dict[str, str]]:
        with (done.work / "plots" / f"{name}.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))

    p = done.ours.probabilities(done.temperature)
    assert [(r["actual"], r["predicted"]) for r in rows("confusion")] == [
        (CLASSES[a], CLASSES[b]) for a, b in zip(done.ours.labels, done.ours.predicted, strict=True)
    ]
    for k, name in enumerate(CLASSES):
        points = [r for r in rows("roc") if r["class"] == name]
        assert float(points[0]["threshold"]) == 1
        for point in points[1:]:
            called = p[:, k] >= float(point["threshold"]) - 1e-6
            assert float(point["sensitivity"]) == pytest.approx(called[done.ours.labels == k].mean(), abs=1e-5)
            assert float(point["false_positive_rate"]) == pytest.approx(called[done.ours.labels != k].mean(), abs=1e-5)
    everybody = {r["threshold"]: float(r["net_benefit"]) for r in rows("decision") if r["act_on"] == "everybody"}
    share = (done.ours.labels == CLASSES.index(CONFIG.evaluate.positive)).mean()
    assert len(everybody) == 99
    assert everybody["0.500000"] == pytest.approx(share - (1 - share), abs=1e-5)
    assert {r["scaling"]: 0 for r in rows("reliability")}.keys() == {"before", "after"}
    last = rows("risk_coverage")[-1]
    assert float(last["coverage"]) == 1
    assert float(last["risk"]) == pytest.approx((done.ours.predicted != done.ours.labels).mean(), abs=1e-6)


def test_another_set_of_models_is_another_use_of_the_test_split(done: SimpleNamespace, tmp_path: Path) -> None:
    other = parse({"training": {"budget": "epochs"}, "evaluate": {"bootstrap": 100, "overlays": 0}})
    evaluation.run(other, done.data, done.folders[:1], torch.device("cpu"), tmp_path, done.log)
    page = (tmp_path / "report.html").read_text()
    assert "This test split has been read with 2 sets of models." in page
    assert "with the same compute" not in page
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["test_uses"]) == 2
    assert results["comparisons"] == []
    assert not any("Grad-CAM" in one["name"] for one in results["localisation"])
