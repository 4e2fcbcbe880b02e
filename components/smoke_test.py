"""Component `smoke_test`: does what was deployed answer as its bundle does?"""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def smoke_test(
    params: str,
    dataset: dsl.Input[dsl.Dataset],
    bundle: dsl.Input[dsl.Model],
    findings: dsl.Output[dsl.Markdown],
) -> bool:
    """Send scans to the canary and compare its answers with those of the bundle.

    Args:
        params: Deployment, as JSON.
        dataset: From ingest; validation scans are sent.
        bundle: From export.
        findings: Every check, and whether it is met.
    """
    import json
    from pathlib import Path

    from covidnet import config, stages

    found = stages.smoke_test(config.parse(json.loads(params)), Path(dataset.path), Path(bundle.path) / "bundle")
    text = found.markdown("Smoke test passed.", "Smoke test failed: the canary is taken back.")
    print(text)
    Path(findings.path).write_text(text)
    return found.passed
