from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import toy_bundle
from scipy.special import softmax

from covidnet.errors import CovidnetError
from covidnet.export.bundle import Bundle
from covidnet.export.onnx import export, parity


def volumes(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, 1, *toy_bundle.SIZE), dtype=np.uint8)


def run(path: Path, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return tuple(session.run(["logits", "probabilities", "cam"], {"volume": batch}))


def test_every_engine_agrees_with_torch_at_any_batch_size(toy: Bundle) -> None:
    found = parity(toy_bundle.model(), toy.model, [volumes(b, seed=b) for b in (1, 2, 5, 8)], channels=1)
    assert found["max_abs_logits"] < 1e-4
    assert found["max_abs_cam"] < 1e-3
    assert found["argmax_equal"]
    assert found["batches"] == 4
    assert found["engines"] == ["openvino (cpu)", "onnxruntime (cpu)"]


def test_grey_levels_are_scaled_inside_the_graph(toy: Bundle) -> None:
    batch = volumes(3)
    with torch.no_grad():
        expected = toy_bundle.model()(torch.from_numpy(batch / 127.5 - 1).float()).numpy()
    np.testing.assert_allclose(run(toy.model, batch)[0], expected, atol=1e-5)


def test_mean_of_a_map_plus_bias_is_the_logit(toy: Bundle) -> None:
    logits, _, cam = run(toy.model, volumes(4))
    bias = toy_bundle.model().head.bias.detach().numpy()
    assert cam.shape == (4, 3, 4, 12, 12)
    np.testing.assert_allclose(cam.mean(axis=(2, 3, 4)) + bias, logits, atol=1e-5)


def test_probabilities_are_softmax_at_the_temperature(toy: Bundle) -> None:
    logits, probabilities, _ = run(toy.model, volumes(4))
    np.testing.assert_allclose(probabilities, softmax(logits / toy_bundle.TEMPERATURE, axis=1), atol=1e-6)
    assert np.abs(probabilities - softmax(logits, axis=1)).max() > 1e-3


def test_three_channels_repeat_the_scan(tmp_path: Path) -> None:
    model = toy_bundle.model(channels=3)
    path = tmp_path / "m.onnx"
    export(model, path, size=toy_bundle.SIZE, channels=3, temperature=1.0, metadata={})
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[1].dim_value == 1
    batch = volumes(2)
    with torch.no_grad():
        expected = model(torch.from_numpy(np.repeat(batch, 3, axis=1) / 127.5 - 1).float()).numpy()
    np.testing.assert_allclose(run(path, batch)[0], expected, atol=1e-5)


def test_file_is_whole_small_and_tells_nothing_of_the_machine(toy: Bundle, repository: Path) -> None:
    content = toy.model.read_bytes()
    weights = sum(v.numel() * v.element_size() for v in toy_bundle.model().state_dict().values())
    assert weights < len(content) < weights + 16_384
    for trace in (str(repository).encode(), b"site-packages", b"stack_trace", b"covidnet3d.py", b"toy_bundle"):
        assert trace not in content
    assert {p.name for p in toy.model.parent.parent.iterdir()} == {"toy.onnx", "toy.safetensors", "bundle"}


def test_metadata_names_classes_and_versions(toy: Bundle) -> None:
    found = {entry.key: entry.value for entry in onnx.load(toy.model).metadata_props}
    assert found["classes"] == '["NCP", "CP", "Normal"]'
    assert found["temperature"] == "1.7"
    assert found["torch"] == torch.__version__
    assert onnx.load(toy.model).opset_import[0].version == int(found["opset"])


def test_export_leaves_the_model_in_training_mode(tmp_path: Path) -> None:
    model = toy_bundle.model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, tmp_path / "m.onnx", size=toy_bundle.SIZE, channels=1, temperature=1.0, metadata={})
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_network_fails_parity(toy: Bundle) -> None:
    model = toy_bundle.model()
    model.head.bias.data[0] += 0.01
    with pytest.raises(CovidnetError, match=r"logits of openvino \(cpu\) differ from torch by 1\.00e-02"):
        parity(model, toy.model, [volumes(1)], channels=1)


def test_parity_of_nothing_is_an_error(toy: Bundle) -> None:
    with pytest.raises(CovidnetError, match="found 0 batches"):
        parity(toy_bundle.model(), toy.model, [], channels=1)


def test_broken_weights_and_temperatures_are_refused(tmp_path: Path) -> None:
    model = toy_bundle.model()
    arguments = {"size": toy_bundle.SIZE, "channels": 1, "metadata": {}}
    with pytest.raises(CovidnetError, match="expected a positive number, found 0"):
        export(model, tmp_path / "m.onnx", temperature=0.0, **arguments)
    model.head.weight.data[0, 0] = float("nan")
    with pytest.raises(CovidnetError, match=r"1 weights aren't finite, the first is model\.head\.weight"):
        export(model, tmp_path / "m.onnx", temperature=1.0, **arguments)
    assert not list(tmp_path.iterdir())
