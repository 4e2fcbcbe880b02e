"""One training loop for the found networks and the baselines: AdamW, one-cycle rate, best of a few validations."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from covidnet.config import Augment, Training
from covidnet.data.augment import Pasted, augment, cutmix, mixup
from covidnet.errors import CovidnetError
from covidnet.models.blocks import Classifier
from covidnet.progress import progress
from covidnet.training import distributed, graphs
from covidnet.training.checkpoint import Checkpoint, graceful, stop
from covidnet.training.logs import Log, silent
from covidnet.training.volumes import Volumes, generator

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What training left behind; the model itself holds the best weights.

    Args:
        steps: weight updates.
        scans_seen: scans shown in all, repetitions counted.
        history: per validation pass: step, lr, training loss since the last pass, validation loss and accuracy.
        best: the entry of ``history`` whose weights were kept.
        validation_logits: ``float32 (N, K)`` of those weights.
    """

    steps: int
    scans_seen: int
    history: list[dict[str, float]]
    best: dict[str, float]
    validation_logits: np.ndarray


def planned_scans(settings: Training, train_scans: int, macs: int) -> int:
    """Scans that a model of ``macs`` per forward pass may see: equal epochs, or equal multiply-accumulates.

    A budget in multiply-accumulates counts forward passes; a backward pass costs about twice that for every model.
    """
    scans = settings.tmacs * 1e12 / macs if settings.budget == "compute" else settings.epochs * train_scans
    return max(settings.batch, round(scans))


def fit(
    model: Classifier,
    train: Volumes,
    validation: Volumes,
    settings: Training,
    augmentation: Augment,
    *,
    scans: int,
    seed: int,
    work: Path,
    title: str,
    log: Log = silent,
) -> Fitted:
    """Train a model on its device and leave its best weights in it.

    The best weights are those with the lowest validation loss among ``settings.evaluations`` evenly spaced passes.

    Args:
        model: on the device of the volumes.
        scans: scans to see in all.
        work: folder for the checkpoint; a run of the same stage goes on from there.
        title: shown beside the progress.
        log: takes the figures of every step.

    Raises:
        CovidnetError: the loss diverged, or the run was interrupted (its state is saved).
    """
    batch = min(settings.batch, len(train))
    distributed.check_batch(batch, "training.batch")
    steps = max(1, scans // batch)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step / steps))
    marks = evaluation_steps(steps, affordable(settings.evaluations, scans, len(validation)))
    state: dict[str, Any] = {"step": 0, "loss_sum": 0.0, "loss_steps": 0, "history": [], "best": None}
    checkpoint = Checkpoint(work / "checkpoint.pt")
    if saved := distributed.from_first(checkpoint.load()):
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        state = saved["state"]

    def save() -> None:
        checkpoint.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "state": state,
            }
        )

    half = mixed_precision(settings, train.scans.device)
    parts = [([model.features.train()], as_input(model, train.scans[:batch]))] if train.scans.is_cuda else []
    with graphs.recorded(parts, half), graceful() as interrupted, progress(title, steps, state["step"]) as advance:
        for step in range(state["step"], steps):
            model.train()
            volumes, labels = train.batch(step, batch, seed)
            volume = augment(volumes, augmentation, generator(seed, 1, step))  # (B, 1, D, H, W)
            rng = generator(seed, 3, step)
            volume, labels = mixup(volume, labels, model.head.out_features, augmentation.mixup, rng)
            volume, pasted = cutmix(volume, labels, settings.cutmix, rng)
            loss = update(model, volume, labels, optimizer, settings, generator(seed, 2, step), pasted)
            schedule.step()
            if not math.isfinite(loss):
                raise CovidnetError(
                    f"{title}: the loss became {loss} at step {step}; lower training.lr ({settings.lr}) "
                    "or training.grad_clip, then run again"
                )
            state["step"] = step + 1
            state["loss_sum"] += loss
            state["loss_steps"] += 1
            figures = {"train_loss": loss}
            if step + 1 in marks:
                _evaluate(model, validation, optimizer, state)
                figures |= {f"validation_{name}": state["history"][-1][name] for name in ("loss", "accuracy")}
            log(step, figures)
            advance(
                note=f"loss {loss:.3f}"
                + (f", validation accuracy {state['history'][-1]['accuracy']:.3f}" if state["history"] else "")
            )
            if distributed.anyone(interrupted()):
                save()
                raise stop(title)
            if checkpoint.due():
                save()
    model.load_state_dict(state["best"]["model"])
    checkpoint.remove()
    best = state["best"]
    return Fitted(steps, steps * batch, state["history"], best["entry"], best["logits"].numpy())


def update(
    model: Classifier,
    volume: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    settings: Training,
    rng: torch.Generator,
    pasted: Pasted | None = None,
) -> float:
    """One weight update on this process's share of a batch; returns the loss of all of it."""
    volume, labels = distributed.share(volume), distributed.share(labels)
    if pasted is not None:
        pasted = Pasted(distributed.share(pasted.inside), distributed.share(pasted.labels))
    optimizer.zero_grad(set_to_none=True)  # before the activations come
    torch.manual_seed(rng.initial_seed())  # dropout draws from the global generator
    with torch.autocast(volume.device.type, torch.bfloat16, enabled=mixed_precision(settings, volume.device)):
        maps = model.features(with_channels(model, layout(volume)))
        loss = loss_of(model, maps, labels, settings.label_smoothing, pasted)
    loss.backward()
    distributed.average_gradients(model.parameters())
    nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
    optimizer.step()
    return float(distributed.mean(loss))


def loss_of(
    model: Classifier, maps: Tensor, labels: Tensor, label_smoothing: float, pasted: Pasted | None = None
) -> Tensor:
    """Cross-entropy; of scans with a box of another one, that of each part with its own label, weighted by volume.

    What is pooled over a part has to speak for that part's scan, whatever the rest shows. So evidence stays where the
    disease is, and class activation maps point at it, more than CutMix's mixed label alone makes them (docs/evidence.md).

    Args:
        maps: last feature maps ``(B, F, d, h, w)``.
        labels: ``int64 (B,)``, or targets ``float32 (B, K)``.
        pasted: the boxes.
    """
    if pasted is None:
        return nn.functional.cross_entropy(model.classify(maps).float(), labels, label_smoothing=label_smoothing)
    box = pasted.inside[:, None].float()
    depth, height, width = maps.shape[2:]
    cells = nn.functional.adaptive_avg_pool3d(box, (depth, height, width))  # share of each cell that the box covers
    volume = box.mean(dim=(1, 2, 3, 4))
    loss = torch.zeros((), device=maps.device)
    for weight, share, target in ((volume, cells, pasted.labels), (1 - volume, 1 - cells, labels)):
        logits = model.classify(maps, share).float()
        each = nn.functional.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")
        loss = loss + (weight * each).mean()
    return loss


def logits(model: nn.Module, volumes: Volumes, batch: int = 32) -> np.ndarray:
    """Logits ``float32 (N, K)`` of unaugmented scans, in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        parts = [model(as_input(model, scans)).float().cpu() for scans in volumes.scans.split(batch)]
    array: np.ndarray = torch.cat(parts).numpy()
    return array


def place(model: Network, device: torch.device) -> Network:
    """Move a network to the device, weights in the memory layout of `layout`."""
    return model.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]


def layout(volume: Tensor) -> Tensor:
    """Channels-last memory, in which 3D convolutions are several times faster on CPU."""
    return volume.contiguous(memory_format=torch.channels_last_3d)


def as_input(model: nn.Module, scans: Tensor) -> Tensor:
    """Unaugmented scans ``uint8 (B, D, H, W)`` as what the model takes, ``float32 (B, C, D, H, W)`` in -1..1."""
    return with_channels(model, layout(scans[:, None].float() / 127.5 - 1))


def with_channels(model: nn.Module, volume: Tensor) -> Tensor:
    """Repeat the one grey channel to what the model's first convolution expects."""
    first = next(m for m in model.modules() if isinstance(m, nn.Conv3d))
    return volume.expand(-1, first.in_channels, -1, -1, -1)


def mixed_precision(settings: Training, device: torch.device) -> bool:
    """bfloat16 where asked for, or where ``auto`` finds a GPU."""
    return settings.precision == "bfloat16" or (settings.precision == "auto" and device.type == "cuda")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for kernels and matrices, none for biases and normalisation."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def one_cycle(progress: float, warmup: float = 0.1) -> float:
    """Factor of the learning rate: linear rise, then a cosine to zero."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def affordable(evaluations: int, scans: int, validation_scans: int) -> int:
    """Validation passes that cost at most a third of the training (a backward pass costs two forward ones); at least one."""
    return max(1, min(evaluations, scans // max(validation_scans, 1)))


def evaluation_steps(steps: int, evaluations: int) -> set[int]:
    """Evenly spaced steps after which to validate; the last step is always one."""
    return {math.ceil(steps * (i + 1) / evaluations) for i in range(evaluations)}


def _evaluate(model: Classifier, validation: Volumes, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    scores = torch.from_numpy(logits(model, validation))
    labels = validation.labels.cpu()
    loss = float(nn.functional.cross_entropy(scores, labels))
    entry = {
        "step": state["step"],
        "lr": optimizer.param_groups[0]["lr"],
        "train_loss": state["loss_sum"] / state["loss_steps"],
        "loss": loss,
        "accuracy": float((scores.argmax(1) == labels).float().mean()),
    }
    state["history"].append(entry)
    state["loss_sum"], state["loss_steps"] = 0.0, 0
    if state["best"] is None or loss < state["best"]["entry"]["loss"]:
        weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        state["best"] = {"entry": entry, "model": weights, "logits": scores}
