"""Component `ingest_shard`: a part of the raw scans, decoded and prepared."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest_shard(
    params: str,
    code: str,
    data_revision: str,
    number: str,
    shard: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """Read every n-th of the raw scans: decode, orient, crop to the lungs, window, resize.

    Args:
        params: Configuration, as JSON.
        code: Digest of the code: the cache answers for equal code only.
        data_revision: Digest of the raw scans: the cache answers for equal scans only.
        number: Which part, I/N.
        shard: Prepared scans, and the reason for all that was left out.
        metrics: Scans read and rejected.
    """
    import json
    from pathlib import Path

    from covidnet import config, stages

    part, parts = (int(text) for text in number.split("/"))
    out = Path(shard.path)
    found = stages.ingest_shard(config.parse(json.loads(params)), out, (part, parts))
    (stages.shards_of(out) / f"{part}-of-{parts}").rename(out)
    shard.metadata["number"] = f"{part}-of-{parts}"
    for name, value in found.items():
        metrics.log_metric(name, value)
