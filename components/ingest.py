"""Component `ingest`: raw scans to a packed dataset."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    params: str,
    code: str,
    data_revision: str,
    dataset: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    contact_sheet: dsl.Output[dsl.HTML],
) -> None:
    """Raw scans to one packed dataset: decode, orient, crop to the lungs, window, resize, split by patient.

    Args:
        params: Configuration, as JSON.
        code: Digest of the code: the cache answers for equal code only.
        data_revision: Digest of the raw scans: the cache answers for equal scans only.
        dataset: scans.npy, manifest.csv, and rejected.csv with the reason for all that was left out.
        metrics: Scans per split and class, rejected share.
        contact_sheet: Middle slices of some scans of each class.
    """
    import base64
    import json
    from pathlib import Path

    from covidnet import config, stages

    found = stages.ingest(config.parse(json.loads(params)), Path(dataset.path))
    dataset.metadata.update({"folder": "dataset", "data_revision": data_revision})
    for name, value in found.items():
        if isinstance(value, (int, float)):
            metrics.log_metric(name, value)
    picture = base64.b64encode((Path(dataset.path) / "contact_sheet.png").read_bytes()).decode()
    Path(contact_sheet.path).write_text(f'<img alt="contact sheet" src="data:image/png;base64,{picture}">')
