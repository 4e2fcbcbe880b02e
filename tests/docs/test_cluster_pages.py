"""What the pages say of a cluster: folders that are applied, objects that are named, parameters of the checklist."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from rendered_manifests import FOLDERS

from covidnet import config

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
WALK = ROOT / "docs" / "kubeflow.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_folders_that_are_applied_and_files_that_are_named_are_there(page: Path) -> None:
    text = page.read_text()
    applied = re.findall(r"kubectl (?:apply|create|kustomize) -k (?:manifests/)?(\S+?)[`\s]", text)
    assert set(applied) <= set(FOLDERS)
    named = re.findall(r"(?<![\w/])(?:manifests|components|pipelines|serving)/[\w./-]+\w", text)
    missing = [name for name in named if not (ROOT / name).exists() and not (ROOT / "manifests" / name).exists()]
    assert not missing


@pytest.mark.parametrize(
    "overrides",
    [
        [words[i + 1] for i, word in enumerate(words) if word == "-S"]
        for text in re.findall(r"`(python -m pipelines [^`\n]+|-S [^`\n]+)`", WALK.read_text())
        for words in [shlex.split(text)]
    ],
    ids=lambda overrides: " ".join(overrides)[:60] or "none",
)
def test_parameters_in_the_walk_and_its_checklist_are_ones_that_a_run_takes(overrides: list[str]) -> None:
    config.load(ROOT / "params.yaml", overrides)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="see https://kubernetes.io/docs/tasks/tools")
def test_what_the_walk_names_is_what_it_applied() -> None:
    text = WALK.read_text()
    walk = text[text.index("## From an empty namespace") : text.index("**Why a model was")]
    objects = set()
    for folder in re.findall(r"kubectl apply -k (\S+)", walk):
        done = subprocess.run(["kubectl", "kustomize", ROOT / folder], capture_output=True, text=True, check=True)
        objects |= {(tree["kind"], tree["metadata"]["name"]) for tree in yaml.safe_load_all(done.stdout)}
    assert ("ServiceAccount", *re.findall(r"--service-account (\S+)", walk)) in objects
    assert ("ServiceAccount", *re.findall(r"--serviceaccount=covidnet:(\S+)", walk)) in objects
    assert ("PersistentVolumeClaim", *re.findall(r"--workspace-claim (\S+)", walk)) in objects
    assert ("InferenceService", *re.findall(r"get isvc (\w+)", walk)) in objects
    assert (
        set(re.findall(r"kubectl -n (\w+)", walk)) == {"covidnet"} == {n for kind, n in objects if kind == "Namespace"}
    )
    made = set(re.findall(r"create secret generic (\S+)", walk))
    assert {*re.findall(r"--key-secret (\S+)", walk), "covidnet-storage"} == made
