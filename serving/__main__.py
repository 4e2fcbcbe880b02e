"""`python -m serving --bundle DIR --http-port 8080 --grpc-port 8081 --host 127.0.0.1`."""

from pathlib import Path
from typing import Annotated

import typer

from covidnet.errors import CovidnetError


def serve(bundle: Path, host: str = "127.0.0.1", http_port: int = 8080, grpc_port: int = 8081) -> None:
    """Serve a bundle as the model `covidnet` until SIGTERM or Ctrl-C.

    Args:
        bundle: folder that `covidnet export` wrote.
        host: address to listen on; 0.0.0.0 in a container.
        http_port: V1, V2, upload, page, metrics.
        grpc_port: V2.

    Raises:
        CovidnetError: the bundle is damaged, or the engine refuses it.
        UsageError: a port is taken, or no engine is installed.
    """
    import asyncio

    from serving.server import run

    asyncio.run(run(bundle, host, http_port, grpc_port))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    bundle: Annotated[Path, typer.Option(help="Folder written by `covidnet export`.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 in a container.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=1, max=65535, help="REST, upload, page, metrics.")] = 8080,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="Open Inference Protocol over gRPC.")] = 8081,
) -> None:
    """Serve a bundle over REST and gRPC, with a page at `/`. Research software: no output is a diagnosis."""
    try:
        serve(bundle, host, http_port, grpc_port)
    except CovidnetError as error:
        typer.echo(f"covidnet: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


if __name__ == "__main__":
    app()
