import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_bundle

from covidnet.errors import CovidnetError, UsageError
from covidnet.export.bundle import Bundle
from covidnet.inference import engine
from covidnet.inference.engine import Engine, Name


def volumes(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, 1, *toy_bundle.SIZE), dtype=np.uint8)


def without(*missing: str) -> Callable[[str], Any]:
    """`find_spec` on a machine that lacks packages."""
    return lambda name: None if name in missing else object()


@pytest.fixture(params=["openvino", "onnxruntime"])
def loaded(request: pytest.FixtureRequest, toy: Bundle) -> Engine:
    return engine.load(toy, engine=request.param)


def test_outputs_have_the_shapes_of_the_contract(loaded: Engine) -> None:
    assert loaded.size == toy_bundle.SIZE
    outputs = loaded.run(volumes(2))
    assert outputs.logits.shape == outputs.probabilities.shape == (2, 3)
    assert outputs.cam.shape == (2, 3, 4, 12, 12)
    assert outputs.logits.dtype == outputs.probabilities.dtype == outputs.cam.dtype == np.float32
    np.testing.assert_allclose(outputs.probabilities.sum(axis=1), 1, atol=1e-6)


def test_a_scan_gives_the_same_answer_in_any_batch(loaded: Engine) -> None:
    batch = volumes(5)
    together = loaded.run(batch)
    for i in range(5):
        alone = loaded.run(batch[i : i + 1])
        np.testing.assert_allclose(alone.logits[0], together.logits[i], atol=1e-5)
        np.testing.assert_allclose(alone.cam[0], together.cam[i], atol=1e-5)


def test_threads_do_not_mix_up_their_scans(loaded: Engine) -> None:
    batches = [volumes(1, seed) for seed in range(24)]
    expected = [loaded.run(batch).logits for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: loaded.run(batch).logits, batches))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_lanes_give_the_same_answers_side_by_side(loaded: Engine) -> None:
    batches = [volumes(1, seed) for seed in range(24)]
    expected = [loaded.run(batch).cam for batch in batches]
    with ThreadPoolExecutor(loaded.lanes) as pool:
        found = list(pool.map(lambda batch: loaded.run(batch, alone=False).cam, batches))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_answer_outlives_the_next_run(loaded: Engine) -> None:
    first = loaded.run(volumes(1, seed=1))
    kept = first.logits.copy()
    loaded.run(volumes(1, seed=2))
    np.testing.assert_array_equal(first.logits, kept)


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        (np.zeros((1, *toy_bundle.SIZE), np.uint8), r"found uint8 \(1, 8, 24, 24\)"),
        (np.zeros((1, 3, *toy_bundle.SIZE), np.uint8), r"found uint8 \(1, 3, 8, 24, 24\)"),
        (np.zeros((1, 1, 8, 24, 25), np.uint8), r"found uint8 \(1, 1, 8, 24, 25\)"),
        (np.zeros((0, 1, *toy_bundle.SIZE), np.uint8), r"found uint8 \(0, 1, 8, 24, 24\)"),
        (np.zeros((1, 1, *toy_bundle.SIZE), np.float32), r"found float32 \(1, 1, 8, 24, 24\)"),
        ([[1]], "found list"),
    ],
)
def test_what_is_no_batch_is_refused(loaded: Engine, batch: Any, found: str) -> None:
    with pytest.raises(UsageError, match=rf"expected .*uint8 \(B, 1, 8, 24, 24\), {found}"):
        loaded.run(batch)


def test_openvino_comes_first_and_the_choice_is_logged(toy: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="covidnet"):
        assert engine.load(toy).name == "openvino (cpu)"
    assert caplog.messages == [f"bundle {toy.version} runs on openvino (cpu) (the first of those installed)"]


def test_onnx_runtime_stands_in(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_spec", without("openvino"))
    assert engine.load(toy).name == "onnxruntime (cpu)"


@pytest.mark.parametrize(
    ("missing", "device", "name", "message"),
    [
        (["openvino", "onnxruntime"], "auto", "auto", "engine openvino is not installed; pip install openvino"),
        (["openvino"], "cpu", "openvino", "engine openvino is not installed; pip install openvino"),
        (["onnxruntime"], "cpu", "onnxruntime", "engine onnxruntime is not installed; pip install onnxruntime-gpu"),
        (["onnxruntime"], "gpu", "auto", "engine onnxruntime is not installed; pip install onnxruntime-gpu"),
        ([], "gpu", "openvino", "engine openvino runs on CPU here"),
        ([], "tpu", "auto", "device 'tpu': expected auto, cpu or gpu"),
        ([], "auto", "caffe", "engine 'caffe': expected auto, openvino, onnxruntime or tensorrt"),
        ([], "cpu", "tensorrt", "engine tensorrt needs device gpu"),
        (["tensorrt"], "gpu", "tensorrt", "engine tensorrt is not installed; pip install onnxruntime-gpu tensorrt"),
    ],
)
def test_an_engine_that_is_not_there_is_named(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch, missing: list[str], device: Any, name: Name, message: str
) -> None:
    monkeypatch.setattr(engine, "find_spec", without(*missing))
    with pytest.raises(UsageError, match=message):
        engine.load(toy, device, name)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_file_that_is_no_model_is_an_error(tmp_path: Path, name: Name) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff\xff nothing")
    with pytest.raises(CovidnetError, match=r"can't load .*model\.onnx"):
        engine.open_model(tmp_path / "model.onnx", engine=name)


@pytest.mark.parametrize(
    ("text", "threads"), [("max 100000", 0), ("50000 100000", 1), ("100000 100000", 1), ("garbage", 0)]
)
def test_threads_keep_to_the_containers_limit(tmp_path: Path, text: str, threads: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert engine._quota(tmp_path / "cpu.max") == threads
    assert engine._quota(tmp_path / "absent") == 0
