"""A signature of a bundle with a key of your own (OpenSSF model-signing), made and checked without any service.

    openssl ecparam -genkey -name prime256v1 -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub.pem
    covidnet bundle sign results/export/bundle --key key.pem
    COVIDNET_BUNDLE_KEY=key.pub.pem covidnet predict scan.nii.gz --bundle results/export/bundle

The signature, `model.sig`, lies in the bundle and covers every other file of it, `SHA256SUMS` included.
"""

from pathlib import Path
from types import ModuleType

from covidnet.errors import CovidnetError, UsageError

SIGNATURE = "model.sig"


def sign(bundle: Path, key: Path) -> Path:
    """Write `model.sig`, in the place of an earlier one.

    Args:
        bundle: a verified bundle.
        key: private key of an elliptic curve, PEM, without a password.

    Raises:
        UsageError: the key isn't there or isn't one, or model-signing isn't installed.
    """
    library, path = _library(), bundle / SIGNATURE
    path.unlink(missing_ok=True)
    hashing = library.hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    try:
        config = library.signing.Config().use_elliptic_key_signer(private_key=_key(key))
        config.set_hashing_config(hashing).sign(bundle, path)
    except (ValueError, TypeError):
        raise UsageError(f"{key} is no private key of an elliptic curve in PEM without a password") from None
    return path


def verify(bundle: Path, key: Path) -> None:
    """Check `model.sig` and every file that it covers.

    Args:
        bundle: the folder.
        key: public key, PEM.

    Raises:
        CovidnetError: there is no signature, it is by another key, or a file isn't the one that was signed.
        UsageError: the key isn't there or isn't one, or model-signing isn't installed.
    """
    library = _library()
    try:
        verifier = library.verifying.Config().use_elliptic_key_verifier(public_key=_key(key))
    except (ValueError, TypeError):
        raise UsageError(f"{key} is no public key of an elliptic curve in PEM") from None
    if not (bundle / SIGNATURE).is_file():
        raise CovidnetError(
            f"{bundle} has no {SIGNATURE}, and a signature is demanded; sign it: `covidnet bundle sign`"
        )
    try:
        verifier.verify(bundle, bundle / SIGNATURE)
    except Exception as error:  # the library raises its parsers' and its crypto's own errors
        raise CovidnetError(
            f"{bundle / SIGNATURE} is not the signature of this bundle by {key.name} ({type(error).__name__}); "
            "get the bundle again from its source, or the right key"
        ) from None


def _key(key: Path) -> Path:
    if not key.is_file():
        raise UsageError(f"no such key file: {key}")
    return key


def _library() -> ModuleType:
    try:
        import model_signing
    except ModuleNotFoundError:
        raise UsageError("signatures need model-signing; pip install 'covidnet3d[signing]'") from None
    library: ModuleType = model_signing
    return library
