"""The handler that `covidnet export --torchserve` packs for TorchServe."""
