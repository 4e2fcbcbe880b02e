"""Nothing that a cluster would refuse or silently drop: no unknown field, no wrong type."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from rendered_manifests import Object, Rendered, pods

KUBERNETES = [f"1.{minor}" for minor in range(30, 38)]
Validate = Callable[[Object], None]


@pytest.fixture(scope="module")
def schemas(repository: Path) -> dict[tuple[str, str], jsonschema.Draft202012Validator]:
    """Strict validators of custom resources, by (apiVersion, kind), from the projects' own definitions."""
    folder = repository.parent / "shared" / "crds"
    if not folder.is_dir():
        pytest.skip(f"the custom resource definitions are not here: expected {folder}")
    validators = {}
    for path in folder.glob("*.yaml"):
        definition = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]
        for version in definition["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            key = (f"{definition['group']}/{version['name']}", definition["names"]["kind"])
            validators[key] = jsonschema.Draft202012Validator(schema)
    return validators


def strict(schema: Any) -> Any:
    """The schema with every field that it doesn't name made an error, where it doesn't say that others are welcome."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    closed = isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema
    if closed and "type" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    return made


def distinct(rendered: Rendered) -> list[Object]:
    """Every object once: overlays share most of theirs."""
    found: dict[str, Object] = {repr(tree): tree for objects in rendered.values() for tree in objects}
    return list(found.values())


def is_custom(tree: Object) -> bool:
    return tree["apiVersion"].split("/")[0] in (
        "serving.kserve.io",
        "trainer.kubeflow.org",
        "monitoring.coreos.com",
    )


def test_custom_resources_have_no_unknown_field(rendered: Rendered, schemas: dict[tuple[str, str], Any]) -> None:
    custom = [tree for tree in distinct(rendered) if is_custom(tree)]
    assert {tree["kind"] for tree in custom} >= {"InferenceService", "ServingRuntime", "TrainingRuntime", "TrainJob"}
    for tree in custom:
        errors = [error.message for error in schemas[tree["apiVersion"], tree["kind"]].iter_errors(tree)]
        assert not errors, f"{tree['kind']} {tree['metadata']['name']}: {errors}"


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("InferenceService", ("spec", "predictor", "minReplica"), 1),
        ("InferenceService", ("spec", "predictor", "model", "storageURI"), "pvc://x/y"),
        ("InferenceService", ("spec", "predictor", "minReplicas"), "two"),
        ("ServingRuntime", ("spec", "containers", 0, "readinessProb"), {}),
        ("TrainJob", ("spec", "trainer", "numNode"), 2),
    ],
)
def test_a_misspelled_field_is_found(
    rendered: Rendered, schemas: dict[tuple[str, str], Any], kind: str, place: tuple[str | int, ...], value: object
) -> None:
    tree = copy.deepcopy(next(tree for tree in distinct(rendered) if tree["kind"] == kind))
    inner = tree
    for key in place[:-1]:
        inner = inner[key]  # type: ignore[index]
    inner[place[-1]] = value  # type: ignore[index]
    assert list(schemas[tree["apiVersion"], kind].iter_errors(tree))


@pytest.mark.parametrize("version", KUBERNETES)
def test_built_in_kinds_hold_for_kubernetes(rendered: Rendered, version: str) -> None:
    """Pods among them, as KServe and Trainer put them together."""
    known = {kubernetes_validate.utils.major_minor(one) for one in kubernetes_validate.utils.all_versions()}
    assert version in known  # of any other, the package would take the nearest
    trees = [tree for tree in distinct(rendered) if not is_custom(tree)]
    specs: dict[str, Object] = {repr(spec): spec for objects in rendered.values() for spec in pods(objects)}
    for spec in specs.values():
        trees.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "covidnet"}, "spec": spec})
    for tree in trees:
        kubernetes_validate.validate(tree, version, strict=True)


def test_a_misspelled_field_of_a_built_in_kind_is_found() -> None:
    policy = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "x"}, "spec": {"max": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(policy, KUBERNETES[-1], strict=True)
