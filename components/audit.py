"""Component `audit`: no training on a dataset that leaks."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def audit(
    params: str,
    dataset: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    findings: dsl.Output[dsl.Markdown],
) -> None:
    """Look for leaks: patients in two splits, one scan twice. A leak that `data.allow` doesn't name ends the run.

    Args:
        params: Configuration, as JSON.
        dataset: From ingest.
        metrics: Scans and patients per split.
        findings: What was found, in sentences.
    """
    import json
    from pathlib import Path

    from covidnet import config, stages

    found = stages.audit(Path(dataset.path))
    for split, patients in found.patients.items():
        metrics.log_metric(f"patients_{split}", patients)
        metrics.log_metric(f"scans_{split}", sum(found.scans[split].values()))
    allowed = config.parse(json.loads(params)).data.allow
    kinds = {True: "**leak**", False: "note"}
    lines = [
        f"- {kinds[finding.leak]}{', allowed' if finding.kind in allowed else ''}: {finding.message}"
        for finding in found.findings
    ]
    Path(findings.path).write_text("\n".join(lines or ["No leak found."]) + "\n")
    if found.stopping(allowed):
        raise ValueError("the dataset leaks, so test figures would not be worth anything:\n" + "\n".join(lines))
