import pytest

from pipelines import __main__ as cli

SERVER = ["--host", "http://127.0.0.1:9"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-S", "search.steps=0"], "search.steps"),
        (["-S", "search.step=5"], "did you mean search.steps?"),
        (["-S", "baselines=[resnet]"], "baselines"),
        (["-S", "baselines=[]"], "at least one of baselines"),
        (["-S", "data.source=nifti"], "set data.root"),
        (["--params", "nowhere.yaml"], "no such file: nowhere.yaml"),
        (["--at-least", "accuracy"], "--at-least accuracy: expected FIGURE=BOUND"),
        (["--at-most", "kappa=low"], "--at-most kappa=low: expected FIGURE=BOUND"),
    ],
)
@pytest.mark.parametrize("verb", [["run"], ["submit", *SERVER]])
def test_a_wrong_parameter_ends_before_anything_runs(repository, monkeypatch, capsys, verb, arguments, message):
    monkeypatch.chdir(repository)
    monkeypatch.setattr("sys.argv", ["pipelines", *verb, *arguments])
    monkeypatch.setattr(cli.local, "run", lambda *_: pytest.fail("a task was started"))
    monkeypatch.setattr(cli.Server, "submit", lambda *_: pytest.fail("a run was submitted"))
    with pytest.raises(SystemExit) as exit_of:
        cli.main()
    assert exit_of.value.code == 2
    assert message in capsys.readouterr().err


def test_arguments_carry_the_configuration_and_name_the_branches(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("baselines: [mc3_18]\nprofiles: {paper: {search: {variants: [S, L]}}}\n")
    arguments = cli._configuration(params, ["profile=paper", "seed=7"])
    assert arguments == {
        "params": params.read_text(),
        "overrides": ["profile=paper", "seed=7"],
        "baselines": ["mc3_18"],
        "variants": ["S", "L"],
    }


def test_bounds_of_the_gate():
    assert cli._gate(["accuracy=0.8", "kappa=0.6"], ["brier=0.2"], 0.01) == {
        "gate_at_least": {"accuracy": 0.8, "kappa": 0.6},
        "gate_at_most": {"brier": 0.2},
        "gate_margin": 0.01,
    }
    assert cli._gate(None, None, 0.0) == {
        "gate_at_least": {"accuracy": 0.5},
        "gate_at_most": {"ece_after": 0.15},
        "gate_margin": 0.0,
    }
