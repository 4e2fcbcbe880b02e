"""What every network here is made of and ends with."""

import torch
from torch import Tensor, nn

from covidnet.models.synchronised import Dropout


class Classifier(nn.Module):
    """A network whose head is global average pooling and one linear layer, so that its class activation map is exact.

    Averaging a class's map and adding its bias gives that class's logit (Zhou et al., CVPR 2016, eq. 1-2).

    Args:
        features: maps ``(B, C, D, H, W)`` to ``(B, F, d, h, w)``.
        head: ``F -> K`` classes.
        dropout: applied to the pooled features while training.
    """

    def __init__(self, features: nn.Module, head: nn.Linear, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = features
        self.dropout = Dropout(dropout)
        self.head = head

    def forward(self, volume: Tensor) -> Tensor:
        """Logits ``(B, K)`` of a float volume ``(B, C, D, H, W)``."""
        return self.classify(self.features(volume))

    def classify(self, maps: Tensor, share: Tensor | None = None) -> Tensor:
        """Logits ``(B, K)`` of feature maps ``(B, F, d, h, w)``.

        Args:
            share: how much each cell counts, ``(B, 1, d, h, w)`` in 0..1; by default all alike.
        """
        if share is None:
            pooled = maps.mean(dim=(2, 3, 4))  # (B, F)
        else:
            pooled = (maps * share).sum(dim=(2, 3, 4)) / share.sum(dim=(2, 3, 4)).clamp(min=1e-6)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits

    def explain(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B, K)`` and their class activation maps ``(B, K, d, h, w)``, from one forward pass."""
        maps = self.features(volume)  # (B, F, d, h, w)
        cam = torch.einsum("bfdhw,kf->bkdhw", maps, self.head.weight)
        return cam.mean(dim=(2, 3, 4)) + self.head.bias, cam


class ScaleInput(nn.Module):
    """``uint8 (B, 1, D, H, W)`` to the float input of the networks: grey levels to -1..1, repeated to ``channels``."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, volume: Tensor) -> Tensor:
        scaled = volume.float() / 127.5 - 1.0
        return scaled.expand(-1, self.channels, -1, -1, -1)
