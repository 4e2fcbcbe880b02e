"""Reporting checklists, filled in as far as the pipeline knows and left open where it doesn't.

CLAIM: Tejani et al., Radiology: Artificial Intelligence 6(4), 2024. TRIPOD+AI: Collins et al., BMJ 385, 2024. Items are
quoted in short; a paper's authors answer the open ones, and read the rest before they sign it.
"""

from collections.abc import Mapping
from pathlib import Path

from covidnet.evaluation.context import ReportContext

OPEN = "**OPEN** (the pipeline can't know this)"
Item = tuple[str, str, str]  # number, what is asked for, key of the fact that answers it or ""

CLAIM: tuple[Item, ...] = (
    ("1", "Identification as a study of AI methodology, specifying the technology", "technology"),
    ("2", "Structured summary of design, methods, results and conclusions", ""),
    ("3", "Scientific and clinical background, intended use and clinical role", "use"),
    ("4", "Study aims, objectives and hypotheses", ""),
    ("5", "Prospective or retrospective study", ""),
    ("6", "Study goal", "goal"),
    ("7", "Data sources", "source"),
    ("8", "Inclusion and exclusion criteria", "exclusion"),
    ("9", "Data preprocessing", "preprocessing"),
    ("10", "Selection of data subsets", "subsets"),
    ("11", "De-identification methods", ""),
    ("12", "How missing data were handled", "missing"),
    ("13", "Image acquisition protocol", ""),
    ("14", "Definition of the reference standard", ""),
    ("15", "Rationale for choosing the reference standard", ""),
    ("16", "Source of reference standard annotations", ""),
    ("17", "Annotation of test set", ""),
    ("18", "Inter- and intrarater variability of annotations", ""),
    ("19", "How data were assigned to partitions", "partitions"),
    ("20", "Level at which partitions are disjoint", "disjoint"),
    ("21", "Intended sample size", ""),
    ("22", "Detailed description of the model", "model"),
    ("23", "Software libraries, frameworks and packages", "software"),
    ("24", "Initialization of model parameters", "initialization"),
    ("25", "Details of training approach", "training"),
    ("26", "Method of selecting the final model", "selection"),
    ("27", "Ensembling techniques", "ensembling"),
    ("28", "Metrics of model performance", "measures"),
    ("29", "Statistical measures of significance and uncertainty", "statistics"),
    ("30", "Robustness or sensitivity analysis", "subgroups"),
    ("31", "Methods for explainability or interpretability", "explainability"),
    ("32", "Evaluation on internal data", "internal"),
    ("33", "Testing on external data", ""),
    ("34", "Clinical trial registration", ""),
    ("35", "Numbers of patients or examinations included and excluded", "numbers"),
    ("36", "Demographic and clinical characteristics of cases in each partition", ""),
    ("37", "Performance metrics and measures of statistical uncertainty", "performance"),
    ("38", "Estimates of diagnostic performance and their precision", "performance"),
    ("39", "Failure analysis of incorrect results", "failures"),
    ("40", "Study limitations", "limits"),
    ("41", "Implications for practice, including intended use and clinical role", "use"),
    ("42", "Reference to the full study protocol or to technical details", "details"),
    ("43", "Availability of software, trained model and data", "availability"),
    ("44", "Sources of funding and other support; role of funders", ""),
)

TRIPOD: tuple[Item, ...] = (
    ("1", "Title: development or evaluation of a prediction model, target population, outcome", ""),
    ("2", "Abstract (TRIPOD+AI for Abstracts)", ""),
    ("3a", "Healthcare context and rationale", ""),
    ("3b", "Target population and intended purpose in the care pathway, intended users", "use"),
    ("3c", "Known health inequalities between sociodemographic groups", ""),
    ("4", "Objectives: development, validation or both", "goal"),
    ("5a", "Sources of data, and their representativeness", "source"),
    ("5b", "Dates of the collected participant data", ""),
    ("6a", "Study setting: number and location of centres", ""),
    ("6b", "Eligibility criteria", "exclusion"),
    ("6c", "Treatments received, and how they were handled", ""),
    ("7", "Data preprocessing and quality checking", "preprocessing"),
    ("8a", "Outcome, time horizon, how and when assessed", ""),
    ("8b", "Qualifications of outcome assessors", ""),
    ("8c", "Blinding of the outcome assessment", ""),
    ("9a", "Choice of initial predictors", "predictors"),
    ("9b", "Definition of all predictors", "predictors"),
    ("9c", "Qualifications of predictor assessors", ""),
    ("10", "How the study size was arrived at", ""),
    ("11", "How missing data were handled", "missing"),
    ("12a", "How data were used: partitioning for development and evaluation", "partitions"),
    ("12b", "How predictors were handled in the analyses", "preprocessing"),
    ("12c", "Type of model, all building steps, tuning and internal validation", "training"),
    ("12d", "Heterogeneity between clusters (hospitals, countries)", "subgroups"),
    ("12e", "Measures and plots of performance; comparison of models", "measures"),
    ("12f", "Model updating (recalibration)", "calibration"),
    ("12g", "How predictions were calculated in evaluation", "internal"),
    ("13", "Class imbalance methods", "imbalance"),
    ("14", "Approaches to fairness", ""),
    ("15", "Output of the model, and thresholds", "output"),
    ("16", "Differences between development and evaluation data", "disjoint"),
    ("17", "Ethical approval", ""),
    ("18a", "Funding", ""),
    ("18b", "Conflicts of interest", ""),
    ("18c", "Where the protocol can be accessed", ""),
    ("18d", "Registration", ""),
    ("18e", "Availability of the study data", ""),
    ("18f", "Availability of the analytical code", "availability"),
    ("19", "Patient and public involvement", ""),
    ("20a", "Flow of participants", "numbers"),
    ("20b", "Characteristics overall and per setting", ""),
    ("20c", "Comparison of development and evaluation data in key variables", ""),
    ("21", "Participants and outcome events in each analysis", "numbers"),
    ("22", "Details of the full model, so that it can be used by others", "details"),
    ("23a", "Performance with confidence intervals, for subgroups too", "performance"),
    ("23b", "Results on heterogeneity between clusters", "subgroups"),
    ("24", "Results of model updating", "calibration"),
    ("25", "Overall interpretation", ""),
    ("26", "Limitations", "limits"),
    ("27a", "How poor or unavailable input is assessed and handled when the model is used", "input"),
    ("27b", "Whether users need to interact, and their expertise", ""),
    ("27c", "Next steps for future research", ""),
)


def write(folder: Path, context: ReportContext) -> None:
    """Write `CLAIM.md` and `TRIPOD-AI.md` into a folder."""
    known = facts(context)
    for name, title, items in (("CLAIM.md", "CLAIM 2024", CLAIM), ("TRIPOD-AI.md", "TRIPOD+AI", TRIPOD)):
        (folder / name).write_text(_checklist(title, items, known))


def facts(context: ReportContext) -> dict[str, str]:
    """What the pipeline can say, by key; keys that it can't answer are absent."""
    winner = next(c for c in context.candidates if c.name == context.winner)
    parameters = context.provenance.get("parameters", {})
    level = f"{context.confidence:.0%}"
    known = {
        "technology": f"deep learning: {winner.name}, a 3D convolutional network for classification of chest CT",
        "use": "research only; no output is a diagnosis. A clinical role is not claimed",
        "goal": "development and internal evaluation of a classifier "
        f"({', '.join(winner.predictions.classes)}) and comparison with {len(context.candidates) - 1} other models",
        "missing": "scans that could not be read are left out with a reason (`rejected.csv`); labels are never imputed",
        "partitions": "at random per class, all scans of a patient together, unless the labels file gives the split",
        "model": f"{winner.name}: {winner.parameters:,} parameters ({winner.size_mib:.2f} MiB), {winner.macs:.3g} "
        "multiply-accumulates per scan; layers in `genotype.json` or `model.json`",
        "initialization": "random; no pretrained weights",
        "selection": f"by validation accuracy alone: {context.reason}",
        "ensembling": "none",
        "measures": "accuracy, balanced accuracy, precision, sensitivity, specificity, F1, ROC AUC, PR AUC, Cohen's kappa, "
        "sensitivity at 90 and 95 % specificity, calibration error, Brier score, decision curve, risk and coverage",
        "statistics": f"{level} percentile intervals of a bootstrap over patients; paired bootstrap and McNemar tests, "
        "Holm's correction over all comparisons",
        "explainability": "class activation maps, exact for this head; Grad-CAM for a baseline; randomised-weights check",
        "internal": f"{len(winner.predictions)} test scans, read with {len(context.uses)} set(s) of models in all",
        "performance": f"accuracy {_figure(context, 'accuracy')}; per class and model in `report.html` and `results.json`",
        "failures": "examples of wrong answers with their maps in `report.html`",
        "limits": "one split of one dataset; no external test; see the report's section on limits",
        "details": "`results.json`, `provenance.json` and the exported bundle",
        "availability": f"open source (Apache-2.0), revision {context.provenance.get('git_revision', 'unknown')}",
        "predictors": "the voxels of the scan, and nothing else",
        "calibration": f"temperature scaling fitted on validation, T = {winner.temperature:.2f}",
        "imbalance": "none: classes are not weighted or resampled",
        "output": "a probability per class; the label is the class with the largest; no other threshold is set",
        "input": "unreadable scans are refused with a reason; scans unlike the training data are flagged",
    }
    if context.subgroups:
        columns = dict.fromkeys(group.column for group in context.subgroups)
        known["subgroups"] = f"by {', '.join(columns)}: see the report's table"
    if context.audit is not None:
        known["disjoint"] = "patients (audited); " + ("; ".join(context.audit) or "the audit found nothing")
    if context.dataset:
        shown = context.dataset.facts
        counts = "; ".join(
            f"{split}: {sum(scans.values())} scans of {sum(context.dataset.patients[split].values())} patients"
            for split, scans in context.dataset.scans.items()
        )
        known |= {
            "numbers": f"{counts}; left out on reading: {sum(context.dataset.rejected.values())} scans",
            "exclusion": "scans that are unreadable or no axial chest CT: "
            + ("; ".join(f"{n} x {why}" for why, n in context.dataset.rejected.items()) or "none was left out"),
            "subsets": "the whole source",
        }
        known |= {"source": shown["source"]} if "source" in shown else {}
        if "volume" in shown and "window" in shown:
            known["preprocessing"] = (
                f"cropped to the lungs or body, resized to {shown['volume']}, window {shown['window']}"
            )
    if "versions" in context.provenance:
        versions: Mapping[str, str] = context.provenance["versions"]
        known["software"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    if training := parameters.get("training"):
        settings = ", ".join(f"{name} {value}" for name, value in training.items())
        known["training"] = f"AdamW, one-cycle rate, augmentation; {settings}; seed {parameters.get('seed')}"
    return known


def _figure(context: ReportContext, name: str) -> str:
    winner = next(c for c in context.candidates if c.name == context.winner)
    interval = winner.intervals.get(name)
    text = f"{winner.test[name]:.3f}"
    return (
        f"{text} ({interval[0]:.3f} to {interval[1]:.3f})" if interval else f"{text} (too few patients for an interval)"
    )


def _checklist(title: str, items: tuple[Item, ...], known: Mapping[str, str]) -> str:
    answered = sum(key in known for _, _, key in items)
    lines = [
        f"# {title}",
        "",
        f"{answered} of {len(items)} items are answered from what the pipeline recorded; the others are left open for the "
        "authors. Items are quoted in short.",
        "",
        "| item | asks for | answer |",
        "|---|---|---|",
    ]
    lines += [f"| {number} | {text} | {known.get(key, OPEN).replace('|', '/')} |" for number, text, key in items]
    return "\n".join(lines) + "\n"
