"""How `auto` chooses, and which precision may run."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_bundle

from covidnet.errors import UsageError
from covidnet.export.bundle import Bundle
from covidnet.inference import engine, selection


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_measured_fastest_is_chosen_and_logged(toy: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    selection.record(toy, "cpu", "float32", engine._quota(), {"openvino": 3.0, "onnxruntime": 2.0})
    with caplog.at_level(logging.INFO, logger="covidnet"):
        assert engine.load(toy).name == "onnxruntime (cpu)"
    assert "measured here: onnxruntime 2.0 ms, openvino 3.0 ms" in caplog.text
    assert engine.load(toy, engine="openvino").name == "openvino (cpu)"


def test_a_record_holds_for_its_bundle_and_settings_only(toy: Bundle) -> None:
    selection.record(toy, "cpu", "float32", 1, {"openvino": 1.0})
    assert selection.recorded(toy, "auto", "float32", 1) == {"openvino": 1.0}
    assert selection.recorded(toy, "cpu", "float32", 2) is None
    assert selection.recorded(toy, "gpu", "float32", 1) is None
    assert selection.recorded(toy, "cpu", "int8", 1) is None
    assert selection.recorded(replace(toy, version="another"), "cpu", "float32", 1) is None


def test_measuring_times_every_engine_once_per_machine(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = engine.load(toy, threads=1, measure=True)
    times = selection.recorded(toy, "cpu", "float32", 1)
    assert times is not None
    assert set(times) == {"openvino", "onnxruntime"}
    assert loaded.name == f"{min(times, key=times.__getitem__)} (cpu)"
    monkeypatch.setattr(selection, "measure", lambda *_: pytest.fail("measured again"))
    engine.load(toy, threads=1, measure=True)


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"openvino": "fast"}'])
def test_a_damaged_record_is_as_good_as_none(toy: Bundle, cache: Path, content: str) -> None:
    selection.record(toy, "cpu", "float32", 0, {"openvino": 1.0})
    (record,) = (cache / "covidnet3d" / "engines").iterdir()
    record.write_text(content)
    assert selection.recorded(toy, "cpu", "float32", 0) is None


def test_nothing_is_recorded_where_nothing_can_be_written(toy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    selection.record(toy, "cpu", "float32", 0, {"openvino": 1.0})
    assert engine.load(toy).name == "openvino (cpu)"


def test_a_precision_needs_the_verdict_of_the_export(toy: Bundle) -> None:
    with pytest.raises(UsageError, match="this bundle was exported without it; run `covidnet export -S"):
        engine.load(toy, precision="int8")
    refused = replace(toy, precisions={"bfloat16": {"accepted": False, "reason": "maps miss"}})
    with pytest.raises(UsageError, match="refused when the bundle was exported: maps miss"):
        engine.load(refused, precision="bfloat16")
    with pytest.raises(UsageError, match="precision 'int4': expected float32"):
        engine.load(toy, precision="int4")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "name", "precision", "message"),
    [
        (
            "cpu",
            "openvino",
            "float16",
            "engine openvino has no precision float16 on cpu; it has float32, bfloat16, int8",
        ),
        ("cpu", "auto", "float16", "precision float16: no engine has it on cpu"),
        ("gpu", "onnxruntime", "int8", "engine onnxruntime has no precision int8 on gpu; it has float32, float16"),
    ],
)
def test_a_precision_that_an_engine_lacks_is_named(
    toy: Bundle, device: engine.Device, name: engine.Name, precision: engine.Precision, message: str
) -> None:
    accepted = replace(toy, precisions={precision: {"accepted": True}})
    with pytest.raises(UsageError, match=message):
        engine.load(accepted, device, name, precision=precision)


def test_bfloat16_is_near_float32_or_refused_by_the_cpu(toy: Bundle) -> None:
    import openvino

    accepted = replace(toy, precisions={"bfloat16": {"accepted": True}})
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(UsageError, match="this CPU computes no bfloat16"):
            engine.load(accepted, precision="bfloat16")
        return
    lowered = engine.load(accepted, precision="bfloat16")
    batch = np.random.default_rng(0).integers(0, 256, (3, 1, *toy_bundle.SIZE), dtype=np.uint8)
    difference = np.abs(lowered.run(batch).logits - engine.load(toy).run(batch).logits).max()
    assert lowered.name == "openvino (cpu, bfloat16)"
    assert 0 < difference < 0.05


def test_records_are_plain_numbers(toy: Bundle, cache: Path) -> None:
    selection.measure(toy, toy.model, "cpu", "float32", 1, ["onnxruntime"])
    (record,) = (cache / "covidnet3d" / "engines").iterdir()
    assert list(json.loads(record.read_text())) == ["onnxruntime"]
