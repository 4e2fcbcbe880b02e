"""The winner's maps of the test split: do they depend on what was learned, do they point at lesions, what do they look like.

Torch is needed here; a single map is measured by `cam` and drawn by `overlay`.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from covidnet.config import Config
from covidnet.data import packed as packed_data
from covidnet.evaluation import cam, overlay
from covidnet.evaluation.candidates import Candidate
from covidnet.evaluation.context import Example, Localisation, Sanity
from covidnet.models.blocks import Classifier
from covidnet.training import loop

SANITY_SCANS = 32
GRAD_CAM_SCANS = 16
SWAPS = 5


def explain(model: Classifier, scans: torch.Tensor, batch: int = 16) -> np.ndarray:
    """Class activation maps ``float32 (N, K, d, h, w)`` of ``uint8 (N, D, H, W)``."""
    with torch.inference_mode():
        parts = []
        for part in scans.split(batch):
            parts.append(model.explain(loop.as_input(model, part))[1].float().cpu())
    maps: np.ndarray = torch.cat(parts).numpy()
    return maps


def localise(maps: np.ndarray, winner: Candidate, packed: packed_data.Packed) -> list[Localisation]:
    """How well the maps of right predictions point at the lesions: all, then by class; empty where there are no masks.

    Args:
        maps: ``(N, K, d, h, w)`` of the test split.
    """
    masks, chosen = _with_lesion(winner, packed)
    labels, name = winner.test.labels, "Class activation map"
    groups = {name: chosen} | {
        f"{name}, {label}": [i for i in chosen if labels[i] == k] for k, label in enumerate(winner.test.classes)
    }
    return [
        _pointing([maps[i, labels[i]] for i in members], masks[members], title)
        for title, members in groups.items()
        if members
    ]


def localise_by_gradient(
    model: Classifier, candidate: Candidate, scans: torch.Tensor, packed: packed_data.Packed, name: str
) -> Localisation | None:
    """As `localise`, by the Grad-CAM of a model, for a few scans: it costs a backward pass each.

    Args:
        scans: ``uint8 (N, D, H, W)`` of the test split.
        name: of the model.
    """
    masks, chosen = _with_lesion(candidate, packed)
    chosen = chosen[:: -(-len(chosen) // GRAD_CAM_SCANS)] if chosen else []
    heats = [grad_cam(model, scans[i : i + 1], int(candidate.test.labels[i])) for i in chosen]
    return _pointing(heats, masks[chosen], f"Grad-CAM of {name}") if chosen else None


def grad_cam(model: Classifier, scans: torch.Tensor, label: int) -> np.ndarray:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of one scan at the last feature map, by MONAI: any head will do.

    Args:
        scans: ``uint8 (1, D, H, W)``.
        label: class index.

    Returns:
        ``float32 (d, h, w)``, negative evidence cut off.
    """
    from monai.visualize import GradCAM

    explainer = GradCAM(model, "features", upsampler=lambda spatial: lambda x: x, postprocessing=lambda x: x)
    given = loop.as_input(model, scans).requires_grad_()  # else the hook behind it warns
    heat: np.ndarray = explainer(given, class_idx=label)[0, 0].detach().float().cpu().numpy()
    return heat


def sanity(model: Classifier, maps: np.ndarray, logits: np.ndarray, scans: torch.Tensor, seed: int) -> Sanity:
    """Whether the maps are exact, and whether they change when what was learned is thrown away.

    Args:
        maps: ``(N, K, d, h, w)``.
        logits: ``(N, K)`` of the same scans.
        scans: ``uint8 (N, D, H, W)``.
        seed: of the random weights.
    """
    bias = model.head.bias.detach().float().cpu().numpy()
    exactness = float(np.abs(maps.mean(axis=(2, 3, 4)) + bias - logits).max())
    chosen = np.linspace(0, len(maps) - 1, min(SANITY_SCANS, len(maps))).astype(int)
    untrained = explain(randomised(model, seed), scans[chosen])
    predicted = logits[chosen].argmax(axis=1)
    depth, height, width = scans.shape[1:]
    size = depth, height, width
    pairs = [
        (cam.upsample(maps[i, k], size), cam.upsample(untrained[row, k], size))
        for row, (i, k) in enumerate(zip(chosen, predicted, strict=True))
    ]
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs if _varies(a) and _varies(b)]
    return Sanity(exactness, float(np.mean(correlations)) if correlations else 0.0, len(chosen))


def _varies(heat: cam.Heat) -> bool:
    """A map of one cell is constant but for rounding, and correlates with nothing."""
    return bool(np.ptp(heat) > 1e-5 * np.abs(heat).max())


def randomised(model: Classifier, seed: int) -> Classifier:
    """A copy with every layer as it was before training."""
    torch.manual_seed(seed)
    fresh = copy.deepcopy(model)
    for module in fresh.modules():
        if isinstance(module, nn.Conv3d | nn.Linear | nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
    return fresh.eval()


def _with_lesion(candidate: Candidate, packed: packed_data.Packed) -> tuple[np.ndarray, list[int]]:
    """Masks ``bool (N, D, H, W)`` of the test split, and the scans predicted rightly that have a lesion."""
    if packed.lesions is None:
        return np.zeros((0, 0, 0, 0), bool), []
    masks = packed.lesions[packed.split("test")].astype(bool)
    right = candidate.test.predicted == candidate.test.labels
    return masks, [i for i in range(len(masks)) if right[i] and masks[i].any()]


def _pointing(heats: Sequence[np.ndarray], masks: np.ndarray, name: str) -> Localisation:
    depth, height, width = heats[0].shape
    prior = cam.centre_prior(masks.shape[1:])
    energy = [cam.energy_inside(cam.upsample(h, m.shape), m) for h, m in zip(heats, masks, strict=True)]
    return Localisation(
        scans=len(heats),
        hit_rate=float(np.mean([cam.lesion_hit(h, m) for h, m in zip(heats, masks, strict=True)])),
        centre_hit_rate=float(np.mean([cam.lesion_hit(prior, m, (depth, height, width)) for m in masks])),
        random_hit_rate=float(np.mean([cam.random_hit_rate(m, (depth, height, width)) for m in masks])),
        energy_inside=float(np.mean([e for e in energy if np.isfinite(e)] or [0.0])),
        centre_energy_inside=float(np.mean([cam.energy_inside(prior, m) for m in masks])),
        grid=(depth, height, width),
        name=name,
        swapped_hit_rate=_swapped(heats, masks),
    )


def _swapped(heats: Sequence[np.ndarray], masks: np.ndarray) -> float | None:
    """Hits of the maps of the next few scans on each scan's lesion; None where there is no other scan."""
    shifts = range(1, min(SWAPS, len(heats) - 1) + 1)
    hits = [cam.lesion_hit(heats[(i + shift) % len(heats)], mask) for shift in shifts for i, mask in enumerate(masks)]
    return float(np.mean(hits)) if hits else None


def draw_examples(maps: np.ndarray, winner: Candidate, packed: packed_data.Packed, config: Config) -> list[Example]:
    """Overlays of the surest right and the surest wrong predictions, classes taking turns."""
    probabilities = winner.test.probabilities(winner.temperature)
    predicted, labels = winner.test.predicted, winner.test.labels
    examples = []
    for correct in (True, False):
        members = np.flatnonzero((predicted == labels) == correct)
        for i in _taking_turns(members, labels, probabilities.max(axis=1))[: config.evaluate.overlays]:
            index = packed.split("test")[i]
            name, truth = config.classes[predicted[i]], config.classes[labels[i]]
            text = f"Predicted {name} ({probabilities[i].max():.2f}), true label {truth}"
            heat = cam.upsample(maps[i, predicted[i]], packed.scans.shape[1:])
            mask = None if packed.lesions is None else packed.lesions[index].astype(bool)
            image = overlay.montage(packed.scans[index], heat, text, label=name, mask=mask)
            examples.append(Example(text, overlay.png(image), correct))
    return examples


def _taking_turns(members: np.ndarray, labels: np.ndarray, confidence: np.ndarray) -> list[int]:
    """Members in rounds over the true classes, the surest of each class first."""
    rank: dict[int, int] = {}
    for label in np.unique(labels[members]):
        of_class = members[labels[members] == label]
        rank |= {int(i): place for place, i in enumerate(of_class[np.argsort(-confidence[of_class])])}
    return sorted(rank, key=lambda i: (rank[i], labels[i]))
