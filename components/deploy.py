"""Component `deploy`: the bundle beside the served model, without traffic."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(params: str, bundle: dsl.Input[dsl.Model], summary: dsl.Output[dsl.Markdown]) -> None:
    """Load the bundle in the InferenceService beside the stable model, without traffic, and wait until it is ready.

    Args:
        params: Deployment, as JSON.
        bundle: From export.
        summary: What was done, in a sentence.
    """
    import json
    from pathlib import Path

    from covidnet import config, stages

    # the storage initializer reads MinIO by the protocol that it speaks
    uri = bundle.uri.replace("minio://", "s3://", 1) + "/bundle"
    done = stages.deploy(config.parse(json.loads(params)), Path(bundle.path) / "bundle", uri)
    print(done)
    Path(summary.path).write_text(done + "\n")
