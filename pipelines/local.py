"""Run the graph on this machine: each task a process or a container, results laid out as `dvc repro` leaves them.

What tasks do lies under ``<out>/.workspace`` by the key of its inputs until the run has ended well: a run that was killed
and is started again finds finished stages there, and checkpoints of the one that was under way.
"""

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from kfp import local

from covidnet.config import Data
from covidnet.data import versions
from covidnet.errors import CovidnetError
from covidnet.folder import WORKSPACE
from pipelines.cluster import AWS, Cluster
from pipelines.covidnet3d import build

NO_CLUSTER = ("deploy.service=null", "deploy.registry=null")


class Runner(StrEnum):
    """Ways to run on this machine."""

    subprocess = "subprocess"
    docker = "docker"


def run(arguments: Mapping[str, Any], out: Path, runner: Runner = Runner.subprocess, data: Data | None = None) -> str:
    """Run, and leave what the stages wrote in ``out``, also after a failure.

    Args:
        arguments: of the pipeline.
        out: gets ``dataset``, ``baseline/<name>``, ``search/<variant>``, ... as `results` of `dvc repro` has them.
        runner: processes of this Python, or containers of the image that COVIDNET_IMAGE names.
        data: where the raw scans are, for containers to see at the same path, or to fetch.

    Returns:
        the gate's verdict and its reason.

    Raises:
        CovidnetError: a task failed; its log is on stdout. Or there is no Docker Engine.
    """
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".run-*"):
        shutil.rmtree(leftover)
    workspace = out / ".workspace"
    workspace.mkdir(exist_ok=True)
    os.environ[WORKSPACE] = str(workspace)
    arguments = {**arguments, "overrides": [*arguments.get("overrides", []), *NO_CLUSTER]}
    graph = build(Cluster(retries=0, at_once=1))  # a task has all cores to itself
    with tempfile.TemporaryDirectory(prefix=".run-", dir=out) as root:
        # kfp deletes its workspace_root after the run: only ever a folder made for it
        local.init(
            _runner(runner, workspace, data or Data()), pipeline_root=root, workspace_root=tempfile.mkdtemp(dir=root)
        )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Task .* have no effect in the current local runner")
                warnings.filterwarnings("ignore", message="You may be attemping to run a task that uses custom")
                graph(**arguments)
        except RuntimeError as error:
            text = re.sub(r"\x1b\[\d+m", "", str(error))
            raise CovidnetError(f"{text} Its log above names the cause. Finished stages are in {out}") from None
        finally:
            artifacts = list(_artifacts(Path(root)))
            for artifact in artifacts:
                if "folder" in artifact["metadata"]:
                    _move(Path(artifact["uri"]), out / artifact["metadata"]["folder"])
        reason = next(Path(artifact["uri"]).read_text() for artifact in artifacts if artifact["name"] == "reason")
    shutil.rmtree(workspace)
    return reason


def _runner(runner: Runner, workspace: Path, data: Data) -> Any:
    if runner == Runner.subprocess:
        return local.SubprocessRunner(use_venv=False)
    import docker

    try:
        docker.from_env().ping()
    except docker.errors.DockerException:
        raise CovidnetError("--runner docker: no Docker Engine answers; start it, or set DOCKER_HOST") from None
    mounts = [docker.types.Mount(str(workspace), str(workspace), "bind")]
    versioned = data.revision is not None
    raw = versions.repository_of(data) if versioned else data.root
    if raw is not None:
        mounts.append(docker.types.Mount(str(Path(raw).absolute()), str(Path(raw).absolute()), "bind", read_only=True))
    credentials = {name: os.environ[name] for name in AWS if versioned and name in os.environ}
    return local.DockerRunner(
        user=f"{os.getuid()}:{os.getgid()}",  # so that the results are the caller's
        environment={WORKSPACE: str(workspace), "HOME": "/tmp", **credentials},
        mounts=mounts,
        network_mode="host" if versioned else "none",  # no stage needs one but to fetch raw scans
        init=True,  # so that a stop reaches the task
    )


def _artifacts(root: Path) -> Iterator[dict[str, Any]]:
    """All output artifacts of finished tasks: ``name``, ``uri``, ``metadata``."""
    for file in sorted(root.rglob("executor_output.json")):
        for output in json.loads(file.read_text()).get("artifacts", {}).values():
            yield from output["artifacts"]


def _move(source: Path, target: Path) -> None:
    """In place of what an earlier run left there."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
