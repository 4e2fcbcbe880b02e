"""Component `audit`: no training on a dataset that leaks."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def audit(
    dataset: dsl.Input[dsl.Dataset], metrics: dsl.Output[dsl.Metrics], findings: dsl.Output[dsl.Markdown]
) -> None:
    """Look for leaks: patients in two splits, one scan twice, a class that a split lacks. A leak ends the run.

    Args:
        dataset: From ingest.
        metrics: Scans and patients per split.
        findings: What was found, in sentences.
    """
    from pathlib import Path

    from covidnet import stages

    found = stages.audit(Path(dataset.path))
    for split, patients in found.patients.items():
        metrics.log_metric(f"patients_{split}", patients)
        metrics.log_metric(f"scans_{split}", sum(found.scans[split].values()))
    lines = [f"- {'**leak**' if finding.leak else 'note'}: {finding.message}" for finding in found.findings]
    Path(findings.path).write_text("\n".join(lines or ["No leak found."]) + "\n")
    if found.leaks:
        raise ValueError("the dataset leaks, so test figures would not be worth anything:\n" + "\n".join(lines))
