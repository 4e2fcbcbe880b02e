"""Component `gate`: is the winner good enough to hand over?"""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gate(
    evaluation: dsl.Input[dsl.Artifact],
    winner: dsl.Input[dsl.Model],
    baselines: dsl.Input[list[dsl.Model]],
    at_least: dict,  # type: ignore[type-arg]  # KFP knows no dict[str, float]
    at_most: dict,  # type: ignore[type-arg]
    margin: float,
    reason: dsl.Output[dsl.Markdown],
) -> bool:
    """Decide whether the winner is exported, and say why. A gate that isn't met ends the run well, without a bundle.

    Args:
        evaluation: From evaluate.
        winner: From evaluate.
        baselines: From all baselines.
        at_least: Figure of the winner on the test split (results.json: metrics, calibration) to its lower bound.
        at_most: The same to its upper bound.
        margin: The winner's validation accuracy less that of the best baseline must be at least this.
        reason: Every condition, whether it is met, and the figures.
    """
    import json
    from pathlib import Path

    def validation_accuracy(model: dsl.Model) -> float:
        return float(json.loads((Path(model.path) / "metrics.json").read_text())["validation_accuracy"])

    results = json.loads((Path(evaluation.path) / "results.json").read_text())
    test = {**results["metrics"][results["winner"]["name"]], **results["calibration"]}
    ahead = validation_accuracy(winner) - max(map(validation_accuracy, baselines))
    checks = [(ahead >= margin, f"validation accuracy {ahead:+.3f} beside the best baseline (at least {margin:+.3f})")]
    for name, bound in at_least.items():
        found = test.get(name)  # null: undefined for this split
        checks.append((found is not None and found >= bound, f"{name} {found} on the test split (at least {bound})"))
    for name, bound in at_most.items():
        found = test.get(name)
        checks.append((found is not None and found <= bound, f"{name} {found} on the test split (at most {bound})"))
    passed = all(met for met, _ in checks)
    verdict = "Gate passed: the winner is exported." if passed else "Gate not passed: no bundle is exported."
    lines = [f"- {'met' if met else '**not met**'}: {text}" for met, text in checks]
    text = "\n".join([verdict, "", *lines]) + "\n"
    print(text)
    Path(reason.path).write_text(text)
    return passed
