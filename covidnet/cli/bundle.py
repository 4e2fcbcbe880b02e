"""`covidnet bundle <verb>`: check, sign and package a bundle that `covidnet export` wrote."""

from pathlib import Path
from typing import Annotated

import typer

from covidnet.cli.options import example

app = typer.Typer(name="bundle", no_args_is_help=True, help="Check, sign and package a bundle.")

Folder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder written by `covidnet export`.")]


@app.command(epilog=example("covidnet bundle verify results/export/bundle --key key.pub.pem"))
def verify(
    bundle: Folder,
    key: Annotated[Path | None, typer.Option(help="Public key: the signature is checked too.")] = None,
) -> None:
    """Check every file, and the signature where a key is given; print the version. Exit 1 on any fault."""
    from covidnet.export import signing
    from covidnet.export.bundle import Bundle

    version = Bundle.load(bundle).version
    if key is not None:
        signing.verify(bundle, key)
    print(f"{version}  {'verified and signed' if key else 'verified'}")


@app.command(epilog=example("covidnet bundle sign results/export/bundle --key key.pem"))
def sign(bundle: Folder, key: Annotated[Path, typer.Option(help="Private key of an elliptic curve, PEM.")]) -> None:
    """Sign a bundle with a key of your own, offline (OpenSSF model-signing)."""
    from covidnet.export import signing
    from covidnet.export.bundle import Bundle

    Bundle.load(bundle)
    print(f"Signature: {signing.sign(bundle, key)}")


@app.command(epilog=example("covidnet bundle modelcar results/export/bundle model-image --shell /bin/busybox"))
def modelcar(
    bundle: Folder,
    out: Annotated[Path, typer.Argument(help="Folder for the OCI image layout, absent or empty.")],
    shell: Annotated[
        Path | None,
        typer.Option(help="Static BusyBox to put beside the model, for clusters without image volumes."),
    ] = None,
) -> None:
    """Write the bundle as an OCI image layout, which KServe mounts from a registry; needs no daemon."""
    from covidnet.export import modelcar as image
    from covidnet.export.bundle import Bundle

    print(f"{image.write(Bundle.load(bundle), out, shell)}  {out}")


@app.command(epilog=example("covidnet bundle sbom > sbom.cdx.json"))
def sbom() -> None:
    """Print a CycloneDX bill of materials of the serving packages that are installed here."""
    from covidnet.export.sbom import bill_of_materials

    print(bill_of_materials(), end="")
