import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from covidnet.config import Budget, Config, parse
from covidnet.errors import UsageError
from covidnet.inference import engine
from covidnet.models.covidnet3d import IDENTITY, SPACES, Genotype, Operation, Space, build
from covidnet.search import latency, result, run
from covidnet.search.budget import Costing
from covidnet.search.latency import LatencyTable
from covidnet.search.untrained import network
from covidnet.training.volumes import generator
from tests.toy_space import COSTS, SIZE, SPACE

# what no count of arithmetic would say: 5x5x5 is the dearest, 7x7x7 with expansion 4 as cheap as 3x3x3
ROW = (0.2, 0.25, 0.4, 0.9, 1.1, 0.3, 0.2, 0.0)
TABLE = LatencyTable("tiny", (2, 2), SIZE, "openvino (cpu)", "a processor", 0, 0.5, (ROW,) * 4)


def test_expected_milliseconds_are_the_sum_of_the_parts_weighted_by_their_probability():
    costing = Costing(COSTS, Budget(size_mib=None), TABLE)
    assert costing.latency_ms((0, 4, 7, 6)) == pytest.approx(0.5 + 0.2 + 1.1 + 0.0 + 0.2)
    assert costing.latency_ms((0, 4, 7, 6)) == pytest.approx(TABLE.of((0, 4, 7, 6)))
    uniform = torch.full((4, 8), 1 / 8)
    assert costing.expected("latency_ms", uniform) == pytest.approx(0.5 + 4 * sum(ROW) / 8)
    assert costing.range("latency_ms") == pytest.approx((0.5, 0.5 + 4 * 1.1))


@pytest.mark.parametrize("limit", [1.0, 1.5, 2.2])
def test_a_search_meets_a_limit_on_latency_within_five_percent_whatever_alpha_wants(limit):
    costing = Costing(COSTS, Budget(size_mib=None, latency_ms=limit), TABLE)
    alpha = torch.randn(4, 8, generator=generator(0))
    alpha[:, 4] += 4.0  # the dearest operation looks best
    p = torch.softmax(costing.within(alpha), dim=1)
    assert costing.expected("latency_ms", p) == pytest.approx(limit, rel=0.05)
    assert costing.latency_ms(result.within_budget(alpha, costing)) <= limit
    for path in result.random_paths(costing, 5, generator(1)):
        assert costing.latency_ms(path) <= limit


def test_size_and_latency_hold_together():
    free = Costing(COSTS, Budget(size_mib=None), TABLE)
    size = 0.5 * (free.range("size_mib")[0] + free.expected("size_mib", torch.full((4, 8), 1 / 8)))
    costing = Costing(COSTS, Budget(size_mib=size, latency_ms=1.2), TABLE)
    p = torch.softmax(costing.within(torch.zeros(4, 8)), dim=1)
    assert costing.expected("size_mib", p) <= size * 1.01
    assert costing.expected("latency_ms", p) <= 1.2 * 1.01


def test_a_limit_outside_of_the_space_says_what_the_space_has():
    with pytest.raises(UsageError, match=r"budget.latency_ms is 0.4, .* the space goes from 0.5 to 4.9"):
        Costing(COSTS, Budget(size_mib=None, latency_ms=0.4), TABLE)
    (remark,) = Costing(COSTS, Budget(size_mib=None, latency_ms=5), TABLE).ineffective()
    assert "limits nothing: this space goes from 0.5 to 4.9" in remark
    assert Costing(COSTS, Budget(size_mib=None, latency_ms=4.8), TABLE).ineffective() == []


def test_a_table_survives_its_file_and_is_refused_for_another_space(tmp_path):
    path = tmp_path / "latency.json"
    TABLE.save(path)
    assert LatencyTable.load(path, SPACE) == TABLE
    with pytest.raises(UsageError, match=r"strides 2,2, search.strides are 2,1; .* `covidnet latency --strides 2,1`"):
        LatencyTable.load(path, replace(SPACE, strides=(2, 1)))
    with pytest.raises(UsageError, match="expected latencies of space covidnet3d-s, 21 blocks"):
        LatencyTable.load(path, SPACES["S"])
    path.write_text(json.dumps({"space": "tiny"}))
    with pytest.raises(UsageError, match="not a table of latencies; `covidnet latency` writes one"):
        LatencyTable.load(path, SPACE)
    with pytest.raises(UsageError, match="not a table"):
        LatencyTable.load(Path("nowhere.json"), SPACE)


def test_a_search_takes_a_table_of_the_size_that_is_served_and_no_other(tmp_path):
    path = tmp_path / "latency.json"
    replace(TABLE, space="covidnet3d-s", strides=SPACES["S"].strides, blocks_ms=(ROW,) * 21).save(path)
    config = parse({"search": {"budget": {"latency_ms": 3}, "latency_table": str(path)}})
    packed = SimpleNamespace(scans=np.zeros((1, *SIZE)))
    assert run._latencies(config, packed, SPACES["S"]).of((0,) * 21) == pytest.approx(4.7)
    assert run._latencies(Config(), packed, SPACES["S"]) is None
    with pytest.raises(UsageError, match=r"measured at \(8, 16, 16\), .* run `covidnet latency --input 16,64,64`"):
        run._latencies(config, SimpleNamespace(scans=np.zeros((1, 16, 64, 64))), SPACES["S"])


def test_the_timed_graph_has_the_weights_of_the_architecture_and_the_interface_of_an_exported_one(tmp_path):
    path = (0, 4, 7, 2, 1, 7, *range(7), *(6,) * 8)
    layers = SPACES["S"].layers([SPACES["S"].operations[i].name for i in path])
    built = build(Genotype("S", ("a", "b", "c"), 3, (16, 32, 32), tuple(map(tuple, layers))))
    graph = network(SPACES["S"], path, (16, 32, 32), 3)
    onnx.checker.check_model(graph, full_check=True)
    found = sum(math.prod(tensor.dims) for tensor in graph.graph.initializer if len(tensor.dims) > 1)
    assert found == sum(p.numel() for p in built.parameters() if p.ndim > 1)
    onnx.save(graph, tmp_path / "network.onnx")
    outputs = engine.open_model(tmp_path / "network.onnx", "cpu").run(np.full((2, 1, 16, 32, 32), 90, np.uint8))
    assert outputs.logits.shape == (2, 3)
    assert np.isfinite(outputs.cam).all()
    assert outputs.cam.reshape(2, 3, -1).mean(axis=2) == pytest.approx(outputs.logits, abs=1e-4)


def test_operations_are_timed_inside_a_network_once_per_machine(tmp_path, monkeypatch):
    operations, size = (Operation(7, 6), IDENTITY), (16, 64, 64)  # milliseconds, so that noise doesn't decide
    space = Space("toy", widths=(8,), strides=(2,), blocks=(1,), stem=8, last=16, operations=operations)
    monkeypatch.setitem(SPACES, "toy", space)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    monkeypatch.setattr(latency, "BUSY", 0.0)
    latency.cached(space, size, 1, "cpu", "openvino", threads=1)
    assert not list(tmp_path.rglob("*.json"))  # what a busy machine measured isn't kept
    monkeypatch.setattr(latency, "BUSY", float("inf"))
    table = latency.cached(space, size, 1, "cpu", "openvino", threads=1)
    assert table.engine == "openvino (cpu)"
    assert table.fixed_ms > 0
    assert len(table.blocks_ms) == 1
    assert table.blocks_ms[0][0] > 0
    assert table.blocks_ms[0][1] == 0
    assert len(table.check) == 4
    monkeypatch.setattr(latency, "measure", None)  # what is recorded isn't measured again
    assert latency.cached(space, size, 1, "cpu", "openvino", threads=1) == table


def test_an_operation_costs_what_its_layer_adds_to_a_network_of_identities(tmp_path, monkeypatch):
    operations = (Operation(3, 3), IDENTITY, Operation(5, 4))
    space = Space("toy", widths=(8, 12), strides=(2, 1), blocks=(2, 1), stem=8, last=16, operations=operations)
    monkeypatch.setitem(SPACES, "toy", space)
    paths = []

    def recorded(space, path, size, channels):
        paths.append(tuple(path))
        return network(space, path, size, channels)

    # the fastest of an empty network's runs, and of the other's: 3 ms more, 1 less (noise), .5, 2, and two random networks
    fastest = [(1.0, 4.0), (1.5, 0.5), (1.25, 1.75), (1.0, 3.0), (1.0, 5.0), (0.75, 2.0)]
    answers = iter([{"empty": [9.0, empty], "other": [other, 8.0]} for empty, other in fastest])
    monkeypatch.setattr(latency, "network", recorded)
    monkeypatch.setattr(latency.selection, "take_turns", lambda *_, **__: next(answers))
    table = latency.measure(space, SIZE, 1, "cpu", "openvino", 1, checked=2)
    assert paths[:5] == [(1, 1, 1), (0, 0, 1), (2, 2, 1), (1, 1, 0), (1, 1, 2)]
    assert table.fixed_ms == 0.75
    assert table.blocks_ms == ((1.5, 0.0, 0.0), (1.5, 0.0, 0.0), (0.5, 0.0, 2.0))
    assert table.check == tuple(
        (pytest.approx(table.of(path)), pytest.approx(0.75 + extra))
        for path, extra in zip(paths[5:], (4.0, 1.25), strict=True)
    )


def test_a_machine_is_busy_where_networks_take_something_else_than_their_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert latency.deviation([(2.0, 3.0), (4.0, 3.0)]) == pytest.approx(0.375)
    measured = replace(TABLE, space="covidnet3d-s", strides=SPACES["S"].strides, check=((1.0, 1.0 + latency.BUSY),))
    asked = []
    monkeypatch.setattr(latency, "measure", lambda *how: asked.append(how) or measured)
    latency.cached(SPACES["S"], SIZE, 1, "cpu", "openvino")
    assert asked == [(SPACES["S"], SIZE, 1, "cpu", "openvino", 0)]  # as many threads as the engine likes
    assert len(list(tmp_path.rglob("*.json"))) == 1  # just not too busy
    monkeypatch.setattr(latency, "measure", lambda *_: replace(measured, check=((1.0, 1.0 - 2 * latency.BUSY),)))
    latency.cached(SPACES["S"], (8, 16, 32), 1, "cpu", "openvino")
    assert len(list(tmp_path.rglob("*.json"))) == 1
