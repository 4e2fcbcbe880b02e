"""A bundle of a real genotype, its archive, and TorchServe on it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from covidnet.evaluation.novelty import FEATURES, Detector
from covidnet.export import torchserve
from covidnet.export.bundle import Bundle, Calibration
from serving.monitoring.local import free_ports

CLASSES = ("NCP", "CP", "Normal")
SIZE = (16, 64, 64)
TEMPERATURE = 1.5


@pytest.fixture(scope="session")
def found_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A network of space S with two MBConv blocks, its statistics those of a trained one."""
    import torch

    from covidnet.export.pack import pack
    from covidnet.models import covidnet3d

    blocks = [["Identity"] * n for n in covidnet3d.SPACES["S"].blocks]
    blocks[0][1], blocks[2][0] = "5x5_MBConv3", "3x3_MBConv4"
    genotype = covidnet3d.Genotype("S", CLASSES, 1, SIZE, tuple(map(tuple, blocks)))
    torch.manual_seed(4)
    model = covidnet3d.build(genotype).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    with torch.no_grad():
        model.head.weight *= 30  # so that different scans get different answers
    return pack(
        model,
        tmp_path_factory.mktemp("found") / "bundle",
        size=SIZE,
        labels=CLASSES,
        genotype=genotype.to_dict(),
        calibration=Calibration(TEMPERATURE, Detector(np.zeros(FEATURES), np.eye(FEATURES), 500.0, 0.05)),
        card="# Found\n",
    )


@pytest.fixture(scope="session")
def exported(found_bundle: Bundle, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TorchServe's folder of that bundle."""
    out = tmp_path_factory.mktemp("exported") / "torchserve"
    torchserve.write(found_bundle.path, out, repository / "serving")
    return out


@dataclass(frozen=True)
class TorchServe:
    """A running TorchServe."""

    inference: str
    management: str
    metrics: str
    tokens: dict[str, dict[str, str]]
    keys: Path
    log: Path

    def client(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.tokens['inference']['key']}"}
        return httpx.Client(base_url=self.inference, headers=headers, timeout=60)


@pytest.fixture(scope="session")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """TorchServe as the exported configuration starts it, but on free ports of loopback."""
    if shutil.which("java") is None:
        pytest.skip("TorchServe needs java: apt-get install openjdk-17-jre-headless")
    work = Path("/tmp") / f"ts-{os.getpid()}"  # a socket in it, whose path must stay under 108 characters
    work.mkdir()
    names = ("INFERENCE_ADDRESS", "MANAGEMENT_ADDRESS", "METRICS_ADDRESS")
    ports = free_ports(6)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        **{f"TS_{name}": f"http://127.0.0.1:{port}" for name, port in zip(names, ports, strict=False)},
        "TS_GRPC_INFERENCE_PORT": str(ports[3]),
        "TS_GRPC_MANAGEMENT_PORT": str(ports[4]),
        "TS_INITIAL_WORKER_PORT": str(ports[5]),
        "LOG_LOCATION": str(work),
        "METRICS_LOCATION": str(work),
        "TMPDIR": str(work),
        "TEMP": str(work),
        "OMP_NUM_THREADS": "1",
    }
    arguments = ["--model-store", exported / "model-store", "--ts-config", exported / "config" / "config.properties"]
    log = tmp_path_factory.mktemp("log") / "log.txt"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("torchserve"), "--start", "--foreground", "--ncs", *arguments],
            cwd=work,
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        addresses = [f"http://127.0.0.1:{port}" for port in ports[:3]]
        yield _ready(process, addresses, work / "key_file.json", log)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        shutil.rmtree(work, ignore_errors=True)  # its workers' sockets vanish while it looks


def _ready(process: subprocess.Popen[bytes], addresses: list[str], keys: Path, log: Path) -> TorchServe:
    for _ in range(900):
        if process.poll() is not None:
            break
        try:
            running = TorchServe(*addresses, json.loads(keys.read_text()), keys, log)
            with running.client() as client:
                if client.get("/ping").status_code == 200:
                    return running
        except (OSError, ValueError, httpx.TransportError):
            pass
        time.sleep(0.1)
    pytest.fail(f"TorchServe isn't ready:\n{log.read_text()[-5000:]}")
