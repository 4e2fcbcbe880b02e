"""Every package that is asked for has a floor, a reason to be there, a pin, and here a version that fits."""

from importlib.metadata import PackageNotFoundError, version

import pytest
from packaging.version import Version

from docs.generate.supply import Dependency, dependencies

EVERY = list(dependencies())
NO_FLOOR = {"types-pyyaml"}  # types only


@pytest.mark.parametrize("dependency", EVERY, ids=lambda one: f"{one.name}{f'[{one.extra}]' if one.extra else ''}")
def test_a_dependency_has_a_floor_that_its_pin_and_what_is_installed_keep_to(dependency: Dependency) -> None:
    specifier = dependency.requirement.specifier
    floors = [part for part in specifier if part.operator == ">="]
    assert floors or dependency.name in NO_FLOOR
    assert dependency.pin, f"{dependency.name} has no pin in constraints.txt"
    assert specifier.contains(Version(dependency.pin))
    try:
        installed = version(dependency.name)
    except PackageNotFoundError:
        return
    assert specifier.contains(Version(installed), prereleases=True)


def test_floors_against_known_vulnerabilities_are_there() -> None:
    """The advisories that the project knows of; a floor may rise, never fall below these."""
    fixed_in = {
        "torch": "2.10", "onnx": "1.21", "pydicom": "3.0.2", "monai": "1.5.2", "jinja2": "3.1.6", "kserve": "0.20",
    }  # fmt: skip
    for name, fixed in fixed_in.items():
        for one in (one for one in EVERY if one.name == name):
            assert not one.requirement.specifier.contains(Version(f"{fixed}.dev0"), prereleases=True)
            assert one.requirement.specifier.contains(Version(fixed))
