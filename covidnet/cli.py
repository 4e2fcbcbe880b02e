"""`covidnet <verb>`: load params.yaml, call one stage, say where the results lie.

Every heavy import sits inside its verb, so that `covidnet --help` answers at once.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from covidnet.errors import CovidnetError, UsageError
from covidnet.export.verbs import app as bundle_app
from covidnet.progress import first_process
from covidnet.search.verbs import latency

app = typer.Typer(
    name="covidnet",
    help="Design, train, explain and export a small 3D classifier for your own chest CTs. "
    "Research software: no output is a diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Whole pipeline on one machine: [bold]dvc repro[/]. One verb: [bold]covidnet VERB --help[/] shows an example.",
)
app.add_typer(bundle_app)

Params = Annotated[Path | None, typer.Option("--params", help="Configuration file; default: params.yaml here.")]
Override = Annotated[
    list[str] | None,
    typer.Option("-S", "--set", metavar="KEY=VALUE", help="Override a parameter, e.g. -S search.steps=200."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write; default: under `results` of params.yaml.")]


def _example(*lines: str) -> str:
    return "[bold]Examples[/]\n\n" + "\n\n".join(f"  $ {line}" for line in lines)


def _config(params: Path | None, overrides: list[str] | None) -> Any:
    from covidnet.config import load

    return load(params, overrides)


def _say(result: dict[str, Any], out: Path, as_json: bool) -> None:
    """End of a stage: its numbers and where the results lie."""
    if as_json:
        print(json.dumps({"out": str(out), "metrics": result}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in result.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console = Console()
    console.print(table)
    console.print(f"Results: {out}")


@app.command(epilog=_example("covidnet inspect scan.nii.gz", "covidnet inspect series_folder/ --json"))
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
    epilog=_example(
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

    config = _config(params, overrides)
    target = out or stages.dataset_of(config)
    if where is not None:
        from covidnet.data.ingest import path_of

        path = str(path_of(config, where))
        print(json.dumps({"path": path}) if as_json else path)
    elif shard is not None:
        numbers = _shard(shard)
        _say(stages.ingest_shard(config, target, numbers), stages.shards_of(target), as_json)
    else:
        _say(stages.ingest(config, target, merge=merge), target, as_json)


@app.command(
    epilog=_example(
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


@app.command(epilog=_example("covidnet models", "covidnet models --input 32,128,128 --channels 3 --json"))
def models(
    size: Annotated[
        str, typer.Option("--input", metavar="D,H,W", help="Input size for the multiply-accumulates.")
    ] = "16,64,64",
    channels: Annotated[int, typer.Option(help="Input channels, 1 or 3.")] = 1,
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 3,
    as_json: Json = False,
) -> None:
    """Every registered model with its size and cost."""
    from covidnet.models.catalogue import catalogue

    rows = catalogue(_size(size), channels, classes)
    if as_json:
        print(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "parameters", "MiB", "GMACs")
    for row in rows:
        table.add_row(row["name"], f"{row['parameters']:,}", f"{row['size_mib']:.2f}", f"{row['macs'] / 1e9:.2f}")
    Console().print(table)


@app.command(epilog=_example("covidnet baseline --model densenet3d121"))
def baseline(
    model: Annotated[str, typer.Option(help="resnet3d101, densenet3d121 or mc3_18.")],
    params: Params = None,
    overrides: Override = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train one of the paper's human-designed baselines."""
    from covidnet import stages

    config = _config(params, overrides)
    target = out or stages.baseline_of(config, model)
    _say(stages.baseline(config, stages.dataset_of(config), target, model), target, as_json)


@app.command(
    epilog=_example(
        "covidnet search --variant S",
        "covidnet search --variant S -S search.budget.size_mib=3",
        "covidnet search --variant S --sweep 2.5,3,4    # accuracy over size, in results/sweep/S/front.png",
    )
)
def search(
    variant: Annotated[str, typer.Option(help="S or L.")] = "S",
    params: Params = None,
    overrides: Override = None,
    out: Out = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="MIB,...", help="Search and retrain at each of these sizes instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Differentiable architecture search on the training split."""
    from covidnet import stages

    config = _config(params, overrides)
    if sweep is not None:
        from covidnet import sweep as module

        target = out or Path(config.results) / "sweep" / variant
        rows = module.sweep(config, stages.dataset_of(config), target, variant, module.sizes(sweep))
        accuracies = {f"{row['size_mib']:.2f} MiB": row["validation_accuracy"] for row in rows}
        _say({"rows": rows} if as_json else accuracies, target, as_json)
        return
    target = out or stages.search_of(config, variant)
    _say(stages.search(config, stages.dataset_of(config), target, variant), target, as_json)


app.command(
    epilog=_example(
        "covidnet latency --variant S", "covidnet latency --input 32,128,128 --engine onnxruntime --out l.json"
    )
)(latency)


@app.command(epilog=_example("covidnet retrain --variant S"))
def retrain(
    variant: Annotated[str, typer.Option(help="S or L.")] = "S",
    params: Params = None,
    overrides: Override = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Train the found architecture from scratch."""
    from covidnet import stages

    config = _config(params, overrides)
    target = out or stages.retrain_of(config, variant)
    result = stages.retrain(config, stages.dataset_of(config), stages.search_of(config, variant), target, variant)
    _say(result, target, as_json)


@app.command(
    epilog=_example(
        "covidnet evaluate",
        "covidnet evaluate -S evaluate.bootstrap=5000",
        "covidnet evaluate --bundle results/export/bundle --data other/dataset --split all",
        "covidnet evaluate --bundle results/export/bundle --slice-labels slices.csv",
    )
)
def evaluate(
    params: Params = None,
    overrides: Override = None,
    out: Out = None,
    as_json: Json = False,
    bundle: Annotated[
        list[Path] | None, typer.Option(help="External validation of a finished bundle; again for a matrix.")
    ] = None,
    data: Annotated[list[Path] | None, typer.Option(help="Packed dataset to validate it on; again for more.")] = None,
    split: Annotated[
        str, typer.Option(help="With --bundle: test, or all where the model has seen nothing of the data.")
    ] = "test",
    slice_labels: Annotated[
        Path | None,
        typer.Option(
            help="With --bundle: CSV of path,label,slice,infected; how its maps rank the slices of these scans."
        ),
    ] = None,
) -> None:
    """Choose the winner on validation, read the test split once, write the report. Or: a bundle on other data."""
    from covidnet import stages

    config = _config(params, overrides)
    if slice_labels is not None:
        from covidnet.inference import slices

        if len(bundle or []) != 1 or data:
            raise UsageError("--slice-labels: expected one --bundle and no --data beside it")
        target = out or Path(config.results) / "slices"
        _say(slices.report(bundle[0], slice_labels, target), target, as_json)  # type: ignore[index]
        return
    if bundle or data:
        from covidnet.inference.external import validate

        target = out or Path(config.results) / "external"
        result = validate(bundle or [], data or [], config.evaluate, target, split=split, seed=config.seed)
        _say(result, target, as_json)
        return
    target = out or stages.evaluate_of(config)
    result = stages.evaluate(config, stages.dataset_of(config), stages.candidates_of(config), target)
    _say(result, target, as_json)


@app.command(epilog=_example("covidnet export", "covidnet export --out /tmp/winner --torchserve"))
def export(
    params: Params = None,
    overrides: Override = None,
    out: Out = None,
    torchserve: Annotated[
        bool, typer.Option("--torchserve", help="Also for TorchServe, into a folder beside, OUT-torchserve.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Export the winner as a verified bundle and check it against torch."""
    from covidnet import stages

    config = _config(params, overrides)
    target = out or stages.export_of(config)
    result = stages.export(
        config, stages.dataset_of(config), stages.evaluate_of(config), stages.candidates_of(config), target
    )
    if torchserve:
        from covidnet.export import torchserve as archive

        folder = target.with_name(f"{target.name}-torchserve")
        result["torchserve"] = str(archive.write(target / "bundle", folder, _serving("export --torchserve")))
    _say(result, target, as_json)


@app.command(
    epilog=_example(
        "covidnet predict scan.nii.gz --bundle results/export/bundle",
        "covidnet predict series/ more/*.nii.gz --bundle results/export/bundle --explain overlays/",
        "covidnet predict series/ --bundle B --explain overlays/ --explain-format gif,nifti,dicom-seg",
        "covidnet predict --list scans.txt --bundle B --out answers.parquet --shard 1/4",
    )
)
def predict(
    bundle: Annotated[Path, typer.Option(help="Folder written by `covidnet export`.")],
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Scans: DICOM series folders, NIfTI files, folders of slices, prepared volumes (.npy)."),
    ] = None,
    listed: Annotated[Path | None, typer.Option("--list", help="File with one scan per line; - for stdin.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Keep the answers: .jsonl, .csv or .parquet. The same command goes on where it was stopped."),
    ] = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Take every N-th scan from the I-th on.")] = "1/1",
    explain: Annotated[Path | None, typer.Option(help="Folder for class activation maps.")] = None,
    explain_format: Annotated[
        str, typer.Option(help="Comma-separated: png (montage), gif (sweep), nifti, dicom-sc, dicom-seg.")
    ] = "png",
    device: Annotated[str, typer.Option(help="auto (cpu), cpu or gpu.")] = "auto",
    engine: Annotated[str, typer.Option(help="auto, openvino, onnxruntime or tensorrt.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, or one that the bundle accepted.")] = "float32",
    threads: Annotated[int, typer.Option(help="CPU threads of the network; 0: all that this process may use.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="The output is JSON either way: one line per scan, or one list.")
    ] = False,
) -> None:
    """Classify scans: one JSON line each. Exit 1 if any couldn't be read."""
    if not (paths or listed):
        raise UsageError("covidnet predict: expected scans, or --list with a file that names them")
    number, count = _shard(shard)
    scans = list(enumerate([*(paths or []), *_listed(listed)], start=1))[number - 1 :: count]
    from covidnet.inference.predict import predict as run

    def answers(chosen: Sequence[Path], ordinals: Sequence[int]) -> Iterator[dict[str, Any]]:
        settings: dict[str, Any] = {"device": device, "engine": engine, "precision": precision, "threads": threads}
        return run(chosen, bundle, explain, formats=explain_format.split(","), ordinals=ordinals, **settings)

    if out is not None:
        from covidnet.export.bundle import Bundle
        from covidnet.inference.many import classify

        counts = classify(scans, out, Bundle.load(bundle).version, answers)
        _say(counts, out, as_json)
        if counts["failed"]:
            raise typer.Exit(1)
        return
    results = []
    failed = False
    for result in answers([path for _, path in scans], [number for number, _ in scans]):
        failed = failed or "error" in result or "explain_error" in result
        if as_json:
            results.append(result)
        else:
            print(json.dumps(result), flush=True)
    if as_json:
        print(json.dumps(results))
    if failed:
        raise typer.Exit(1)


def _listed(path: Path | None) -> list[Path]:
    """The scans that a file names, one per line."""
    if path is None:
        return []
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
    except OSError as error:
        raise UsageError(f"--list {path}: {error.strerror}") from None
    return [Path(line) for line in text.splitlines() if line.strip()]


@app.command(
    epilog=_example(
        "covidnet bench --bundle results/export/bundle --out bench/",
        "covidnet bench --bundle B --scan series/ --batches 1,8 --threads 1,2",
    )
)
def bench(
    bundle: Annotated[Path, typer.Option(help="Folder written by `covidnet export`.")],
    scan: Annotated[
        Path | None, typer.Option(help="Scan to decode; default: a synthetic one of 64 x 256 x 256 voxels.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json and bench.png.")] = None,
    device: Annotated[str, typer.Option(help="cpu or gpu.")] = "cpu",
    batches: Annotated[str, typer.Option(help="Scans per run, comma-separated.")] = "1,4",
    threads: Annotated[str, typer.Option(help="CPU threads, comma-separated; 0: all that this process may use.")] = "0",
    seconds: Annotated[float, typer.Option(min=0, help="Running time per row of the table.")] = 3.0,
    as_json: Json = False,
) -> None:
    """Measure a bundle on this machine: latency, throughput and memory per engine, precision, batch and threads.

    What it finds is what `auto` goes by afterwards.
    """
    from covidnet.inference import bench as module

    numbers = {name: _numbers(text, name) for name, text in (("--batches", batches), ("--threads", threads))}
    found = module.bench(
        bundle,
        scan,
        seconds=seconds,
        batches=numbers["--batches"],
        threads=numbers["--threads"],
        device=device,  # type: ignore[arg-type]
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "bench.json").write_text(json.dumps(found, indent=2) + "\n")
        module.picture(found, out / "bench.png")
    if as_json:
        print(json.dumps(found))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("engine", "precision", "batch", "threads", "load ms", "p50 ms", "p99 ms", "scans/s", "peak MiB")
    for row in found["rows"]:
        cells = ("engine", "precision", "batch", "threads", "load_ms", "p50_ms", "p99_ms", "scans_per_s", "peak_mib")
        table.add_row(*(str(row[cell] or "all") if cell == "threads" else str(row[cell]) for cell in cells))
    console = Console()
    console.print(
        f"{found['machine']['processor']}, {found['machine']['cores']} cores, load {found['machine']['load']}"
    )
    console.print(table)
    total = sum(found["phases"].values())
    shares = (f"{name} {value * 1e3:.0f} ms ({value / total:.0%})" for name, value in found["phases"].items())
    console.print(f"One scan, file to answer: {', '.join(shares)}")
    if out is not None:
        console.print(f"Results: {out}")


def _numbers(text: str, option: str) -> list[int]:
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise UsageError(f"{option} {text}: expected numbers separated by commas, e.g. 1,4")
    return [int(part) for part in text.split(",")]


@app.command(
    epilog=_example("covidnet serve --bundle results/export/bundle", "covidnet serve --bundle B --http-port 9000")
)
def serve(
    bundle: Annotated[str, typer.Option(help="Folder written by `covidnet export`, or s3://, https://, … of one.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="REST, upload route and page.")] = 8080,
    grpc_port: Annotated[int, typer.Option(help="Open Inference Protocol over gRPC.")] = 8081,
    tokens: Annotated[Path | None, typer.Option(help="File of clients and the sha256 of their tokens.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    behind_gateway: Annotated[
        bool, typer.Option("--behind-gateway", help="A gateway in front has tokens, TLS and limits per client.")
    ] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Run the network on a CUDA GPU.")] = False,
) -> None:
    """Serve a bundle on this machine: page, REST and gRPC, model name `covidnet`."""
    try:
        from serving.__main__ import serve as run
    except ModuleNotFoundError as error:
        raise UsageError(
            f"covidnet serve needs {error.name}: run it in the repository after `pip install -e '.[serving]'`"
        ) from None
    run(bundle, host, http_port, grpc_port, tokens, tls_cert, tls_key, behind_gateway, gpu)


@app.command(epilog=_example("covidnet doctor", "covidnet doctor --json"))
def doctor(as_json: Json = False) -> None:
    """What is installed here, and what is missing for which verb."""
    from covidnet.doctor import examine

    rows = examine()
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            f"{'ok     ' if row['found'] else 'missing'}  {row['part']:<18}{row['found'] or row['remedy']:<40}{row['for']}"
        )


def _serving(verb: str) -> Path:
    """Folder of the package `serving`, which an installation from a wheel doesn't have."""
    from importlib.util import find_spec

    spec = find_spec("serving")
    if spec is None or spec.origin is None:
        raise UsageError(f"covidnet {verb} needs the package serving: run it in the repository")
    return Path(spec.origin).parent


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--shard {text}: expected I/N with I from 1 to N, e.g. 1/4")
    return int(number), int(count)


def _size(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"--input {text}: expected D,H,W, e.g. 16,64,64")
    depth, height, width = (int(part) for part in parts)
    return depth, height, width


def main() -> None:
    """Entry point: faults a user can mend end with a message, never with a traceback."""
    if not first_process():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process runs
    try:
        app()
    except CovidnetError as error:
        print(f"covidnet: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("covidnet: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
