"""Component `report`: how the run ended, whatever happened before."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(run_id: str, status: dsl.PipelineTaskFinalStatus, summary: dsl.Output[dsl.Markdown]) -> None:
    """Say how the run ended, and what the gate said; runs last, also after a failure.

    Args:
        run_id: Of this run.
        status: Filled in by Kubeflow.
        summary: How the run ended, and the gate's reasons.
    """
    from pathlib import Path

    from covidnet.deploy import verdict

    text = verdict.ending(run_id, status.state, status.error_message)
    print(text)
    Path(summary.path).write_text(text)
