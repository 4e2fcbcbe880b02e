"""The Kubeflow pipeline: `python -m pipelines compile | run | submit`."""
