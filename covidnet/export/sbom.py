"""What a serving environment is made of: a CycloneDX 1.6 bill of materials of the packages installed here.

Run inside the image (or in an environment equal to it): the versions are those that are really there.
"""

import json
import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from covidnet.errors import UsageError

_NAME = re.compile(r"[-_.]+")


def bill_of_materials(root: str = "covidnet3d", extras: tuple[str, ...] = ("serving",)) -> str:
    """CycloneDX JSON of a package and of everything that it and its ``extras`` depend on, as far as it is installed.

    The same packages give the same text: no serial number, no time.

    Raises:
        UsageError: cyclonedx-python-lib or the package isn't installed.
    """
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
        from packageurl import PackageURL
    except ModuleNotFoundError:
        raise UsageError("a bill of materials needs cyclonedx-python-lib; pip install 'covidnet3d[signing]'") from None
    graph = dict(_closure(root, extras))
    components = {
        name: Component(
            type=ComponentType.APPLICATION if name == root else ComponentType.LIBRARY,
            name=found.metadata["Name"],
            version=found.version,
            purl=PackageURL("pypi", None, name, found.version),
            bom_ref=name,
        )
        for name, (found, _) in graph.items()
    }
    bom = Bom(components=[component for name, component in components.items() if name != root])
    bom.metadata.component = components[root]
    for name, (_, needs) in graph.items():
        bom.register_dependency(components[name], [components[need] for need in needs if need in components])
    return _without_chance(JsonV1Dot6(bom).output_as_string())


def _closure(root: str, extras: tuple[str, ...]) -> Iterator[tuple[str, tuple[Distribution, list[str]]]]:
    """Package name to its distribution and the names that it needs, root first, as far as they are installed."""
    waiting: list[tuple[str, frozenset[str]]] = [(root, frozenset(extras))]
    seen: set[tuple[str, frozenset[str]]] = set()
    found: dict[str, tuple[Distribution, list[str]]] = {}
    while waiting:
        name, wanted = waiting.pop(0)
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            package = distribution(name)
        except PackageNotFoundError:
            if name == root:
                raise UsageError(
                    f"{root} is not installed as a package here; pip install it, in the image say"
                ) from None
            continue  # for another platform, or left out of a slim image
        needs = _needs(package, wanted)
        earlier = found.get(name, (package, []))[1]
        found[name] = (package, sorted({*earlier, *(need for need, _ in needs)}))
        waiting += needs
    yield from found.items()


def _needs(package: Distribution, extras: frozenset[str]) -> list[tuple[str, frozenset[str]]]:
    """Names and extras of what a package needs in this environment."""
    from packaging.requirements import Requirement

    needs = []
    for text in package.requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            needs.append((_NAME.sub("-", requirement.name).lower(), frozenset(requirement.extras)))
    return needs


def _without_chance(text: str) -> str:
    """The document without its random serial number and its time, so that the same packages give the same bytes."""
    tree = json.loads(text)
    tree.pop("serialNumber", None)
    tree["metadata"].pop("timestamp", None)
    return json.dumps(tree, indent=2, sort_keys=True) + "\n"
