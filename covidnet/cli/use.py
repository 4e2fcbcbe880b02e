"""Verbs that run a bundle: predict, bench, serve; and doctor."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from covidnet.cli.options import Json, app, example, numbers_of, paths_of, say, shard_of
from covidnet.errors import UsageError


@app.command(
    epilog=example(
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
    number, count = shard_of(shard)
    scans = list(enumerate([*(paths or []), *paths_of(listed)], start=1))[number - 1 :: count]
    from covidnet.inference.predict import predict as run

    def answers(chosen: Sequence[Path], ordinals: Sequence[int]) -> Iterator[dict[str, Any]]:
        settings: dict[str, Any] = {"device": device, "engine": engine, "precision": precision, "threads": threads}
        return run(chosen, bundle, explain, formats=explain_format.split(","), ordinals=ordinals, **settings)

    if out is not None:
        from covidnet.export.bundle import Bundle
        from covidnet.inference.many import classify

        counts = classify(scans, out, Bundle.load(bundle).version, answers, precision)
        say(counts, out, as_json)
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


@app.command(
    epilog=example(
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

    numbers = {name: numbers_of(text, name) for name, text in (("--batches", batches), ("--threads", threads))}
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
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "engine", "precision", "batch", "threads", "load ms", "p50 ms", "p99 ms", "scans/s", "MiB", box=box.SIMPLE
    )
    for row in found["rows"]:
        cells = ("engine", "precision", "batch", "threads", "load_ms", "p50_ms", "p99_ms", "scans_per_s", "peak_mib")
        table.add_row(*(str(row[cell] or "all") if cell == "threads" else str(row[cell]) for cell in cells))
    console = Console()
    console.width = max(console.width, 100)  # into a file too, every column whole
    console.print(
        f"{found['machine']['processor']}, {found['machine']['cores']} cores, load {found['machine']['load']}"
    )
    console.print(table)
    total = sum(found["phases"].values())
    shares = (f"{name} {value * 1e3:.0f} ms ({value / total:.0%})" for name, value in found["phases"].items())
    console.print(f"One scan, file to answer: {', '.join(shares)}")
    if out is not None:
        console.print(f"Results: {out}")


@app.command(
    epilog=example("covidnet serve --bundle results/export/bundle", "covidnet serve --bundle B --http-port 9000")
)
def serve(
    bundle: Annotated[str, typer.Option(help="Folder written by `covidnet export`, or s3://, https://, … of one.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 in a container.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=1, max=65535, help="REST, upload route, page and metrics.")] = 8080,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="Open Inference Protocol over gRPC.")] = 8081,
    tokens: Annotated[Path | None, typer.Option(help="File of clients and the sha256 of their tokens.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    behind_gateway: Annotated[
        bool, typer.Option("--behind-gateway", help="A gateway in front has tokens, TLS and limits per client.")
    ] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Run the network on a CUDA GPU.")] = False,
    precision: Annotated[str, typer.Option(help="float32, or one that the bundle accepted.")] = "float32",
) -> None:
    """Serve a bundle on this machine: page, REST and gRPC, model name `covidnet`."""
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key: expected both or none")
    try:
        from serving import server
        from serving.access import Tls
    except ModuleNotFoundError as error:
        raise UsageError(
            f"covidnet serve needs {error.name}: run it in the repository after `pip install -e '.[serving]'`"
        ) from None
    tls = Tls(tls_cert, tls_key) if tls_cert and tls_key else None
    server.serve(server.Options(bundle, host, http_port, grpc_port, tokens, tls, behind_gateway, gpu, precision))  # type: ignore[arg-type]


@app.command(epilog=example("covidnet doctor", "covidnet doctor --json"))
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
