import os
import subprocess
import sys

import pytest
import yaml

from pipelines import covidnet3d
from pipelines.cluster import Cluster

# Tasks that a cluster needs beside the stages: they pass an order on, and make no stage's input
ONLY_HERE = {"configure", "audit", "gate", "report"}


def compiled(path, cluster):
    covidnet3d.write(cluster, path)
    return list(yaml.safe_load_all(path.read_text()))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("compiled") / "plain.yaml", Cluster())


@pytest.fixture(scope="module")
def with_gpus(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("compiled") / "gpus.yaml", Cluster(gpus=2, data_claim="raw-scans"))


def tasks_of(spec, dag):
    """Task to the tasks that it waits for; groups (loops, conditions, the exit handler) are resolved to their tasks."""
    waits, members = {}, {}
    for name, task in dag["tasks"].items():
        inner = spec["components"][task["componentRef"]["name"]].get("dag")
        inner_waits = tasks_of(spec, inner) if inner else {task["componentRef"]["name"].removeprefix("comp-"): set()}
        members[name] = inner_waits
    for name, task in dag["tasks"].items():
        before = {member for other in task.get("dependentTasks", []) for member in members[other]}
        for member, inner in members[name].items():
            waits[member] = inner | before
    return waits


def closed(waits):
    """Everything that a task waits for, directly or through others."""

    def of(name):
        return set().union(*({other} | of(other) for other in waits[name]))

    return {name: of(name) for name in waits}


def test_stages_and_their_order_equal_those_of_dvc(plain, repository):
    stages = yaml.safe_load((repository / "dvc.yaml").read_text())["stages"]
    makers = {str(out).split("${")[0].rstrip("/"): name for name, stage in stages.items() for out in stage["outs"]}
    dvc = {
        name: {maker for out, maker in makers.items() for dep in stage["deps"] if dep.startswith(out) and maker != name}
        for name, stage in stages.items()
    }
    kubeflow = closed(tasks_of(plain[0], plain[0]["root"]["dag"]))
    here = {name: before - ONLY_HERE for name, before in kubeflow.items() if name not in ONLY_HERE}
    assert here == closed(dvc)


def test_nothing_trains_before_the_audit_and_nothing_is_exported_before_the_gate(plain):
    waits = closed(tasks_of(plain[0], plain[0]["root"]["dag"]))
    assert {name for name, before in waits.items() if "audit" in before} >= {"baseline", "search", "retrain"}
    assert "gate" in waits["export"]
    assert set(waits["report"]) == set(waits) - {"report"}


def test_the_gate_is_a_condition_on_its_verdict(plain):
    conditions = [
        task["triggerPolicy"]["condition"]
        for component in plain[0]["components"].values()
        for task in component.get("dag", {}).get("tasks", {}).values()
        if "condition" in task.get("triggerPolicy", {})
    ]
    assert conditions == ["inputs.parameter_values['pipelinechannel--gate-Output'] == true"]


def test_the_committed_yaml_is_fresh_and_compiling_is_deterministic(repository, tmp_path):
    code = (
        "import sys, pathlib; from pipelines import covidnet3d; from pipelines.cluster import Cluster;"
        "covidnet3d.write(Cluster(), pathlib.Path(sys.argv[1]))"
    )
    texts = []
    for seed in ("1", "2"):
        environment = {key: value for key, value in os.environ.items() if key != "COVIDNET_IMAGE"}
        file = tmp_path / f"{seed}.yaml"
        command = [sys.executable, "-W", "ignore", "-c", code, str(file)]
        subprocess.run(command, env={**environment, "PYTHONHASHSEED": seed}, cwd=repository, check=True)
        texts.append(file.read_text())
    assert texts[0] == texts[1]
    committed = (repository / "pipelines" / "covidnet3d.yaml").read_text()
    assert texts[0] == committed, "pipelines/covidnet3d.yaml is stale: run `python -m pipelines compile`"


def test_the_image_is_chosen_when_compiling(repository, tmp_path):
    image = "registry.example/covidnet3d@sha256:" + 64 * "0"
    command = [sys.executable, "-m", "pipelines", "compile", "--out", tmp_path / "out.yaml"]
    subprocess.run(command, env={**os.environ, "COVIDNET_IMAGE": image}, cwd=repository, check=True)
    executors = next(yaml.safe_load_all((tmp_path / "out.yaml").read_text()))["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == {image}


def test_parameters_of_the_ui_are_described_and_mirror_params_yaml(plain, repository):
    parameters = plain[0]["root"]["inputDefinitions"]["parameters"]
    params = yaml.safe_load((repository / "params.yaml").read_text())
    assert all(parameter["description"] for parameter in parameters.values())
    assert yaml.safe_load(parameters["params"]["defaultValue"]) == params
    assert parameters["baselines"]["defaultValue"] == params["baselines"]
    assert parameters["variants"]["defaultValue"] == params["search"]["variants"]


def test_networks_run_on_gpus_and_nothing_else_does(with_gpus):
    executors = with_gpus[0]["deploymentSpec"]["executors"]
    accelerated = {
        name.removeprefix("exec-"): executor["container"]["resources"]["accelerator"]
        for name, executor in executors.items()
        if "accelerator" in executor["container"]["resources"]
    }
    assert set(accelerated) == {"baseline", "search", "retrain", "evaluate", "export"}
    assert all(a["resourceType"] == "nvidia.com/gpu" and a["resourceCount"] == "2" for a in accelerated.values())
    pods = with_gpus[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert {name.removeprefix("exec-") for name, pod in pods.items() if "tolerations" in pod} == set(accelerated)


def test_raw_scans_are_mounted_where_they_are_read_and_nowhere_else(with_gpus):
    pods = with_gpus[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    mounts = {name: pod["pvcMount"] for name, pod in pods.items() if "pvcMount" in pod}
    assert {name: [(m["constant"], m["mountPath"]) for m in mount] for name, mount in mounts.items()} == {
        "exec-ingest": [("raw-scans", "/data")]
    }


def test_every_pod_has_limits_and_a_deadline(plain):
    executors = plain[0]["deploymentSpec"]["executors"]
    for executor in executors.values():
        assert {"resourceCpuLimit", "resourceMemoryLimit"} <= set(executor["container"]["resources"])
    pods = plain[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(pods) == set(executors)
    assert all(int(pod["activeDeadlineSeconds"]) >= 3600 for pod in pods.values())
