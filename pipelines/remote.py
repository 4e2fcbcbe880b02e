"""Submit the graph to a Kubeflow Pipelines server, follow the run, and have it run again and again."""

import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp
from kfp_server_api import ApiException
from kubernetes import client as kubernetes
from urllib3.exceptions import HTTPError

from covidnet.cluster import connect, pending
from covidnet.errors import CovidnetError
from pipelines.cluster import Cluster
from pipelines.covidnet3d import write

_ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
_REMEDIES = {
    401: "log in: give --token, or set KF_PIPELINES_TOKEN",
    403: "the account has no rights in this namespace; ask its owner for the role kubeflow-edit",
    404: "is --host the address of the Pipelines API, with its path?",
}


@dataclass(frozen=True, slots=True)
class Server:
    """Where to submit to.

    Args:
        host: address of the Pipelines API, e.g. ``https://kubeflow.example/pipeline``.
        namespace: profile of a multi-user Kubeflow; None for a single-user one.
        token: bearer token; None where none is asked for, or in a pod, which has its own.
        service_account: of the pods; None takes the server's default.
    """

    host: str
    namespace: str | None = None
    token: str | None = None
    service_account: str | None = None

    def submit(self, cluster: Cluster, arguments: Mapping[str, Any], experiment: str, run_name: str) -> str:
        """Compile for the cluster and start a run.

        Args:
            cluster: settings of the pods.
            arguments: of the pipeline.
            experiment: made if it isn't there.
            run_name: shown in the UI.

        Returns:
            the run's id.

        Raises:
            CovidnetError: no answer, or a refusal; says which, and what to do.
        """
        with self._client() as client, _package(cluster) as package:
            run = client.create_run_from_pipeline_package(
                package,
                dict(arguments),
                run_name,
                experiment,
                namespace=self.namespace,
                service_account=self.service_account,
            )
        return str(run.run_id)

    def schedule(self, cluster: Cluster, arguments: Mapping[str, Any], experiment: str, name: str, cron: str) -> str:
        """Run at fixed times. While neither the raw scans nor the code changed, all of it comes from the cache.

        An older schedule of the same name is replaced, so that there is one.

        Args:
            cluster: settings of the pods.
            arguments: of the pipeline.
            experiment: made if it isn't there.
            name: of the schedule.
            cron: six fields, seconds first.

        Returns:
            the schedule's id.

        Raises:
            CovidnetError: as `submit`.
        """
        with self._client() as client, _package(cluster) as package:
            identity = client.create_experiment(experiment, namespace=self.namespace).experiment_id
            known = client.list_recurring_runs(experiment_id=identity, page_size=100).recurring_runs or []
            made = client.create_recurring_run(
                identity,
                name,
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                pipeline_package_path=package,
                params=dict(arguments),
                service_account=self.service_account,
            )
            for old in known:
                if old.display_name == name:
                    client.delete_recurring_run(old.recurring_run_id)
        return str(made.recurring_run_id)

    def wait(self, run_id: str, poll_seconds: float = 10.0) -> None:
        """Follow a run to its end, printing every change of state, and why pods wait for a node.

        Raises:
            CovidnetError: the run ended, but not well.
        """
        state, waiting = None, set[str]()
        with self._client() as client:
            while state not in _ENDED:
                if state is not None:
                    time.sleep(poll_seconds)
                run = client.get_run(run_id)
                if run.state != state:
                    state = run.state
                    _say(str(state))
                if state == "RUNNING":
                    reasons = set(self._pending(run_id))
                    for reason in sorted(reasons - waiting):
                        _say(reason)
                    waiting |= reasons
        if state != "SUCCEEDED":
            reason = getattr(run.error, "message", None) or "the log of the failed task names the cause"
            raise CovidnetError(f"the run ended as {state}: {reason}")

    def _pending(self, run_id: str) -> Iterator[str]:
        """Why pods of the run wait; nothing where this machine has no access to the cluster itself."""
        try:
            pods = kubernetes.CoreV1Api(connect()).list_namespaced_pod(
                self.namespace or "kubeflow", label_selector=f"pipeline/runid={run_id}", _request_timeout=10
            )
        except (CovidnetError, kubernetes.ApiException, HTTPError):
            return
        yield from pending(pods.items)

    @contextmanager
    def _client(self) -> Iterator[kfp.Client]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # "only works with v2.0.0-beta.2 and later"
                client = kfp.Client(self.host, existing_token=self.token, namespace=self.namespace or "kubeflow")
            yield client
        except ApiException as error:
            remedy = _REMEDIES.get(error.status, "see the log of the pod ml-pipeline")
            raise CovidnetError(f"{self.host} refused: {error.status} {error.reason}; {remedy}") from None
        except HTTPError as error:
            raise CovidnetError(f"no answer from {self.host}: {type(error).__name__}; is --host right?") from None


@contextmanager
def _package(cluster: Cluster) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "covidnet3d.yaml"
        write(cluster, file)
        yield str(file)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
