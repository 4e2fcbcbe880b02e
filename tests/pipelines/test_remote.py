import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kubernetes.client import ApiClient, Configuration

from covidnet.errors import CovidnetError
from pipelines.cluster import Cluster
from pipelines.remote import Server


class Api(BaseHTTPRequestHandler):
    """The few answers of Kubeflow's REST API (v2beta1) that a submission needs; keeps what it was sent."""

    def do_GET(self):
        self.server.seen.append((self.command, self.path.split("?")[0], self.headers.get("Authorization"), None))
        if self.server.refuse:
            return self.answer({"error": "refused"}, self.server.refuse)
        if "/healthz" in self.path:
            return self.answer({"multi_user": False})
        if "/pods" in self.path:
            return self.answer({"kind": "PodList", "apiVersion": "v1", "items": self.server.pods})
        if "/recurringruns" in self.path:
            old = {"recurring_run_id": "old", "display_name": "nightly"}
            other = {"recurring_run_id": "other", "display_name": "weekly"}
            return self.answer({"recurringRuns": [old, other]})
        if "/experiments" in self.path:
            return self.answer({})
        return self.answer({"run_id": "r-1", "state": self.server.states.pop(0)})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.command, self.path.split("?")[0], self.headers.get("Authorization"), body))
        return self.answer({"experiment_id": "e-1", "run_id": "r-1", "recurring_run_id": "s-1"})

    def do_DELETE(self):
        self.server.seen.append((self.command, self.path.split("?")[0], self.headers.get("Authorization"), None))
        return self.answer({})

    def answer(self, tree, status=200):
        text = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def api():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    server.seen, server.states, server.refuse, server.pods = [], [], None, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(api):
    return f"http://127.0.0.1:{api.server_port}"


def test_submit_makes_the_experiment_and_starts_a_run_of_the_compiled_graph(api, capsys):
    arguments = {"params": "seed: 1\n", "overrides": ["search.steps=9"]}
    run_id = Server(address(api), token="secret").submit(Cluster(), arguments, "lungs", "first")
    assert run_id == "r-1"
    posts = {path: (authorization, body) for verb, path, authorization, body in api.seen if verb == "POST"}
    assert posts["/apis/v2beta1/experiments"][1]["display_name"] == "lungs"
    authorization, run = posts["/apis/v2beta1/runs"]
    assert authorization == "Bearer secret"
    assert (run["display_name"], run["experiment_id"]) == ("first", "e-1")
    assert run["runtime_config"]["parameters"] == arguments
    spec = run["pipeline_spec"]["pipeline_spec"]
    assert "exec-search" in spec["deploymentSpec"]["executors"]
    assert (
        "exec-search" in run["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    )
    assert f"{address(api)}/#/runs/details/r-1" in capsys.readouterr().out


def test_wait_prints_each_change_of_state_and_ends_with_the_run(api, capsys):
    api.states = ["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"]
    Server(address(api)).wait("r-1", poll_seconds=0.01)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["PENDING", "RUNNING", "SUCCEEDED"]


def test_wait_tells_why_a_pod_waits_for_a_node(api, capsys, monkeypatch):
    settings = Configuration(host=address(api))
    monkeypatch.setattr("pipelines.remote.connect", lambda: ApiClient(settings))
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    api.pods = [{"metadata": {"name": "search-1"}, "status": {"conditions": [waits]}}]
    api.states = ["RUNNING", "RUNNING", "SUCCEEDED"]
    Server(address(api)).wait("r-1", poll_seconds=0.01)
    assert capsys.readouterr().out.count(f"pod search-1: Unschedulable: {message}") == 1


def test_a_run_without_the_cache(api):
    Server(address(api)).submit(Cluster(cached=False), {}, "lungs", "first")
    (run,) = [body for verb, path, _, body in api.seen if verb == "POST" and path.endswith("/runs")]
    spec = run["pipeline_spec"]["pipeline_spec"]
    tasks = [t for c in spec["components"].values() for t in c.get("dag", {}).get("tasks", {}).values()]
    executed = [task for task in tasks if f"exec-{task['taskInfo']['name']}" in spec["deploymentSpec"]["executors"]]
    assert len(executed) > 10
    assert not any(task["cachingOptions"] for task in executed)


def test_a_schedule_replaces_the_one_of_its_name(api):
    identity = Server(address(api)).schedule(Cluster(), {"overrides": []}, "lungs", "nightly", "0 0 2 * * *")
    assert identity == "s-1"
    (job,) = [body for verb, path, _, body in api.seen if verb == "POST" and "recurringruns" in path]
    assert job["trigger"]["cron_schedule"]["cron"] == "0 0 2 * * *"
    assert (job["display_name"], job["max_concurrency"], job["no_catchup"]) == ("nightly", 1, True)
    assert [path for verb, path, *_ in api.seen if verb == "DELETE"] == ["/apis/v2beta1/recurringruns/old"]


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_run_that_ends_badly_is_an_error(api, state):
    api.states = ["RUNNING", state]
    with pytest.raises(CovidnetError, match=f"the run ended as {state}"):
        Server(address(api)).wait("r-1", poll_seconds=0.01)


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "--token"), (403, "no rights in this namespace"), (404, "--host")]
)
def test_a_refusal_names_the_remedy_and_not_the_token(api, status, remedy):
    api.refuse = status
    with pytest.raises(CovidnetError, match=remedy) as error:
        Server(address(api), namespace="team", token="secret").submit(Cluster(), {}, "lungs", "first")
    assert "secret" not in str(error.value)


def test_no_server_is_named(api):
    api.shutdown()
    api.server_close()
    with pytest.raises(CovidnetError, match=f"no answer from {address(api)}"):
        Server(address(api)).submit(Cluster(), {}, "lungs", "first")
