"""Every folder under `manifests/` that can be applied, rendered by `kubectl kustomize`."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from rendered_manifests import FOLDERS, MANIFESTS, Object, Rendered


@pytest.fixture(scope="session")
def rendered() -> Rendered:
    """Objects by folder."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here: see https://kubernetes.io/docs/tasks/tools")
    return {folder: list(_render(MANIFESTS / folder)) for folder in FOLDERS}


def _render(folder: Path) -> list[Object]:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))
