"""A bundle as an OCI image layout, which KServe mounts as a model ("modelcar", ``storageUri: oci://...``).

    covidnet bundle modelcar results/export/bundle covidnet-model --shell /bin/busybox
    skopeo copy oci:covidnet-model:latest docker://registry.example.org/covidnet-model:1

Written as the OCI image specification 1.1 has it, without a registry or a daemon. The same bundle gives the same bytes: one
uncompressed layer with `/models`, no times, root's files readable by all.
"""

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import Any

from covidnet.errors import UsageError
from covidnet.export.bundle import Bundle

MEDIA_TYPE = "application/vnd.oci.image"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
TAG = "latest"
SHELL_COMMANDS = ("sh", "ln", "sleep", "ls", "cat", "mkdir", "cp")


def write(bundle: Bundle, out: Path, shell: Path | None = None) -> str:
    """Write the image layout.

    Args:
        bundle: verified.
        out: folder to write, absent or empty.
        shell: a static BusyBox. KServe's modelcar runs ``ln`` and ``sleep`` in the image; clusters that mount images as
            volumes (Kubernetes 1.35, or the feature gate ImageVolume) need no shell.

    Returns:
        the image's digest, ``sha256:...``.

    Raises:
        UsageError: the target has files in it, or the shell isn't there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty; give an absent or empty folder")
    if shell is not None and not shell.is_file():
        raise UsageError(f"no such file: {shell}; a static BusyBox comes with `apt-get install busybox-static`")
    blobs = out / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layers = [_layer(bundle, shell)]
    descriptors = [_blob(blobs, layer, f"{MEDIA_TYPE}.layer.v1.tar") for layer in layers]
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"User": "65534:65534", **({"Cmd": ["/bin/sh"]} if shell else {})},
        # an uncompressed layer's digest is its diff id
        "rootfs": {"type": "layers", "diff_ids": [descriptor["digest"] for descriptor in descriptors]},
        "history": [{"created_by": "covidnet bundle modelcar"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA_TYPE}.manifest.v1+json",
        "config": _blob(blobs, _json(config), f"{MEDIA_TYPE}.config.v1+json"),
        "layers": descriptors,
        "annotations": {
            "org.opencontainers.image.title": "covidnet3d model bundle",
            "org.opencontainers.image.version": bundle.version,
        },
    }
    entry = _blob(blobs, _json(manifest), f"{MEDIA_TYPE}.manifest.v1+json")
    index = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA_TYPE}.index.v1+json",
        "manifests": [{**entry, "annotations": {"org.opencontainers.image.ref.name": TAG}}],
    }
    (out / "index.json").write_bytes(_json(index))
    (out / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    return str(entry["digest"])


def _layer(bundle: Bundle, shell: Path | None) -> bytes:
    """Tar of `/models` and, with a shell, of `/bin`: sorted, without times, owned by root."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        if shell is not None:
            _add(tar, "bin", None)
            _add(tar, "bin/busybox", shell.read_bytes(), mode=0o755)
            for command in SHELL_COMMANDS:
                link = tarfile.TarInfo(f"bin/{command}")
                link.type, link.linkname, link.mode = tarfile.SYMTYPE, "busybox", 0o777
                tar.addfile(link)
        _add(tar, "models", None)
        for path in sorted(bundle.path.iterdir()):
            _add(tar, f"models/{path.name}", path.read_bytes())
    return stream.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes | None, mode: int = 0o644) -> None:
    """A file, or a folder where there is no content."""
    info = tarfile.TarInfo(name)
    if content is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(info)
    else:
        info.size, info.mode = len(content), mode
        tar.addfile(info, io.BytesIO(content))


def _blob(folder: Path, content: bytes, media_type: str) -> dict[str, Any]:
    """Store content under its digest; its descriptor."""
    digest = hashlib.sha256(content).hexdigest()
    (folder / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _json(tree: Any) -> bytes:
    return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
