"""Component `report`: how the run ended, whatever happened before."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(status: dsl.PipelineTaskFinalStatus, summary: dsl.Output[dsl.Markdown]) -> None:
    """Say how the run ended; runs last, also after a failure.

    Args:
        status: Filled in by Kubeflow.
        summary: The same in a sentence or two.
    """
    from pathlib import Path

    text = f"Run {status.state}."
    if status.error_message:
        text += f" {status.error_message} The log of the failed task names the cause and the remedy."
    else:
        text += " Whether a bundle was exported, and why, is in `reason` of the gate."
    print(text)
    Path(summary.path).write_text(text + "\n")
