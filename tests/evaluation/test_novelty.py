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
