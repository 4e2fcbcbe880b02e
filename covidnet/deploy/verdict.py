"""The gate's words on their way to the run's last task, which is on the first page of the run.

Kubeflow Pipelines 2.17 hands an exit task no output of the tasks before it, so they go by the workspace, where there is one.
"""

import os
from pathlib import Path

from covidnet.folder import WORKSPACE

ELSEWHERE = (
    "Whether a bundle was exported, and why, is in `reason` of the gate: open the sub-DAG `run`, in it `stages`, in it the "
    "artifact `reason`, tab Visualization."
)


def keep(run: str, text: str) -> None:
    """Leave the gate's words for the run's last task."""
    if file := _file(run):
        file.write_text(text)


def take(run: str) -> str | None:
    """The gate's words, once; None if the run didn't reach its gate, or has no workspace."""
    file = _file(run)
    if file is None or not file.is_file():
        return None
    text = file.read_text()
    file.unlink()
    return text


def ending(run: str, state: str, error: str | None) -> str:
    """How a run ended, as Markdown.

    Args:
        run: its id.
        state: of the tasks before, as Kubeflow tells it.
        error: of the task that failed.
    """
    # loops don't tell the server that they ended (kubeflow/pipelines 13321), so it may say RUNNING to the last task
    lines = ["All tasks have ended." if state == "RUNNING" else f"Run {state}."]
    if error:
        lines.append(f"{error} The log of the failed task names the cause and the remedy.")
    told = take(run)
    if told or not error:
        lines += ["", told or ELSEWHERE]
    return "\n".join(lines) + "\n"


def _file(run: str) -> Path | None:
    workspace = os.environ.get(WORKSPACE)
    return Path(workspace) / f"verdict-{run}.md" if workspace else None
