"""Straight-through Gumbel-Softmax over a block's candidates, in float.

Jang et al., ICLR 2017; GDAS, Dong & Yang, CVPR 2019.
"""

import torch
from torch import Tensor


def sample(alpha: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one candidate per block.

    Args:
        alpha: ``(blocks, operations)`` architecture parameters.
        temperature: of the softmax; low is close to one-hot.
        generator: source of the Gumbel noise, on the CPU, so that every device and rank draws the same path.

    Returns:
        path ``(blocks,)`` int64 indices, and gates ``(blocks,)``: each is exactly 1 in the forward pass and carries the
        gradient of its candidate's softmax weight, 1 + p - stop(p). A boolean mask instead would cut that gradient.
    """
    noise = torch.rand(alpha.shape, generator=generator).clamp_(1e-9, 1 - 1e-7).to(alpha)
    scores = torch.log_softmax(alpha, dim=1) - torch.log(-torch.log(noise))
    weights = torch.softmax(scores / temperature, dim=1)  # (blocks, operations)
    path = scores.argmax(dim=1)
    chosen = weights.gather(1, path[:, None]).squeeze(1)
    return path, 1.0 + chosen - chosen.detach()


def entropy(alpha: Tensor) -> float:
    """Mean entropy of the blocks' candidate distributions, in nats; log(operations) when nothing is decided."""
    log_p = torch.log_softmax(alpha.detach(), dim=1)
    return float(-(log_p.exp() * log_p).sum(dim=1).mean())


def anneal(temperature: tuple[float, float], progress: float) -> float:
    """Geometric schedule from the first to the last temperature, ``progress`` in 0..1."""
    first, last = temperature
    return float(first * (last / first) ** min(max(progress, 0.0), 1.0))
