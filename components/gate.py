"""Component `gate`: is the winner good enough to hand over?"""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gate(
    params: str,
    run_id: str,
    dataset: dsl.Input[dsl.Dataset],
    evaluation: dsl.Input[dsl.Artifact],
    winner: dsl.Input[dsl.Model],
    baselines: dsl.Input[list[dsl.Model]],
    reason: dsl.Output[dsl.Markdown],
) -> bool:
    """Decide whether the winner is exported and deployed, and say why. A gate that isn't met ends the run well.

    Args:
        params: Gate and deployment, as JSON.
        run_id: Of this run.
        dataset: From ingest.
        evaluation: From evaluate.
        winner: From evaluate.
        baselines: From all baselines.
        reason: Every condition, whether it is met, and the figures.
    """
    import json
    from pathlib import Path

    from covidnet import config, stages
    from covidnet.deploy import verdict

    others = [Path(model.path) for model in baselines]
    settings = config.parse(json.loads(params))
    found = stages.gate(settings, Path(dataset.path), Path(evaluation.path), Path(winner.path), others)
    text = found.markdown("Gate passed: the winner is exported.", "Gate not passed: no bundle is exported.")
    print(text)
    Path(reason.path).write_text(text)
    verdict.keep(run_id, text)
    return found.passed
