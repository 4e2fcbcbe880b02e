"""Component `gate`: is the winner good enough to hand over?"""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gate(
    evaluation: dsl.Input[dsl.Artifact],
    minimum_accuracy: float,
    reason: dsl.Output[dsl.Markdown],
) -> bool:
    """placeholder"""
    import json
    from pathlib import Path

    figures = json.loads((Path(evaluation.path) / "metrics.json").read_text())
    passed = figures["accuracy"] >= minimum_accuracy
    Path(reason.path).write_text(f"{figures['accuracy']}\n")
    return passed
