"""Component `release`: the traffic in steps, or the way back."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def release(params: str, dataset: dsl.Input[dsl.Dataset], passed: bool, findings: dsl.Output[dsl.Markdown]) -> bool:
    """Shift the traffic to the canary in steps, watching errors and latency; promote it, or roll back.

    Args:
        params: Deployment, as JSON.
        dataset: From ingest; validation scans are sent meanwhile.
        passed: Verdict of the smoke test; false rolls back at once.
        findings: What was seen at every step.
    """
    import json
    from pathlib import Path

    from covidnet import config, stages

    found = stages.release(config.parse(json.loads(params)), Path(dataset.path), passed)
    text = found.markdown("Released.", "Rolled back: the model before serves on.")
    print(text)
    Path(findings.path).write_text(text)
    return found.passed
