"""Prepared volumes of the population that the served bundle of the tests knows."""

import numpy as np

SIZE = (16, 64, 64)


def volumes(count: int, seed: int) -> np.ndarray:
    """``uint8 (count, D, H, W)``: levels and contrasts vary from scan to scan."""
    rng = np.random.default_rng(seed)
    level, contrast = rng.normal(110, 15, (count, 1, 1, 1)), rng.uniform(10, 30, (count, 1, 1, 1))
    return np.clip(level + contrast * rng.normal(size=(count, *SIZE)), 0, 255).astype(np.uint8)
