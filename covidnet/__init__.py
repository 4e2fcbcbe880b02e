"""Automated design of small, explained 3D classifiers for chest CT (after He et al., AAAI 2021)."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("covidnet3d")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"
