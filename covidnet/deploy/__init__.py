"""From a bundle to a served model on KServe: canary, smoke test, promotion in steps or a way back."""
