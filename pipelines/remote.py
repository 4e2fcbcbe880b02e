"""Submit the graph to a Kubeflow Pipelines server, and follow the run."""

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
from urllib3.exceptions import HTTPError

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
    """

    host: str
    namespace: str | None = None
    token: str | None = None

    def submit(self, cluster: Cluster, arguments: Mapping[str, Any], experiment: str, run_name: str) -> str:
        """Compile for the cluster and start a run.

        Returns:
            the run's id.

        Raises:
            CovidnetError: no answer, or a refusal; says which, and what to do.
        """
        with tempfile.TemporaryDirectory() as folder, self._client() as client:
            package = Path(folder) / "covidnet3d.yaml"
            write(cluster, package)
            run = client.create_run_from_pipeline_package(
                str(package), dict(arguments), run_name, experiment, namespace=self.namespace
            )
        return str(run.run_id)

    def wait(self, run_id: str, poll_seconds: float = 10.0) -> None:
        """Follow a run to its end, printing every change of state.

        Raises:
            CovidnetError: the run ended, but not well.
        """
        state = None
        with self._client() as client:
            while state not in _ENDED:
                if state is not None:
                    time.sleep(poll_seconds)
                run = client.get_run(run_id)
                if run.state != state:
                    state = run.state
                    print(f"{time.strftime('%H:%M:%S')} {state}", flush=True)
        if state != "SUCCEEDED":
            reason = getattr(run.error, "message", None) or "the log of the failed task names the cause"
            raise CovidnetError(f"the run ended as {state}: {reason}")

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
