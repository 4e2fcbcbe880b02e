"""Run the graph on this machine: each task a process, results laid out as `dvc repro` leaves them."""

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kfp import local

from covidnet.errors import CovidnetError
from pipelines.cluster import Cluster
from pipelines.covidnet3d import build


def run(arguments: Mapping[str, Any], out: Path) -> str:
    """Run with this environment's own Python, and leave what the stages wrote in ``out``, also after a failure.

    Args:
        arguments: of the pipeline.
        out: gets ``dataset``, ``baseline/<name>``, ``search/<variant>``, ... as `results` of `dvc repro` has them.

    Returns:
        the gate's verdict and its reason.

    Raises:
        CovidnetError: a task failed; its log is on stdout.
    """
    out.mkdir(parents=True, exist_ok=True)
    graph = build(Cluster(retries=0))
    with tempfile.TemporaryDirectory(prefix=".run-", dir=out) as root:
        # kfp deletes its workspace_root after the run: only ever a folder made for it
        runner = local.SubprocessRunner(use_venv=False)
        local.init(runner, pipeline_root=root, workspace_root=tempfile.mkdtemp(dir=root))
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
        return next(Path(artifact["uri"]).read_text() for artifact in artifacts if artifact["name"] == "reason")


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
