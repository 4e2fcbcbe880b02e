"""Component `ingest`: the shards of the raw scans as one packed dataset."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    params: str,
    code: str,
    data_revision: str,
    shards: dsl.Input[list[dsl.Dataset]],
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    contact_sheet: dsl.Output[dsl.HTML],
) -> None:
    """Merge the shards to one packed dataset, split by patient; the same bytes for any number of shards.

    Args:
        params: Configuration, as JSON.
        code: Digest of the code: the cache answers for equal code only.
        data_revision: Digest of the raw scans: the cache answers for equal scans only.
        shards: From all ingest_shard.
        dataset: scans.npy, manifest.csv, and rejected.csv with the reason for all that was left out.
        metrics: Scans per split and class, rejected share.
        contact_sheet: Middle slices of some scans of each class.
    """
    import base64
    import json
    from pathlib import Path

    from covidnet import config, stages

    out = Path(dataset.path)
    stages.shards_of(out).mkdir(parents=True)
    for shard in shards:  # the stage finds them beside the dataset
        (stages.shards_of(out) / shard.metadata["number"]).symlink_to(shard.path, target_is_directory=True)
    found = stages.ingest(config.parse(json.loads(params)), out, merge=True)
    dataset.metadata.update({"folder": "dataset", "data_revision": data_revision})
    for name, value in found.items():
        if isinstance(value, (int, float)):
            metrics.log_metric(name, value)
    picture = base64.b64encode((out / "contact_sheet.png").read_bytes()).decode()
    Path(contact_sheet.path).write_text(f'<img alt="contact sheet" src="data:image/png;base64,{picture}">')
