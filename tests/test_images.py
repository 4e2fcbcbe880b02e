"""`make image` with a real Docker Engine, on a base made here; a stage and the server run in the images.

The engine is the test's own: its socket, data and processes live in a temporary folder, and it has no network of its own.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest
import toy_bundle

from covidnet import folder
from covidnet.data.sources.phantom import LABELS, generate
from covidnet.export.bundle import Bundle
from covidnet.inference import engine
from serving.monitoring.local import free_ports

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="a Docker Engine of its own needs root"),
    pytest.mark.skipif(
        not (shutil.which("dockerd") and shutil.which("debootstrap")),
        reason="apt-get install docker.io debootstrap",
    ),
]

# As the restricted Pod Security Standard and the manifests run them.
CONFINED = ("--rm", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")
Docker = Callable[..., str]
_OUT = {"summary": "/tmp/summary"}
OF_A_CLUSTER: dict[str, dict[str, Any]] = {  # component to arguments
    "deploy": {"artifacts": {"bundle": "/in", **_OUT}},
    "smoke_test": {"artifacts": {"bundle": "/in", "dataset": "/in", "findings": "/tmp/findings"}},
    "release": {"passed": True, "artifacts": {"dataset": "/in", "findings": "/tmp/findings"}},
    "register": {
        **{name: name for name in ("data_revision", "code", "run_id", "run_name")},
        "artifacts": {"bundle": "/in", "evaluation": "/in", **_OUT},
    },
}
EVALUATED = {"winner": {"name": "toy"}, "metrics": {"toy": {}}, "calibration": {"ece_after": 0.1}}


def git(*command: str, cwd: Path) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *who, *command], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def versioned(repository: Path) -> str:
    """A git repository with phantoms as NIfTI files; what `data.root` calls their folder."""
    for index in range(60):
        scan = generate(LABELS[index % 3], seed=0, index=index, difficulty=0.3, detail=(24, 48, 48)).scan
        z, y, x = scan.spacing_mm
        file = repository / "raw" / LABELS[index % 3] / f"{index}.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(scan.voxels.T[:, :, ::-1], np.diag([-x, -y, z, 1.0])), file)
    git("init", "-q", "-b", "main", cwd=repository)
    git("add", "raw", cwd=repository)
    git("commit", "-qm", "scans", cwd=repository)
    return f"{repository}//raw"


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """Runs the command line against an engine that is started for these tests."""
    root = tmp_path_factory.mktemp("docker")
    address = f"unix://{root}/docker.sock"
    folders = [f"--{name}-root={root / name}" for name in ("data", "exec")]
    command = ["/usr/sbin/dockerd", *folders, f"--pidfile={root}/pid", f"--host={address}", "--bridge=none"]
    with (root / "log.txt").open("wb") as log:
        process = subprocess.Popen([*command, "--iptables=false"], stdout=log, stderr=log)

    def run(*arguments: str, check: bool = True, told: bool = False) -> str:
        done = subprocess.run(["/usr/bin/docker", f"--host={address}", *arguments], capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return (done.stdout + (done.stderr if told else "")).strip()

    run.address = address  # type: ignore[attr-defined]
    try:
        for _ in range(300):
            if run("version", "--format={{.Server.Version}}", check=False):
                break
            time.sleep(0.1)
        else:
            pytest.fail((root / "log.txt").read_text()[-3000:])
        yield run
    finally:
        process.terminate()
        process.wait(60)
        subprocess.run(["umount", "--lazy", root / "exec" / "netns" / "default"], check=False, capture_output=True)
        shutil.rmtree(root)  # gigabytes, which pytest would keep


@pytest.fixture(scope="module")
def images(docker: Docker, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Both images, built as a user builds them, on a Debian that has Python and nothing else."""
    rootfs = tmp_path_factory.mktemp("base") / "rootfs"
    included = "--include=ca-certificates,python3-venv"
    subprocess.run(["debootstrap", "--variant=minbase", included, "bookworm", rootfs], check=True, capture_output=True)
    superfluous = ["--exclude=./var/cache", "--exclude=./var/lib/apt", "--exclude=./usr/share/doc", "--exclude=./dev"]
    archive = subprocess.Popen(["tar", "-C", rootfs, *superfluous, "-c", "."], stdout=subprocess.PIPE)
    command = ["/usr/bin/docker", f"--host={docker.address}"]  # type: ignore[attr-defined]
    subprocess.run([*command, "import", "-", "base:test"], stdin=archive.stdout, check=True, capture_output=True)
    shutil.rmtree(rootfs)
    variables = [f"PIP={sys.executable} -m pip", f"DOCKER={' '.join(command)}", "BASE=base:test", "TAG=test"]
    made = subprocess.run(
        ["make", "--assume-old=.venv/.ready", "image", *variables], cwd=repository, capture_output=True, text=True
    )
    assert made.returncode == 0, (made.stdout + made.stderr)[-5000:]
    print(made.stdout.splitlines()[-2:])


@pytest.fixture(scope="module", autouse=True)
def _no_wheels_left(repository: Path) -> Iterator[None]:
    yield
    shutil.rmtree(repository / "build" / "wheels", ignore_errors=True)


@pytest.mark.usefixtures("images")
class TestImages:
    @pytest.mark.parametrize("image", ["covidnet3d-serving:test", "covidnet3d-stages:test"])
    def test_runs_as_a_user_without_rights(self, docker: Docker, image: str) -> None:
        config = json.loads(docker("image", "inspect", image))[0]["Config"]
        assert config["User"] == "1000:1000"
        assert docker("run", *CONFINED, "--network=none", "--entrypoint=id", image, "-u") == "1000"

    def test_the_endpoint_has_no_torch(self, docker: Docker) -> None:
        code = "from importlib.util import find_spec; print(find_spec('torch'), find_spec('monai'), find_spec('pip'))"
        found = docker(
            "run", *CONFINED, "--network=none", "--entrypoint=python3", "covidnet3d-serving:test", "-c", code
        )
        assert found == "None None None"
        sizes = docker("image", "inspect", "-f", "{{.Size}}", "covidnet3d-serving:test", "covidnet3d-stages:test")
        serving, stages = map(int, sizes.split())
        assert serving < stages

    def test_a_stage_runs(self, docker: Docker, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)  # the container's user is another
        command = ["covidnet", "ingest", "--out", "/out/dataset", "-S", "data.phantom.patients=12"]
        docker("run", *CONFINED, "--network=none", f"-v={tmp_path}:/out", "covidnet3d-stages:test", *command)
        assert np.load(tmp_path / "dataset" / "scans.npy").shape == (12, 16, 64, 64)
        assert (tmp_path / "dataset" / "scans.npy").stat().st_uid == 1000

    def test_a_component_runs(self, docker: Docker, repository: Path) -> None:
        """Kubeflow starts a component by its source in `kfp.dsl.executor_main`, with the image's Python."""
        code = (
            "import components.search, kfp.dsl.executor_main, pipelines.covidnet3d; print(components.search.__file__)"
        )
        found = docker("run", *CONFINED, "--network=none", "covidnet3d-stages:test", "python3", "-c", code)
        assert found == "/app/components/search.py"

    @pytest.mark.parametrize("name", sorted(OF_A_CLUSTER))
    def test_a_component_that_needs_a_cluster_has_all_it_imports_and_names_what_is_missing(
        self, docker: Docker, tmp_path: Path, name: str
    ) -> None:
        for path in (tmp_path, toy_bundle.write(tmp_path).path):
            path.chmod(0o755)  # the container's user is another
        (tmp_path / "results.json").write_text(json.dumps(EVALUATED))
        (tmp_path / "provenance.json").write_text(json.dumps({"inputs": {"dataset": "3d5b"}, "git_revision": None}))
        params = {"deploy": {"registry": "http://127.0.0.1:9", "namespace": "team"}}
        given = {**OF_A_CLUSTER[name], "params": json.dumps(params)}
        code = (
            f"import json, sys; from kfp import dsl; from components.{name} import {name} as component\n"
            "given = json.loads(sys.argv[1])\n"
            "for key, path in given.pop('artifacts').items(): given[key] = dsl.Artifact(name=key, uri=path)\n"
            "component.python_func(**given)"
        )
        command = ["run", *CONFINED, "--network=none", f"-v={tmp_path}:/in:ro", "covidnet3d-stages:test"]
        done = docker(*command, "python3", "-c", code, json.dumps(given), check=False, told=True)
        assert re.search(r"covidnet\.errors\.CovidnetError: .*(no Kubernetes cluster|no answer)", done), done[-3000:]

    def test_the_whole_graph_runs_in_containers(self, docker: Docker, repository: Path, tmp_path: Path) -> None:
        """On a version of raw scans in a git repository, which the containers read and never write."""
        raw = versioned(tmp_path / "repository")
        tiny = ["data.source=nifti", f"data.root={raw}", "data.revision=main", "baselines=[densenet3d121]",
                "search.warmup_steps=4", "search.steps=4", "search.candidates=2", "search.random=2",
                "training.tmacs=0.002", "training.evaluations=1", "evaluate.bootstrap=100",
                "gate.at_least.accuracy=0", "gate.at_most.ece_after=1", "gate.margin=-1", "gate.false_alarms=1",
                "gate.foreign_flagged=0"]  # fmt: skip
        command = [sys.executable, "-m", "pipelines", "run", "--runner", "docker", "--out", str(tmp_path / "out")]
        address: str = docker.address  # type: ignore[attr-defined]
        made = subprocess.run(
            [*command, *(word for override in tiny for word in ("-S", override))],
            cwd=repository,
            env={**os.environ, "DOCKER_HOST": address, "COVIDNET_IMAGE": "covidnet3d-stages:test"},
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, (made.stdout + made.stderr)[-5000:]
        assert "Gate passed" in made.stdout
        assert Bundle.load(tmp_path / "out" / "export" / "bundle").labels == ("NCP", "CP", "Normal")
        told = re.sub(r"\x1b\[\d+m", "", made.stdout + made.stderr)
        ran = set(re.findall(r"Task '(.+?)(?:-\d[\d-]*)?' finished with status SUCCESS", told))
        components = {file.stem for file in (repository / "components").glob("[!_]*.py")}
        assert {name.replace("-", "_") for name in ran} >= components - set(OF_A_CLUSTER)
        version = folder.provenance(tmp_path / "out" / "dataset")["parameters"]["data"]
        assert version["revision"] == git("rev-parse", "HEAD", cwd=Path(raw.rpartition("//")[0]))

    def test_the_server_answers_and_drains(self, docker: Docker, tmp_path: Path) -> None:
        bundle = toy_bundle.write(tmp_path)
        for path in (tmp_path, bundle.path):
            path.chmod(0o755)
        http, grpc = free_ports(2)
        ports = ["--host=127.0.0.1", f"--http-port={http}", f"--grpc-port={grpc}"]
        docker(
            *("run", "--detach", "--name=served", "--network=host", *CONFINED[1:], f"-v={bundle.path}:/mnt/models:ro"),
            *("covidnet3d-serving:test", "--bundle=/mnt/models", *ports),
        )
        url = f"http://127.0.0.1:{http}"
        for _ in range(300):
            try:
                if httpx.get(f"{url}/v2/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        volume = np.random.default_rng(0).integers(0, 256, toy_bundle.SIZE, np.uint8)
        body = {"instances": [{"volume": volume.tolist()}]}
        answer = httpx.post(f"{url}/v1/models/covidnet:predict", json=body).raise_for_status().json()
        expected = engine.load(bundle).run(volume[None, None]).probabilities[0]
        assert list(answer["predictions"][0]["probabilities"].values()) == pytest.approx(expected, abs=1e-6)
        docker("stop", "--time=30", "served")
        assert docker("inspect", "-f", "{{.State.ExitCode}}", "served") == "0"
