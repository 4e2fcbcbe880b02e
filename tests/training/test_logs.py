import json
import sys

import pytest

from covidnet.config import parse
from covidnet.errors import UsageError
from covidnet.training import logs

INSTALL = "is not installed; pip install 'covidnet3d[logs]'"


def write(names, folder, steps):
    with logs.opened(names, folder) as log:
        for step in steps:
            log(step, {"loss": 1.0 / (step + 1), "entropy": 2.0})


@pytest.mark.parametrize(("name", "module"), [("dvclive", "dvclive"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_log_that_is_not_installed_says_how_to_get_it_or_do_without(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"{name} is not installed; pip install 'covidnet3d\[logs\]'"):
        write(parse({"log": [name]}).log, tmp_path, range(1))


def test_without_logs_nothing_is_written_nor_by_other_processes_than_the_first(tmp_path, monkeypatch):
    write((), tmp_path, range(3))
    monkeypatch.setenv("RANK", "1")
    write(("dvclive", "tensorboard"), tmp_path, range(3))
    assert not list(tmp_path.iterdir())


def test_dvclive_gets_every_step_and_a_run_that_goes_on_adds_to_it(tmp_path):
    pytest.importorskip("dvclive", reason=f"dvclive {INSTALL}")
    write(["dvclive"], tmp_path, range(3))
    write(["dvclive"], tmp_path, range(3, 5))
    rows = (tmp_path / "dvclive/plots/metrics/loss.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows[1:]] == ["0", "1", "2", "3", "4"]
    told = json.loads((tmp_path / "dvclive/metrics.json").read_text())
    assert told["loss"] == pytest.approx(0.2)
    assert told["step"] == 4


def test_tensorboard_gets_every_step(tmp_path):
    pytest.importorskip("tensorboard", reason=f"tensorboard {INSTALL}")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(["tensorboard"], tmp_path, range(5))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (step, pytest.approx(1 / (step + 1))) for step in range(5)
    ]
