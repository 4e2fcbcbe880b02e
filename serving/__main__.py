"""`python -m serving --bundle DIR --http-port 8080 --grpc-port 8081 --host 127.0.0.1`."""

from pathlib import Path
from typing import Annotated

import typer

from covidnet.errors import CovidnetError, UsageError


def serve(
    bundle: str,
    host: str = "127.0.0.1",
    http_port: int = 8080,
    grpc_port: int = 8081,
    tokens: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    behind_gateway: bool = False,
    gpu: bool = False,
) -> None:
    """Serve a bundle as the model `covidnet` until SIGTERM or Ctrl-C; arguments as in `serving.server.Options`.

    Raises:
        CovidnetError: the bundle is damaged, or the engine refuses it.
        UsageError: the options don't go together, a port is taken, or no engine is installed.
    """
    import asyncio

    from serving.access import Tls
    from serving.server import Options, run

    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key: expected both or none")
    tls = Tls(tls_cert, tls_key) if tls_cert and tls_key else None
    asyncio.run(run(Options(bundle, host, http_port, grpc_port, tokens, tls, behind_gateway, gpu)))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    bundle: Annotated[str, typer.Option(help="Folder written by `covidnet export`, or s3://, https://, … of one.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 in a container.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=1, max=65535, help="REST, upload, page, metrics.")] = 8080,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="Open Inference Protocol over gRPC.")] = 8081,
    tokens: Annotated[Path | None, typer.Option(help="File of clients and the sha256 of their tokens.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    behind_gateway: Annotated[
        bool, typer.Option("--behind-gateway", help="A gateway in front has tokens, TLS and limits per client.")
    ] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Run the network on a CUDA GPU.")] = False,
) -> None:
    """Serve a bundle over REST and gRPC, with a page at `/`. Research software: no output is a diagnosis."""
    try:
        serve(bundle, host, http_port, grpc_port, tokens, tls_cert, tls_key, behind_gateway, gpu)
    except CovidnetError as error:
        typer.echo(f"covidnet: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
