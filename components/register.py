"""Component `register`: the bundle in Kubeflow's Model Registry."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    params: str,
    data_revision: str,
    code: str,
    run_id: str,
    run_name: str,
    evaluation: dsl.Input[dsl.Artifact],
    bundle: dsl.Input[dsl.Model],
    summary: dsl.Output[dsl.Markdown],
) -> None:
    """Register the bundle with its figures, its data revision and where it comes from.

    Args:
        params: Deployment, as JSON.
        data_revision: Digest of the raw scans.
        code: Digest of the code.
        run_id: Of this run.
        run_name: Of this run.
        evaluation: From evaluate.
        bundle: From export.
        summary: Name and version in the registry.
    """
    import json
    from pathlib import Path

    from covidnet import config, stages

    lineage, run = {"data_revision": data_revision, "code": code}, {"id": run_id, "name": run_name}
    settings, uri = config.parse(json.loads(params)), bundle.uri.replace("minio://", "s3://", 1) + "/bundle"
    done = stages.register(settings, Path(evaluation.path), Path(bundle.path) / "bundle", uri, lineage, run)
    print(done)
    Path(summary.path).write_text(done + "\n")
