"""The out-of-distribution score on phantoms, and by hand where it can be."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from covidnet.data.preprocess import Spec, prepare
from covidnet.data.scan import Scan
from covidnet.data.sources import phantom
from covidnet.errors import CovidnetError
from covidnet.evaluation import novelty

SPEC = Spec(size=(16, 48, 48))
RATE = 0.1


def scans(first: int, count: int) -> list[Scan]:
    labels = phantom.LABELS
    return [
        phantom.generate(labels[i % 3], seed=3, index=i, difficulty=0.0, detail=(24, 56, 56)).scan
        for i in range(first, first + count)
    ]


def volumes(found: list[Scan]) -> np.ndarray:
    return np.stack([prepare(scan, SPEC).volume for scan in found])


def abdomen(scan: Scan) -> Scan:
    """The same body with its lungs and airways filled by organs and a few bubbles of gas."""
    voxels = scan.voxels.astype(np.int32)
    rng = np.random.default_rng(scan.shape[0])
    for plane in voxels:
        body = ndimage.binary_fill_holes(ndimage.binary_opening(plane > -300))
        plane[body & (plane < -100)] = 50
        plane[body] += rng.normal(0, 15, int(body.sum())).astype(int)
        y, x = np.argwhere(body)[rng.integers(body.sum())] if body.any() else (0, 0)
        plane[y : y + 4, x : x + 5] = -900
    return replace(scan, voxels=voxels.astype(np.int16))


def foreign(kind: str, known: list[Scan]) -> list[Scan]:
    rng = np.random.default_rng(0)
    changed = {
        "shuffled slices": lambda s: replace(s, voxels=s.voxels[rng.permutation(len(s.voxels))]),
        "abdomen": abdomen,
        "inverted": lambda s: replace(s, voxels=(-600 - s.voxels).clip(-1024, 3000).astype(np.int16)),
        "one lung cut off": lambda s: replace(s, voxels=np.ascontiguousarray(s.voxels[:, :, : s.shape[2] // 2])),
        "lower half cut off": lambda s: replace(s, voxels=s.voxels[: s.shape[0] // 2]),
        "constant": lambda s: replace(s, voxels=np.full_like(s.voxels, rng.integers(-1000, 400))),
    }[kind]
    return [changed(scan) for scan in known]


@pytest.fixture(scope="module")
def held_out() -> list[Scan]:
    return scans(300, 60)


@pytest.fixture(scope="module")
def detector() -> novelty.Detector:
    known = volumes(scans(0, 240))
    return novelty.fit(known[:200], known[200:], RATE)


@pytest.mark.parametrize(
    "kind", ["shuffled slices", "abdomen", "inverted", "one lung cut off", "lower half cut off", "constant"]
)
def test_what_is_no_such_chest_ct_scores_above_what_is(
    detector: novelty.Detector, held_out: list[Scan], kind: str
) -> None:
    known, other = detector.scores(volumes(held_out)), detector.scores(volumes(foreign(kind, held_out[:30])))
    auroc = roc_auc_score([0] * len(known) + [1] * len(other), [*known, *other])
    assert auroc >= 0.95
    assert (other > 0).mean() >= 0.9  # flagged


def test_false_alarms_keep_to_their_rate(detector: novelty.Detector, held_out: list[Scan]) -> None:
    alarms = int((detector.scores(volumes(held_out)) > 0).sum())
    assert alarms <= 13  # of 60 at a rate of 0.1: more happens once in a hundred


def test_distance_is_mahalanobis_with_the_shrunk_covariance() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (80, 8, 16, 16), dtype=np.uint8)
    detector = novelty.fit(grey[:60], grey[60:], 0.2)
    known = novelty.features(grey[:60])
    scale = known.std(axis=0) + 1e-3
    normal = LedoitWolf().fit((known - known.mean(axis=0)) / scale)
    distance = mahalanobis(novelty.features(grey[70:71])[0] / scale, known.mean(axis=0) / scale, normal.precision_)
    # the numbers of calibration.json have six digits
    assert np.exp(detector.score(grey[70])) * detector.threshold == pytest.approx(distance, rel=1e-3)


def test_features_by_hand() -> None:
    volume = np.zeros((4, 4, 8), np.uint8)
    volume[0, :2] = 200  # the first slice's front half: four of the 32 cells, along W
    volume[3, 3, 7] = 100
    mean, spread, steps = np.split(novelty.features(volume[None])[0], [32, 64])
    np.testing.assert_allclose(mean[:4], 200)
    assert mean[-1] == pytest.approx(25)  # one voxel of the four of the last cell
    assert spread[-1] == pytest.approx(np.std([0, 0, 0, 100]))
    assert steps[0] == pytest.approx((16 * 200 + 100) / (3 * 4 * 8))
    assert steps[2] == pytest.approx(100 / (4 * 4 * 7))


def test_json_brings_back_the_same_scores(detector: novelty.Detector, held_out: list[Scan]) -> None:
    again = novelty.Detector.from_dict(json.loads(json.dumps(detector.to_dict())))
    few = volumes(held_out[:3])
    np.testing.assert_array_equal(again.scores(few), detector.scores(few))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [1.0]}, "expected 67 finite means"),
        ({"threshold": -1.0}, "threshold -1.0"),
        ({"threshold": None}, "expected mean, whitening, threshold"),
        ({"more": 1}, "expected 67 finite means"),
    ],
)
def test_broken_detectors_are_refused(detector: novelty.Detector, change: dict[str, object], message: str) -> None:
    with pytest.raises(CovidnetError, match=message):
        novelty.Detector.from_dict({**detector.to_dict(), **change})


def test_too_few_scans_are_refused() -> None:
    few = np.zeros((4, 8, 16, 16), np.uint8)
    with pytest.raises(CovidnetError, match="found 4 and 4"):
        novelty.fit(few, few, 0.05)


def test_features_are_means_and_deviations_of_cells_and_mean_steps() -> None:
    volume = np.random.default_rng(0).integers(0, 256, (8, 6, 12), dtype=np.uint8)
    cells = volume.astype(float).reshape(4, 2, 2, 3, 4, 3).transpose(0, 2, 4, 1, 3, 5).reshape(32, 18)
    steps = [np.abs(np.diff(volume.astype(int), axis=axis)).mean() for axis in range(3)]
    expected = [*cells.mean(axis=1), *cells.std(axis=1), *steps]
    found = novelty.features(np.stack([volume, volume // 2]))
    assert found.shape == (2, 67)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_a_volume_that_does_not_divide_into_cells_has_none_empty() -> None:
    means = novelty.features(np.full((1, 7, 5, 9), 9, np.uint8))[0, :32]
    np.testing.assert_allclose(means, 9)


@pytest.mark.parametrize("depth", [4, 256, 258, 259, 600])
def test_the_largest_steps_add_up_however_many_there_are(depth: int) -> None:
    volume = np.zeros((depth, 4, 8), np.uint8)
    volume[::2] = 255
    assert novelty.features(volume[None])[0, 64:].tolist() == [255, 0, 0]
    assert novelty.features(np.moveaxis(volume, 0, 2)[None])[0, 64:].tolist() == [0, 0, 255]


def small_detector(rate: float = 0.2) -> novelty.Detector:
    grey = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 8), dtype=np.uint8)
    return novelty.fit(grey[:40], grey[40:], rate)


def test_ten_training_scans_and_one_to_validate_are_enough_and_fewer_are_not() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 8), dtype=np.uint8)
    assert novelty.fit(grey[:10], grey[10:], 0.1).threshold > 0
    for train, validation in ((9, 1), (10, 0)):
        with pytest.raises(CovidnetError, match=f"at least 10 training scans.* found {train} and {validation}"):
            novelty.fit(grey[:train], grey[:validation], 0.1)


def test_the_threshold_is_exceeded_by_the_stated_share_of_scans_that_no_detector_was_fitted_with() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 8), dtype=np.uint8)
    detector = novelty.fit(grey[:40], grey[40:], 0.25)
    known = novelty.features(grey)
    seen = known[:40]

    def distance(train: np.ndarray, features: np.ndarray) -> float:
        scale = train.std(axis=0) + 1e-3
        inverse = LedoitWolf().fit((train - train.mean(axis=0)) / scale).precision_
        return mahalanobis(features / scale, train.mean(axis=0) / scale, inverse)

    others = [[j for j in range(40) if j % 5 != i % 5] for i in range(40)]
    distances = [distance(seen[rest], seen[i]) for i, rest in enumerate(others)]
    distances += [distance(seen, features) for features in known[40:]]
    assert sum(d > detector.threshold * 1.0001 for d in distances) == 15  # a quarter of sixty
    assert detector.false_alarm_rate == 0.25
    assert novelty.fit(grey[:40], grey[40:], 0.05).threshold > detector.threshold


def test_the_numbers_of_a_detector_have_six_digits_and_a_cell_that_never_varies_a_finite_weight() -> None:
    detector = small_detector()
    for value in (*detector.mean, *detector.whitening.ravel()):
        assert value == float(f"{value:.6g}")
    assert any(value != float(f"{value:.5g}") for value in detector.mean)
    grey = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 8), dtype=np.uint8)
    grey[:, :4, :4, :4] = 7
    assert np.isfinite(novelty.fit(grey[:40], grey[40:], 0.2).whitening).all()


def test_a_score_is_the_logarithm_of_the_distance_in_thresholds() -> None:
    volume = np.random.default_rng(3).integers(0, 256, (8, 8, 8), dtype=np.uint8)
    detector = small_detector()
    twice = replace(detector, threshold=2 * detector.threshold)
    assert detector.score(volume) - twice.score(volume) == pytest.approx(np.log(2))
    at = replace(detector, threshold=detector.threshold * np.exp(detector.score(volume)))
    assert at.score(volume) == pytest.approx(0, abs=1e-12)
    same = replace(detector, mean=novelty.features(volume[None])[0])
    assert np.isfinite(same.score(volume))
    assert same.score(volume) < -20


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0.0}, {"false_alarm_rate": 0.0}, {"false_alarm_rate": 1.0}, {"mean": [float("inf")] * 67},
        {"whitening": [[float("nan")] * 67] * 67}, {"whitening": [[1.0] * 67] * 66}, {"mean": [0.0] * 66},
    ],
)  # fmt: skip
def test_a_detector_with_one_part_out_of_range_is_refused(change: dict[str, object]) -> None:
    tree = small_detector().to_dict()
    assert novelty.Detector.from_dict(tree).false_alarm_rate == 0.2
    with pytest.raises(CovidnetError, match="expected 67 finite means"):
        novelty.Detector.from_dict({**tree, **change})


def test_training_scans_that_are_all_alike_are_refused():
    alike = np.full((12, 8, 16, 16), 90, np.uint8)
    with pytest.raises(CovidnetError, match="training scans are all alike"):
        novelty.fit(alike, alike[:2], 0.05)


def test_a_cell_that_hardly_varies_leaves_the_others_their_weight() -> None:
    known = np.random.default_rng(0).normal(size=(400, 2))
    known = (known - known.mean(axis=0)) / known.std(axis=0) * [1, 1.0001e-3]
    mean, whitening = novelty._normal(known)
    assert novelty._distances(mean + np.array([[1.0, 0.0]]), mean, whitening) == pytest.approx([1.0], abs=0.05)
