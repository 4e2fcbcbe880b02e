import os
import subprocess
import sys

import pytest
import yaml

from pipelines import covidnet3d
from pipelines.cluster import Cluster

# Tasks that a cluster needs beside the stages: they pass an order on, and make no stage's input
ONLY_HERE = {"configure", "ingest-shard", "audit", "gate", "report", "register", "deploy", "smoke-test", "release"}
TRAINING = {"baseline", "search", "retrain"}


def compiled(path, cluster):
    covidnet3d.write(cluster, path)
    return list(yaml.safe_load_all(path.read_text()))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("compiled") / "plain.yaml", Cluster())


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    cluster = Cluster("raw-scans", "work", "pseudonyms", "store", ("accelerator=a100",), ("nvidia.com/gpu", "training"))
    return compiled(tmp_path_factory.mktemp("compiled") / "placed.yaml", cluster)


def pods_of(compiled_graph):
    pods = compiled_graph[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): pod for name, pod in pods.items()}


def executors_of(compiled_graph):
    executors = compiled_graph[0]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): executor["container"] for name, executor in executors.items()}


def dag_with(spec, task):
    """The group that holds a task."""
    return next(c["dag"] for c in spec["components"].values() if task in c.get("dag", {}).get("tasks", {}))


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
    assert sorted(conditions) == [
        "inputs.parameter_values['pipelinechannel--gate-Output'] == true",
        "inputs.parameter_values['pipelinechannel--registry'] != ''",
        "inputs.parameter_values['pipelinechannel--service'] != ''",
    ]


def test_the_way_of_a_bundle_into_service(plain):
    waits = closed(tasks_of(plain[0], plain[0]["root"]["dag"]))
    assert {"deploy", "export", "gate"} <= waits["smoke-test"]
    assert "smoke-test" in waits["release"]
    passed = dag_with(plain[0], "release")["tasks"]["release"]["inputs"]["parameters"]["passed"]
    assert passed["taskOutputParameter"] == {"outputParameterKey": "Output", "producerTask": "smoke-test"}


def test_what_depends_on_the_cluster_never_comes_from_the_cache_and_all_else_does(plain):
    cached = {}
    for component in [plain[0]["root"], *plain[0]["components"].values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            if task["componentRef"]["name"] in {f"comp-{executor}" for executor in executors_of(plain)}:
                cached[name] = bool(task["cachingOptions"])
    assert {name for name, yes in cached.items() if not yes} == {
        "configure", "gate", "register", "deploy", "smoke-test", "release", "report",
    }  # fmt: skip


@pytest.mark.parametrize("task", ["ingest-shard", "ingest", "baseline", "search", "retrain", "evaluate", "export"])
def test_the_cache_goes_by_the_digests_of_code_and_data(plain, task):
    inputs = dag_with(plain[0], task)["tasks"][task]["inputs"]["parameters"]
    assert inputs["code"]["componentInputParameter"].removeprefix("pipelinechannel--") == "code"
    if task.startswith("ingest"):
        assert inputs["data_revision"]["componentInputParameter"].removeprefix("pipelinechannel--") == "data_revision"


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


def test_a_runs_parameters_place_the_networks_on_gpus(plain):
    accelerated = {
        name: container["resources"]["accelerator"]
        for name, container in executors_of(plain).items()
        if "accelerator" in container["resources"]
    }
    assert set(accelerated) == {*TRAINING, "evaluate"}
    for task, asked in accelerated.items():
        group = dag_with(plain[0], task)
        for placeholder in (asked["resourceCount"], asked["resourceType"]):
            name = placeholder.split("'")[1]  # {{$.inputs.parameters['NAME']}}
            given = group["tasks"][task]["inputs"]["parameters"][name]["componentInputParameter"]
            declared = {*dag_inputs(plain[0], group)}
            assert given in declared, f"{task}: KFP would start it without {given}"


def dag_inputs(spec, group):
    """Parameters that a group is given; the compiler forgets those that only a pod's resources ask for."""
    return next(c["inputDefinitions"]["parameters"] for c in spec["components"].values() if c.get("dag") is group)


def test_pods_that_train_go_to_the_nodes_for_it(placed):
    pods = pods_of(placed)
    chosen = {
        name for name, pod in pods.items() if pod.get("nodeSelector", {}).get("labels") == {"accelerator": "a100"}
    }
    assert chosen == {*TRAINING, "evaluate", "export"}
    assert {t["key"] for t in pods["search"]["tolerations"]} == {"nvidia.com/gpu", "training"}
    assert {name for name, pod in pods.items() if "tolerations" in pod} == chosen
    (shm,) = pods["search"]["emptyDirMounts"]
    assert (shm["mountPath"], shm["medium"], shm["sizeLimit"]) == ("/dev/shm", "Memory", "4Gi")


def test_claims_are_mounted_where_they_are_used_and_nowhere_else(placed):
    mounts = {
        name: {m["constant"]: m["mountPath"] for m in pod["pvcMount"]}
        for name, pod in pods_of(placed).items()
        if "pvcMount" in pod
    }
    raw, work = {"raw-scans": "/data"}, {"work": "/workspace"}
    assert mounts == {
        "configure": {**raw, **work},
        "ingest-shard": {**raw, **work},
        "ingest": {**raw, **work},
        **dict.fromkeys([*TRAINING, "evaluate", "export", "gate", "report"], work),
    }
    with_work = {name for name, c in executors_of(placed).items() if {"name": "COVIDNET_WORKSPACE", "value": "/workspace"}
                 in c.get("env", [])}  # fmt: skip
    assert with_work == set(mounts)


def test_the_key_of_the_pseudonyms_and_the_way_to_the_raw_scans_come_from_secrets(placed):
    secrets = {
        name: {item["envVar"]: (secret["secretName"], secret.get("optional", False)) for item in secret["keyToEnv"]}
        for name, pod in pods_of(placed).items()
        for secret in pod.get("secretAsEnv", [])
        if secret["secretName"] == "pseudonyms"
    }
    key = {"COVIDNET_PATIENT_KEY": ("pseudonyms", False)}
    assert secrets == {"ingest-shard": key, "ingest": key}
    store = {
        name: [item["envVar"] for item in secret["keyToEnv"] if item["envVar"] == item["secretKey"]]
        for name, pod in pods_of(placed).items()
        for secret in pod.get("secretAsEnv", [])
        if secret["secretName"] == "store"
    }
    assert set(store) == {"configure", "ingest-shard", "ingest"}
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"} <= set(store["ingest"])


def test_a_lost_pod_is_tried_again_where_it_may_go_on(plain):
    groups = [plain[0]["root"], *plain[0]["components"].values()]
    tasks = {name: t for group in groups for name, t in group.get("dag", {}).get("tasks", {}).items()}
    retried = {name for name, task in tasks.items() if "retryPolicy" in task}
    assert retried == {"ingest-shard", "ingest", *TRAINING, "evaluate", "export"}
    assert all(tasks[name]["retryPolicy"]["maxRetryCount"] == 2 for name in retried)


def test_every_pod_has_limits_and_a_deadline(plain):
    for container in executors_of(plain).values():
        assert {"resourceCpuLimit", "resourceMemoryLimit"} <= set(container["resources"])
    pods = pods_of(plain)
    assert set(pods) == set(executors_of(plain))
    assert all(int(pod["activeDeadlineSeconds"]) >= 3600 for pod in pods.values())


def test_every_pod_runs_as_the_images_user_which_restricted_pod_security_asks_for(plain, repository):
    assert "\nUSER 1000:1000\n" in (repository / "components/Containerfile").read_text()
    assert set(pods_of(plain)) == set(executors_of(plain))
    expected = {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}
    assert all(pod["securityContext"] == expected for pod in pods_of(plain).values())
