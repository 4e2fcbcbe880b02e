"""Signature, OCI image layout and bill of materials."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from covidnet.errors import CovidnetError, UsageError
from covidnet.export import bundle, modelcar, sbom, signing
from covidnet.export.bundle import Bundle


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Two pairs of private and public key."""
    folder = tmp_path_factory.mktemp("keys")
    pairs = []
    for number in range(2):
        key = ec.generate_private_key(ec.SECP256R1())
        private, public = folder / f"{number}.pem", folder / f"{number}.pub.pem"
        kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        private.write_bytes(key.private_bytes(*kinds))
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, spki))
        pairs.append((private, public))
    return pairs


@pytest.fixture
def signed(toy: Bundle, keys: list[tuple[Path, Path]], tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(toy.path, tmp_path / "signed"))
    signing.sign(folder, keys[0][0])
    return folder


def test_a_signed_bundle_loads_with_its_key_in_any_place(
    signed: Path, toy: Bundle, keys: list[tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = signed.rename(signed.with_name("moved"))
    monkeypatch.setenv(bundle.KEY, str(keys[0][1]))
    assert Bundle.load(moved).version == toy.version
    signing.sign(moved, keys[0][0])  # again, in the place of the first
    signing.verify(moved, keys[0][1])


def test_where_a_key_is_set_nothing_unsigned_is_loaded(
    toy: Bundle, signed: Path, keys: list[tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(bundle.KEY, str(keys[1][1]))
    with pytest.raises(CovidnetError, match=r"has no model\.sig, and a signature is demanded"):
        Bundle.load(toy.path)
    with pytest.raises(CovidnetError, match=r"not the signature of this bundle by 1\.pub\.pem"):
        Bundle.load(signed)
    monkeypatch.setenv(bundle.KEY, "/nowhere.pem")
    with pytest.raises(UsageError, match=r"no such key file: /nowhere\.pem"):
        Bundle.load(signed)


def test_a_forger_who_mends_the_sums_is_found(signed: Path, keys: list[tuple[Path, Path]]) -> None:
    (signed / bundle.CARD).write_text("# Approved for clinical use\n")
    names = sorted(path.name for path in signed.iterdir() if path.name not in (bundle.SUMS, bundle.SIGNATURE))
    sums = "".join(f"{hashlib.sha256((signed / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (signed / bundle.SUMS).write_text(sums)
    Bundle.load(signed)
    with pytest.raises(CovidnetError, match="not the signature of this bundle"):
        signing.verify(signed, keys[0][1])


def test_what_is_no_key_is_wrong_use(signed: Path, keys: list[tuple[Path, Path]], tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no key")
    for key in (tmp_path / "no.pem", keys[0][1]):
        with pytest.raises(UsageError, match="no private key"):
            signing.sign(signed, key)
    with pytest.raises(UsageError, match="no public key"):
        signing.verify(signed, tmp_path / "no.pem")


def blob(layout: Path, descriptor: dict) -> bytes:
    content = (layout / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")).read_bytes()
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
    assert len(content) == descriptor["size"]
    return content


def test_modelcar_is_an_image_with_the_bundle_in_models(toy: Bundle, tmp_path: Path) -> None:
    layout = tmp_path / "image"
    digest = modelcar.write(toy, layout)
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    assert entry["digest"] == digest
    manifest = json.loads(blob(layout, entry))
    config = json.loads(blob(layout, manifest["config"]))
    (layer,) = manifest["layers"]
    blob(layout, layer)
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    with tarfile.open(layout / "blobs" / "sha256" / layer["digest"].removeprefix("sha256:")) as tar:
        tar.extractall(tmp_path / "root", filter="data")
        assert {(info.uid, info.gid, info.mtime) for info in tar} == {(0, 0, 0)}
    assert Bundle.load(tmp_path / "root" / "models").version == toy.version


def test_modelcar_of_the_same_bundle_has_the_same_digest(toy: Bundle, tmp_path: Path) -> None:
    assert modelcar.write(toy, tmp_path / "a") == modelcar.write(toy, tmp_path / "b")
    with pytest.raises(UsageError, match="is not empty"):
        modelcar.write(toy, tmp_path / "a")
    with pytest.raises(UsageError, match="busybox-static"):
        modelcar.write(toy, tmp_path / "c", tmp_path / "absent")
    assert not (tmp_path / "c").exists()


@pytest.mark.skipif(not Path("/bin/busybox").exists(), reason="no BusyBox here: apt-get install busybox-static")
def test_the_shell_in_the_image_runs_what_kserve_runs(toy: Bundle, tmp_path: Path) -> None:
    modelcar.write(toy, tmp_path / "image", Path("/bin/busybox"))
    largest = max((tmp_path / "image" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    with tarfile.open(largest) as tar:
        tar.extractall(tmp_path / "root", filter="data")
    command = ["./bin/sh", "-c", "./bin/ln -sf models mounted && ./bin/ls mounted/"]
    done = subprocess.run(command, cwd=tmp_path / "root", capture_output=True, text=True, check=True)
    assert "model.onnx" in done.stdout.split()


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="no skopeo here: apt-get install skopeo")
def test_skopeo_reads_the_layout(toy: Bundle, tmp_path: Path) -> None:
    digest = modelcar.write(toy, tmp_path / "image")
    command = ["skopeo", "inspect", f"oci:{tmp_path / 'image'}:{modelcar.TAG}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["Digest"] == digest


def test_bill_of_materials_lists_what_is_installed_and_nothing_by_chance() -> None:
    text = sbom.bill_of_materials("openvino", ())
    assert text == sbom.bill_of_materials("openvino", ())
    tree = json.loads(text)
    assert (tree["bomFormat"], tree["specVersion"]) == ("CycloneDX", "1.6")
    assert tree["metadata"]["component"]["name"] == "openvino"
    listed = {part["name"]: part for part in tree["components"]}
    assert listed["numpy"]["version"] == version("numpy")
    assert listed["numpy"]["purl"] == f"pkg:pypi/numpy@{version('numpy')}"
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in tree["dependencies"]}
    assert "numpy" in needs["openvino"]


def test_bill_of_materials_is_read_back_by_the_library() -> None:
    from cyclonedx.model.bom import Bom

    tree = json.loads(sbom.bill_of_materials("typer", ()))
    names = {component.name for component in Bom.from_json(tree).components}
    assert "rich" in names
    with pytest.raises(UsageError, match="no-such-package is not installed"):
        sbom.bill_of_materials("no-such-package", ())


def test_verbs_check_sign_and_package(toy: Bundle, keys: list[tuple[Path, Path]], tmp_path: Path) -> None:
    folder = shutil.copytree(toy.path, tmp_path / "bundle")

    def covidnet(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "covidnet", "bundle", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)

    assert covidnet("sign", folder, "--key", keys[0][0]).returncode == 0
    done = covidnet("verify", folder, "--key", keys[0][1])
    assert (done.returncode, done.stdout) == (0, f"{toy.version}  verified and signed\n")
    assert covidnet("modelcar", folder, tmp_path / "image").stdout.startswith("sha256:")
    (folder / bundle.LABELS).write_text("[]")
    done = covidnet("verify", folder)
    assert done.returncode == 1
    assert "labels.json is altered" in done.stderr
    assert "Traceback" not in done.stderr
