import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

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
        if "/experiments" in self.path:
            return self.answer({})
        return self.answer({"run_id": "r-1", "state": self.server.states.pop(0)})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.command, self.path.split("?")[0], self.headers.get("Authorization"), body))
        return self.answer({"experiment_id": "e-1", "run_id": "r-1"})

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
    server.seen, server.states, server.refuse = [], [], None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(api):
    return f"http://127.0.0.1:{api.server_port}"


def test_submit_makes_the_experiment_and_starts_a_run_of_the_compiled_graph(api, capsys):
    arguments = {"params": "seed: 1\n", "overrides": ["search.steps=9"]}
    run_id = Server(address(api), token="secret").submit(Cluster(gpus=3), arguments, "lungs", "first")
    assert run_id == "r-1"
    posts = {path: (authorization, body) for verb, path, authorization, body in api.seen if verb == "POST"}
    assert posts["/apis/v2beta1/experiments"][1]["display_name"] == "lungs"
    authorization, run = posts["/apis/v2beta1/runs"]
    assert authorization == "Bearer secret"
    assert (run["display_name"], run["experiment_id"]) == ("first", "e-1")
    assert run["runtime_config"]["parameters"] == arguments
    spec = run["pipeline_spec"]["pipeline_spec"]
    search = spec["deploymentSpec"]["executors"]["exec-search"]["container"]
    assert search["resources"]["accelerator"]["resourceCount"] == "3"
    assert (
        "exec-search" in run["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    )
    assert f"{address(api)}/#/runs/details/r-1" in capsys.readouterr().out


def test_wait_prints_each_change_of_state_and_ends_with_the_run(api, capsys):
    api.states = ["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"]
    Server(address(api)).wait("r-1", poll_seconds=0.01)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["PENDING", "RUNNING", "SUCCEEDED"]


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
