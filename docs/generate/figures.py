"""metrics.md: every figure that a report, a gate or `dvc metrics` may name, as the code computes them."""

from covidnet.evaluation import metrics
from covidnet.evaluation.run import REPORTED
from docs.generate.markdown import NOTE, explained, table

_CLASSES, _POSITIVE = ("A", "B", "C"), "A"
_FIGURES = {
    "accuracy": "share of scans whose most probable class is the true one",
    "balanced_accuracy": "mean sensitivity over the classes",
    "kappa": "Cohen's: agreement beyond what the classes' shares give by chance",
    "precision": "of the scans called a class, the share that has it",
    "sensitivity": "of the scans that have a class, the share called so",
    "specificity": "of the scans that don't have a class, the share not called so",
    "f1": "harmonic mean of precision and sensitivity",
    "roc_auc": "probability that a scan of the class gets a higher probability for it than one without; ties count half",
    "pr_auc": "average precision over steps in recall, not interpolated",
    "sensitivity_at_90_specificity": "best sensitivity to the positive class at a specificity of 90 % or more",
    "sensitivity_at_95_specificity": "the same at 95 %",
}
_CALIBRATION = (
    ("`temperature`", "logits are divided by it; fitted on validation by likelihood"),
    ("`ece_before`, `ece_after`", "expected calibration error before and after, in bins of equally many scans"),
    ("`brier_before`, `brier_after`", "squared distance of probabilities and truth, summed over classes"),
    ("`aurc`", "area under risk over coverage: error rate when the least certain scans are left to people"),
    ("`foreign.false_alarms`", "share of test scans that the out-of-distribution flag flags"),
    ("`cam.hit_rate`", "share of scans with known lesions whose map peaks inside one"),
    ("`cam.centre_hit_rate`", "the same for a map that always peaks in the middle"),
)


def page() -> str:
    """The whole page."""
    found = metrics.classification([0, 1, 2], [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], _CLASSES, _POSITIVE)
    variants = {f"{name}_{part}" for name in found for part in ("macro", *_CLASSES)}
    per_class = sorted({name.rpartition("_")[0] for name in found if name in variants} & set(found))
    reported = ", ".join(f"`MODEL.{name}`" for name in REPORTED)
    return "\n".join(
        [
            "# Figures\n",
            NOTE,
            "`results.json` of `evaluate` has them per model under `metrics`, intervals under `intervals`. A figure that is "
            "undefined for a split (sensitivity to a class that doesn't occur) is empty, never 0. "
            "[Evidence](../evidence.md) says how intervals and comparisons are made.\n",
            table(("figure", "what"), explained((name for name in found if name not in variants), _FIGURES)),
            f"With two classes {', '.join(f'`{name}`' for name in per_class)} are those of the positive class "
            "(`evaluate.positive`), with more their mean over classes, each against the rest. Each is there as `NAME_macro` "
            "and `NAME_CLASS`, too. `gate.at_least` and `gate.at_most` take any of these names, and those below "
            "without a dot.\n",
            "## Of the winner\n",
            table(("figure", "what"), _CALIBRATION),
            f"`metrics.json`, which `dvc metrics show` reads, has {reported} of every model and the figures of "
            f"the winner.\n",
            "What the running endpoint measures is in [Monitoring](../monitoring.md#metrics).\n",
        ]
    )
