"""Every figure equals scikit-learn's, and what is undefined says so."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy.special import softmax

from covidnet.errors import CovidnetError
from covidnet.evaluation.metrics import Predictions, classification, confusion, weighted

CLASSES = ("NCP", "CP", "Normal")


def predictions(scans: int = 60, classes: tuple[str, ...] = CLASSES, seed: int = 0, decimals: int = 8) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes), scans)
    logits = (rng.normal(size=(scans, len(classes))) + 1.2 * np.eye(len(classes))[labels]).round(decimals)
    ids = tuple(f"scan{i}" for i in range(scans))
    return Predictions(ids, tuple(f"patient{i // 2}" for i in range(scans)), labels, logits, classes)


def figures(p: Predictions) -> dict[str, float]:
    return classification(p.labels, p.probabilities(), p.classes, p.classes[0])


SKLEARN: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda y, p: sk.accuracy_score(y, p.argmax(1)),
    "balanced_accuracy": lambda y, p: sk.balanced_accuracy_score(y, p.argmax(1)),
    "kappa": lambda y, p: sk.cohen_kappa_score(y, p.argmax(1)),
    "precision_macro": lambda y, p: sk.precision_score(y, p.argmax(1), average="macro"),
    "sensitivity_macro": lambda y, p: sk.recall_score(y, p.argmax(1), average="macro"),
    "f1_macro": lambda y, p: sk.f1_score(y, p.argmax(1), average="macro"),
    "roc_auc": lambda y, p: sk.roc_auc_score(y, p, multi_class="ovr", average="macro"),
    "pr_auc": lambda y, p: sk.average_precision_score(np.eye(3)[y], p, average="macro"),
    "precision_CP": lambda y, p: sk.precision_score(y == 1, p.argmax(1) == 1),
    "sensitivity_CP": lambda y, p: sk.recall_score(y == 1, p.argmax(1) == 1),
    "specificity_CP": lambda y, p: sk.recall_score(y != 1, p.argmax(1) != 1),
    "f1_CP": lambda y, p: sk.f1_score(y == 1, p.argmax(1) == 1),
    "roc_auc_Normal": lambda y, p: sk.roc_auc_score(y == 2, p[:, 2]),
}


@pytest.mark.parametrize("name", SKLEARN)
@pytest.mark.parametrize("decimals", [8, 0], ids=["distinct scores", "tied scores"])
def test_equals_scikit_learn(name: str, decimals: int) -> None:
    p = predictions(decimals=decimals)
    assert figures(p)[name] == pytest.approx(SKLEARN[name](p.labels, p.probabilities()), abs=1e-9)


@pytest.mark.parametrize("name", SKLEARN)
def test_every_resample_equals_scikit_learn_on_the_repeated_scans(name: str) -> None:
    p = predictions()
    draws = np.random.default_rng(1).multinomial(len(p), np.full(len(p), 1 / len(p)), size=6)
    fast = weighted(p.labels, p.probabilities(), CLASSES, "NCP", draws.astype(float))[name]
    repeated = [np.repeat(np.arange(len(p)), draw) for draw in draws]
    expected = [SKLEARN[name](p.labels[i], p.probabilities()[i]) for i in repeated]
    np.testing.assert_allclose(fast, expected, rtol=0, atol=1e-9)


def test_two_classes_give_the_figures_of_the_positive_class() -> None:
    p = predictions(classes=("NCP", "Normal"))
    y, score = p.labels == 0, p.probabilities()[:, 0]
    got = figures(p)
    assert got["precision"] == pytest.approx(sk.precision_score(y, p.predicted == 0), abs=1e-9)
    assert got["sensitivity"] == pytest.approx(sk.recall_score(y, p.predicted == 0), abs=1e-9)
    assert got["specificity"] == pytest.approx(sk.recall_score(~y, p.predicted != 0), abs=1e-9)
    assert got["f1"] == pytest.approx(sk.f1_score(y, p.predicted == 0), abs=1e-9)
    assert got["roc_auc"] == pytest.approx(sk.roc_auc_score(y, score), abs=1e-9)
    assert got["pr_auc"] == pytest.approx(sk.average_precision_score(y, score), abs=1e-9)


def test_three_classes_give_means_over_classes() -> None:
    got = figures(predictions())
    for name in ("precision", "sensitivity", "specificity", "f1", "roc_auc"):
        assert got[name] == pytest.approx(sum(got[f"{name}_{c}"] for c in CLASSES) / 3, abs=1e-12)


@pytest.mark.parametrize(("percent", "floor"), [(90, 0.90), (95, 0.95)])
def test_sensitivity_at_specificity_is_the_best_point_of_the_roc_curve(percent: int, floor: float) -> None:
    p = predictions(scans=400)
    false_positive, sensitivity, _ = sk.roc_curve(p.labels == 0, p.probabilities()[:, 0], drop_intermediate=False)
    expected = sensitivity[false_positive <= 1 - floor + 1e-12].max()
    assert figures(p)[f"sensitivity_at_{percent}_specificity"] == pytest.approx(expected, abs=1e-9)


def test_sensitivity_at_specificity_by_hand() -> None:
    # ten negatives: 90 % specificity lets one of them pass. Above it lie 3 of 4 positives; above none, 2.
    score = np.array([0.9, 0.8, 0.6, 0.1, 0.7, *np.linspace(0.5, 0.2, 9)])
    labels = np.array([0] * 4 + [1] * 10)
    got = classification(labels, np.stack([score, 1 - score], axis=1), ("NCP", "Normal"), "NCP")
    assert got["sensitivity_at_90_specificity"] == pytest.approx(3 / 4)
    assert got["sensitivity_at_95_specificity"] == pytest.approx(2 / 4)


def test_absent_class_is_undefined_not_zero() -> None:
    p = predictions()
    kept = p.labels != 1
    got = classification(p.labels[kept], p.probabilities()[kept], CLASSES, "NCP")
    for name in ("sensitivity_CP", "f1_CP", "roc_auc_CP", "sensitivity_macro", "balanced_accuracy", "roc_auc"):
        assert math.isnan(got[name]), name
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(p.labels[kept], p.predicted[kept]))
    assert not math.isnan(got["specificity_CP"])


def test_class_never_predicted_has_no_precision_but_f1_of_zero() -> None:
    probabilities = np.tile([0.5, 0.3, 0.2], (6, 1))
    got = classification([0, 0, 1, 1, 2, 2], probabilities, CLASSES, "NCP")
    assert math.isnan(got["precision_CP"])
    assert (got["sensitivity_CP"], got["f1_CP"], got["roc_auc_CP"]) == (0.0, 0.0, 0.5)


def test_confusion_has_truth_in_rows() -> None:
    p = predictions()
    np.testing.assert_array_equal(confusion(p.labels, p.predicted, 3), sk.confusion_matrix(p.labels, p.predicted))


def test_probabilities_are_softmax_of_scaled_logits() -> None:
    p = predictions()
    np.testing.assert_allclose(p.probabilities(2.0), softmax(p.logits / 2.0, axis=1), atol=1e-12)


def test_csv_brings_back_the_same_predictions_to_the_last_bit(tmp_path: Path) -> None:
    p = predictions(decimals=16)
    p.save(tmp_path / "p.csv")
    again = Predictions.load(tmp_path / "p.csv")
    header = (tmp_path / "p.csv").read_text().splitlines()[0]
    assert header == "scan_id,patient_id,label,logit_NCP,logit_CP,logit_Normal"
    assert (again.scan_ids, again.patients, again.classes) == (p.scan_ids, p.patients, p.classes)
    np.testing.assert_array_equal(again.labels, p.labels)
    np.testing.assert_array_equal(again.logits, p.logits)


def test_nan_logits_are_refused_with_their_number() -> None:
    p = predictions()
    logits = p.logits.copy()
    logits[[3, 7], 1] = np.nan, np.inf
    with pytest.raises(CovidnetError, match="2 of 60 scans have logits that are NaN or infinite"):
        Predictions(p.scan_ids, p.patients, p.labels, logits, CLASSES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan_id,label\nDoe,NCP\n", "expected predictions with columns"),
        ("scan_id,patient_id,label,logit_NCP\nDoe,Doe,CP,1\n", "1 labels are not among the classes"),
        ("scan_id,patient_id,label,logit_NCP\nDoe,Doe,NCP\n", "1 rows have another number of columns"),
        ("scan_id,patient_id,label,logit_NCP\nDoe,Doe,NCP,Doe\n", "1 of 1 scans have logits that are NaN"),
        ("scan_id,patient_id,label,logit_NCP\nDoe,Doe,NCP,1\nDoe,Doe,NCP,1\n", "1 scans occur more than once"),
        ("", "expected predictions with columns"),
    ],
)
def test_broken_csv_is_explained_without_identifiers(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(CovidnetError, match=message) as caught:
        Predictions.load(tmp_path / "p.csv")
    assert "Doe" not in str(caught.value)


def test_a_patient_is_the_mean_probability_of_its_scans() -> None:
    logits = np.log([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    p = Predictions(("a", "b", "c"), ("x", "x", "y"), np.array([0, 0, 1]), logits, ("NCP", "Normal"))
    grouped = p.by_patient()
    assert grouped.scan_ids == ("x", "y")
    assert grouped.labels.tolist() == [0, 1]
    np.testing.assert_allclose(grouped.probabilities(), [[0.55, 0.45], [0.3, 0.7]], atol=1e-12)


def test_patients_of_two_labels_are_left_out() -> None:
    p = Predictions(("a", "b", "c"), ("x", "x", "y"), np.array([0, 1, 1]), np.zeros((3, 2)), ("NCP", "Normal"))
    assert p.by_patient().patients == ("y",)
    with pytest.raises(CovidnetError, match="no patient's scans agree"):
        Predictions(("a", "b"), ("x", "x"), np.array([0, 1]), np.zeros((2, 2)), ("NCP", "Normal")).by_patient()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scan_ids": (), "patients": (), "labels": np.zeros(0, int), "logits": np.zeros((0, 2))}, "at least one scan"),
        ({"patients": ("x",)}, "found 2 scans, 1 patients"),
        ({"labels": np.array([0])}, r"labels \(1,\)"),
        ({"logits": np.zeros((2, 3))}, r"logits \(2, 3\)"),
        ({"patients": ("x", "")}, "1 of 2 scans have no patient"),
        ({"labels": np.array([0, 2])}, "expected labels 0 to 1.*found 0 to 2"),
        ({"labels": np.array([-1, 1])}, "expected labels 0 to 1.*found -1 to 1"),
        ({"scan_ids": ("a", "a")}, "1 scans occur more than once"),
    ],
)
def test_predictions_that_do_not_fit_together_are_refused(change: dict[str, object], message: str) -> None:
    parts = {"scan_ids": ("a", "b"), "patients": ("x", "y"), "labels": np.array([0, 1]), "logits": np.eye(2)}
    assert len(Predictions(**parts, classes=("NCP", "Normal"))) == 2
    with pytest.raises(CovidnetError, match=message):
        Predictions(**{**parts, **change}, classes=("NCP", "Normal"))


def test_figures_of_the_whole_by_hand() -> None:
    # truth in rows: 4 and 1, 2 and 3
    labels, called = np.repeat([0, 1], 5), np.array([0, 0, 0, 0, 1, 0, 0, 1, 1, 1])
    got = classification(labels, np.eye(2)[called], ("NCP", "Normal"), "Normal")
    assert got["accuracy"] == pytest.approx(0.7)
    assert got["kappa"] == pytest.approx((0.7 - 0.5) / (1 - 0.5))  # by chance (6 * 5 + 4 * 5) / 100
    assert got["balanced_accuracy"] == pytest.approx((0.8 + 0.6) / 2)
    assert (got["sensitivity"], got["precision"], got["specificity"]) == pytest.approx((0.6, 0.75, 0.8))
    assert got["sensitivity_macro"] == pytest.approx(0.7)
    assert got["f1_NCP"] == pytest.approx(8 / 11)


def test_no_threshold_that_keeps_to_the_specificity_finds_none() -> None:
    probabilities = np.array([[0.2, 0.8], [0.3, 0.7], [0.6, 0.4], [0.9, 0.1]])  # the negatives score highest
    got = classification([0, 0, 1, 1], probabilities, ("NCP", "Normal"), "NCP")
    assert got["sensitivity_at_90_specificity"] == got["sensitivity_at_95_specificity"] == 0
    alone = classification([0, 0], probabilities[:2], ("NCP", "Normal"), "NCP")
    assert math.isnan(alone["sensitivity_at_90_specificity"])


def test_a_class_that_no_scan_has_or_is_taken_for_keeps_its_place_in_the_confusion() -> None:
    assert confusion([0, 0], [0, 1], 3).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_the_probability_of_a_patient_is_scaled_before_it_is_averaged() -> None:
    p = Predictions(("a", "b"), ("x", "x"), np.array([0, 0]), np.array([[4.0, 0], [0, 1.0]]), ("NCP", "Normal"))
    expected = softmax(p.logits / 2, axis=1).mean(axis=0)
    np.testing.assert_allclose(p.by_patient(2.0).probabilities()[0], expected, atol=1e-12)
    sure = Predictions(("a",), ("x",), np.array([0]), np.array([[9000.0, 0]]), ("NCP", "Normal"))
    np.testing.assert_allclose(sure.by_patient().probabilities(), [[1, 0]], atol=1e-300)


def test_labels_alone_without_a_logit_per_class_are_no_predictions(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("scan_id,patient_id,label,probability_NCP\ns,p,NCP,1\n")
    with pytest.raises(CovidnetError, match="found columns"):
        Predictions.load(tmp_path / "p.csv")
    with pytest.raises(CovidnetError, match=r"missing\.csv: .*No such file"):
        Predictions.load(tmp_path / "missing.csv")
