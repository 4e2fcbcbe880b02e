"""Verbs on scans and datasets: inspect, ingest, audit."""

import json
from pathlib import Path
from typing import Annotated

import typer

from covidnet.cli.options import Json, Out, Override, Params, app, configuration, example, say, shard_of
from covidnet.errors import UsageError


@app.command(epilog=example("covidnet inspect scan.nii.gz", "covidnet inspect series_folder/ --json"))
def inspect(
    path: Annotated[Path, typer.Argument(help="DICOM series folder, NIfTI file, or folder of slices.")],
    as_json: Json = False,
) -> None:
    """Decode one scan and print what it is."""
    from covidnet.data.sources import facts, read_scan

    found = facts(read_scan(path))
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<14}{'; '.join(value) or 'none' if name == 'warnings' else value}")


@app.command(
    epilog=example(
        "covidnet ingest",
        "covidnet ingest -S data.source=nifti -S data.root=/data/mosmed",
        "covidnet ingest --shard 1/4    # on four machines, 1/4 to 4/4; then once:",
        "covidnet ingest --merge",
        "covidnet ingest --where NCP/3f2a9c81b0de-000    # of rejected.csv",
    )
)
def ingest(
    params: Params = None,
    overrides: Override = None,
    out: Out = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Read only every N-th scan, into OUT.shards; then --merge.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Make the dataset from its shards.")] = False,
    where: Annotated[
        str | None, typer.Option(metavar="ID", help="Say where a scan of rejected.csv or manifest.csv lies, and stop.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Source to packed dataset: decode, orient, crop to the lungs, window, resize, split by patient."""
    from covidnet import stages

    config = configuration(params, overrides)
    target = out or stages.dataset_of(config)
    if where is not None:
        from covidnet.data.ingest import path_of

        path = str(path_of(config, where))
        print(json.dumps({"path": path}) if as_json else path)
    elif shard is not None:
        numbers = shard_of(shard)
        say(stages.ingest_shard(config, target, numbers), stages.shards_of(target), as_json)
    else:
        say(stages.ingest(config, target, merge=merge), target, as_json)


@app.command(
    epilog=example(
        "covidnet audit results/dataset --html audit.html",
        "covidnet audit . --splits train.json validation.json test.json",
    )
)
def audit(
    path: Annotated[Path, typer.Argument(help="Packed dataset, or the folder that the split files are relative to.")],
    splits: Annotated[
        bool,
        typer.Option(
            "--splits", help="Audit split files in the authors' JSON form: train validation test, in that order."
        ),
    ] = False,
    files: Annotated[list[Path] | None, typer.Argument(help="The split files.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the findings as a page, with pictures.")] = None,
    as_json: Json = False,
) -> None:
    """Look for leaks: patients in two splits, a split in another, duplicate and near-duplicate scans. Exit 1 on a leak.

    Classes that a split lacks, and shortcuts that tell the class without a lung, are noted.
    """
    from covidnet.data.audit import audit_packed, audit_splits

    if splits:
        named = [path / file if not file.is_absolute() and (path / file).exists() else file for file in files or []]
        if len(named) not in (2, 3):
            raise UsageError(f"--splits: expected two or three files (train [validation] test), found {len(named)}")
        names = ("train", "validation", "test") if len(named) == 3 else ("train", "test")
        result = audit_splits(dict(zip(names, named, strict=True)))
    else:
        result = audit_packed(path)
    if html is not None:
        from covidnet.data import packed
        from covidnet.data.audit import page

        html.write_text(page.render(result, None if splits else packed.read(path)))
    if as_json:
        print(json.dumps(result.to_dict()))
    else:
        for split, per_class in result.scans.items():
            print(f"{split:<12}{result.patients[split]:>7} patients  {per_class}")
        for finding in result.findings:
            print(f"{'LEAK' if finding.leak else 'note'}: {finding.message}")
        print("This dataset leaks." if result.leaks else "No leak found.")
    if result.leaks:
        raise typer.Exit(1)
