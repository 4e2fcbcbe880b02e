"""KFP components, one file per stage, and the image that they run in."""

import os

# Read when the graph is compiled: COVIDNET_IMAGE=registry.example/covidnet3d@sha256:... python -m pipelines compile
IMAGE = os.environ.get("COVIDNET_IMAGE", "covidnet3d-stages:0.1.0")
