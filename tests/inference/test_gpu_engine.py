"""The GPU's engine: its settings and its bound memory on any machine, its answers where there is an NVIDIA GPU.

Without OpenVINO and without the rest of the project's dependencies these tests need numpy, scipy, torch, onnx, onnxscript,
safetensors, pydantic and onnxruntime-gpu.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import toy_bundle

from covidnet.errors import CovidnetError, UsageError
from covidnet.export.bundle import Bundle
from covidnet.inference import engine, gpu

HERE = Path("/dev/nvidiactl").exists() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
needs_gpu = pytest.mark.skipif(not HERE, reason="needs an NVIDIA GPU and `pip install onnxruntime-gpu[cuda,cudnn]`")


def volumes(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, 1, *toy_bundle.SIZE), dtype=np.uint8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def plain(toy: Bundle) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(toy.model, providers=["CPUExecutionProvider"])


def test_settings_search_algorithms_keep_digits_and_cache_engines(cache: Path) -> None:
    ((name, cuda),) = gpu.providers("onnxruntime", "float32", (16, 64, 64))
    assert name == "CUDAExecutionProvider"
    assert (cuda["cudnn_conv_algo_search"], cuda["use_tf32"], cuda["enable_cuda_graph"]) == ("EXHAUSTIVE", "0", "1")
    (name, tensorrt), (second, _) = gpu.providers("tensorrt", "float16", (16, 64, 64))
    assert (name, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert tensorrt["trt_fp16_enable"] == "1"
    assert tensorrt["trt_profile_max_shapes"] == "volume:16x1x16x64x64"
    assert tensorrt["trt_engine_cache_path"] == str(cache / "covidnet3d" / "tensorrt")


@pytest.mark.parametrize(
    ("size", "scans"), [((16, 64, 64), 16), ((32, 128, 128), 16), ((40, 256, 256), 2), ((400, 512, 512), 1)]
)
def test_batches_are_powers_of_two_that_fit_the_memory(size: tuple[int, int, int], scans: int) -> None:
    assert gpu.largest_batch(size) == scans


def test_bound_memory_gives_each_scan_its_own_answer(plain: onnxruntime.InferenceSession) -> None:
    bound = gpu.Bound(plain, "cpu")
    batch = volumes(5)
    expected = plain.run(list(engine.OUTPUTS), {"volume": batch})
    strided = np.concatenate([batch, batch])[::2]  # not contiguous
    for given, rows in ((batch, slice(5)), (batch[:1], slice(1)), (strided, [0, 2, 4, 1, 3]), (batch[3:], slice(3, 5))):
        for found, output in zip(bound.run(given), expected, strict=True):
            np.testing.assert_allclose(found, output[rows], atol=1e-5)


def test_an_answer_outlives_the_next_run_on_bound_memory(plain: onnxruntime.InferenceSession) -> None:
    bound = gpu.Bound(plain, "cpu")
    first = bound.run(volumes(3, seed=1))
    kept = [output.copy() for output in first]
    bound.run(volumes(3, seed=2))
    for found, output in zip(first, kept, strict=True):
        np.testing.assert_array_equal(found, output)


def test_a_graph_that_cuda_cannot_record_is_launched_kernel_by_kernel(
    toy: Bundle, plain: onnxruntime.InferenceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def opened(_: object, __: object, wanted: gpu.Providers) -> gpu.Bound:
        tried.append(wanted[0][1]["enable_cuda_graph"])
        if tried[-1] == "1":
            raise CovidnetError("nodes are left to the CPU")
        return gpu.Bound(plain, "cpu")

    monkeypatch.setattr(gpu, "_require", lambda *_: None)
    monkeypatch.setattr(gpu, "_opened", opened)
    network = engine.load(toy, "gpu")
    assert (network.name, network.batch, tried) == ("onnxruntime (gpu)", 16, ["1", "0"])
    batch = volumes(19)  # a full batch, and three
    expected = plain.run(list(engine.OUTPUTS), {"volume": batch})
    found = network.run(batch)
    for own, output in zip((found.logits, found.probabilities, found.cam), expected, strict=True):
        np.testing.assert_allclose(own, output, atol=1e-5)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_an_absent_gpu_is_an_error_and_no_slow_fallback(toy: Bundle) -> None:
    with pytest.raises(UsageError, match=r"device gpu: .*; use device cpu, or install NVIDIA's driver"):
        engine.load(toy, "gpu")


@needs_gpu
def test_gpu_agrees_with_the_plain_graph_in_any_batch_again_and_again(
    toy: Bundle, plain: onnxruntime.InferenceSession
) -> None:
    network = engine.load(toy, "gpu")
    assert network.name == "onnxruntime (gpu)"
    for seed, scans in enumerate((1, 3, 16, 1, 19, 3)):  # recorded, then played back, each size on other voxels
        batch = volumes(scans, seed)
        expected = plain.run(list(engine.OUTPUTS), {"volume": batch})
        found = network.run(batch)
        np.testing.assert_allclose(found.logits, expected[0], atol=1e-4)
        np.testing.assert_allclose(found.probabilities, expected[1], atol=1e-4)
        np.testing.assert_allclose(found.cam, expected[2], atol=1e-3)


@needs_gpu
def test_threads_share_a_gpu(toy: Bundle) -> None:
    network = engine.load(toy, "gpu")
    batches = [volumes(1 + seed % 3, seed) for seed in range(24)]
    expected = [network.run(batch).logits for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for found, own in zip(pool.map(lambda batch: network.run(batch).logits, batches), expected, strict=True):
            np.testing.assert_allclose(found, own, atol=1e-5)


@needs_gpu
def test_float16_on_a_gpu_is_near_float32(toy: Bundle) -> None:
    lowered = engine.open_model(toy.model, "gpu", "onnxruntime", precision="float16")
    assert lowered.name == "onnxruntime (gpu, float16)"
    expected = engine.load(toy, "gpu").run(volumes(3)).logits
    difference = np.abs(lowered.run(volumes(3)).logits - expected).max()
    assert 0 < difference < 0.05 * max(1.0, np.abs(expected).max())
