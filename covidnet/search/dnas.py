"""Differentiable architecture search: one sampled path a step, two updates an iteration.

    warm-up   paths drawn uniformly as far as the budget allows, weights only
    joint     weights on one half of the training patients, alpha on the other (He et al., AAAI 2021, §3.3)
    result    covidnet.search.result: argmax and its neighbours, judged with re-estimated normalisation

What the authors' released code gets wrong and this doesn't: the gate is float, so alpha gets its gradient;
temperature is annealed; the result is no random draw.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from covidnet.config import Augment, Search
from covidnet.data.augment import augment, mixup
from covidnet.errors import CovidnetError
from covidnet.models.supernet import Supernet
from covidnet.progress import progress, tell
from covidnet.search import result
from covidnet.search.budget import BlockChoice, Costing
from covidnet.search.collapse import Watch
from covidnet.search.gumbel import anneal, entropy, sample
from covidnet.training import distributed, graphs
from covidnet.training.checkpoint import Checkpoint, graceful, stop
from covidnet.training.logs import Log, silent
from covidnet.training.loop import as_input, layout, one_cycle, parameter_groups
from covidnet.training.volumes import Volumes, generator


@dataclass(frozen=True, slots=True)
class Searched:
    """What the search leaves; the supernet holds the trained weights.

    Args:
        candidates: architectures within budget, one of which is the result.
        alpha: ``(blocks, operations)`` architecture parameters; zeros where a population evolved instead.
        history: a few hundred rows of what happened: step, phase, temperature, entropy, losses, expected size, health.
        probabilities: ``(rows, blocks, operations)`` that paths were drawn from, a row of ``history`` each.
        warmup_accuracy: what ``after_warmup`` returned, before the architecture moved.
        collapse: step and reason, where the architecture went back to its last healthy state.
    """

    candidates: list[BlockChoice]
    alpha: Tensor
    history: list[dict[str, Any]]
    probabilities: Tensor
    warmup_accuracy: float
    collapse: dict[str, Any] | None


def search(run: "Run", *, work: Path, title: str, after_warmup: Callable[[], float], log: Log = silent) -> Searched:
    """Train the supernet's weights and search the architecture, from where a checkpoint left it.

    Args:
        run: at its start; on the device of its volumes.
        work: folder for the checkpoint; a run of the same stage goes on from there.
        after_warmup: judges the supernet when the warm-up ends.
        log: takes the figures of every step.

    Raises:
        CovidnetError: the loss diverged, or the run was interrupted (its state is saved).
    """
    settings = run.settings
    for key, batch in run.batches.items():
        distributed.check_batch(batch, key)
    checkpoint = Checkpoint(work / "checkpoint.pt")
    if saved := distributed.from_first(checkpoint.load()):
        run.load_state(saved)
    with graphs.recorded(run.parts(), True), graceful() as interrupted, progress(title, run.total, run.step) as advance:
        while run.step < run.total:
            if run.step == run.warmup_steps and run.warmup_accuracy is None:
                run.warmup_accuracy = after_warmup()
            healthy = run.watch.collapse is None
            row = run.iterate()
            if healthy and run.watch.collapse is not None:
                tell(f"{title}: {run.collapsed()}")
            if not math.isfinite(row["weight_loss"]) or not bool(torch.isfinite(run.alpha).all()):
                raise CovidnetError(
                    f"{title}: the search diverged at step {row['step']}; lower search.lr ({settings.lr}) "
                    f"or search.alpha_lr ({settings.alpha_lr}), then run again"
                )
            log(row["step"], {name: value for name, value in row.items() if isinstance(value, float)})
            advance(
                note=f"{row['phase']}, loss {row['weight_loss']:.2f}, {row['expected_size_mib']:.1f} MiB expected, "
                f"kernels {run.kernels()}"
            )
            if distributed.anyone(interrupted()):
                checkpoint.save(run.state())
                raise stop(title)
            if checkpoint.due():
                checkpoint.save(run.state())
    checkpoint.save(run.state())  # selection comes after; a kill there must not cost the search
    return Searched(
        run.candidates(),
        run.alpha.detach().cpu(),
        run.history,
        torch.stack(run.probabilities),
        float(run.warmup_accuracy or 0.0),
        run.watch.collapse,
    )


class Run:
    """The state of a search and one iteration of it; what moves the architecture is for a subclass to change.

    Args:
        supernet: on the device of the volumes.
        costing: of the supernet's space at the search's input size.
        weight_half: scans of one half of the training patients.
        alpha_half: scans of the other half.
        seed: of all that is drawn.
    """

    phase = "joint"  # what the history calls all after the warm-up

    def __init__(
        self,
        supernet: Supernet,
        costing: Costing,
        weight_half: Volumes,
        alpha_half: Volumes,
        settings: Search,
        augmentation: Augment,
        seed: int,
    ) -> None:
        self.supernet, self.costing, self.settings, self.augmentation = supernet, costing, settings, augmentation
        self.weight_half, self.alpha_half, self.seed = weight_half, alpha_half, seed
        self.batches = {
            "search.batch": settings.batch,
            "search.alpha_batch": min(settings.alpha_batch or settings.batch, settings.batch),
        }
        self.step, self.warmup_steps, self.total = 0, settings.warmup_steps, settings.warmup_steps + settings.steps
        self.history: list[dict[str, Any]] = []
        self.probabilities: list[Tensor] = []
        self.warmup_accuracy: float | None = None
        self.weights = list(supernet.parameters())
        blocks, operations = len(supernet.space.block_widths), len(supernet.space.operations)
        # on the CPU with all that is drawn from it: a few hundred numbers, and a GPU isn't waited for
        self.alpha = nn.Parameter(torch.zeros(blocks, operations))
        self.weight_optimizer = torch.optim.AdamW(
            parameter_groups(supernet, settings.weight_decay), lr=settings.lr, fused=True
        )
        self.alpha_optimizer = torch.optim.Adam([self.alpha], lr=settings.alpha_lr, betas=(0.5, 0.999))
        self.scores = costing.within(self.alpha.detach())  # of the distribution that paths are drawn from
        chance = float(alpha_half.labels.bincount().max() / len(alpha_half))
        self.watch = Watch(costing.costs, torch.softmax(self.scores, dim=1), chance, self.batches["search.alpha_batch"])

    def iterate(self) -> dict[str, Any]:
        """One weight update and, after the warm-up, whatever moves the architecture."""
        settings, moving = self.settings, self.step >= self.settings.warmup_steps
        temperature = anneal(settings.temperature, (self.step - settings.warmup_steps) / settings.steps)
        for group in self.weight_optimizer.param_groups:
            # half the cosine: paths sampled late still have to be trained, so the rate never reaches zero
            group["lr"] = settings.lr * one_cycle(0.75 * self.step / self.total, warmup=0.05)
        row: dict[str, Any] = {
            "step": self.step,
            "phase": self.phase if moving else "warm-up",
            "temperature": temperature,
            "weight_loss": None,
            "alpha_loss": None,
            "path_accuracy": None,
        }
        weight_loss = self._update_weights(self._drawn(temperature if moving else 1.0))
        if moving:
            row |= self._move(temperature)
        row["weight_loss"] = float(weight_loss)  # both updates are on their way before this waits for a GPU
        probabilities = torch.softmax(self.scores, dim=1)
        row["entropy"] = entropy(self.scores)
        row["expected_size_mib"] = float(self.costing.costs.size_mib(probabilities))
        row["expected_macs"] = float(self.costing.costs.expected_macs(probabilities))
        self.step += 1
        if self.step % max(1, self.total // 400) == 0 or self.step == self.total:
            self.history.append(row)
            self.probabilities.append(probabilities.cpu())
        return row

    def _move(self, temperature: float) -> dict[str, Any]:
        """An architecture update, as long as the search is healthy; returns what the history tells of it."""
        if self.watch.collapse is not None:
            return {}
        loss, accuracy = self._update_alpha(temperature)
        return {"alpha_loss": float(loss), "path_accuracy": self._watch(float(accuracy))}

    def _watch(self, accuracy: float) -> float | None:
        """Look at the search's health, and where it has collapsed go back to the last healthy alpha.

        Returns:
            accuracy of the recent paths, see `Health`.
        """
        alpha = self.alpha.detach()
        self.scores = self.costing.within(alpha)
        health = self.watch.look(torch.softmax(self.scores, dim=1), accuracy)
        self.watch.judge(health, alpha, self.step)
        if self.watch.collapse is not None and self.watch.healthy is not None:
            alpha.copy_(self.watch.healthy)
            self.scores = self.costing.within(alpha)
        return health.accuracy

    def collapsed(self) -> str:
        """What to tell the user of a collapse."""
        found = self.watch.collapse or {}
        return (
            f"the search collapsed at step {found['step']}: {found['reason']}. The architecture is back where it was last "
            "healthy and stays there; for a better one give the search more scans or more search.warmup_steps, or lower "
            f"search.alpha_lr ({self.settings.alpha_lr})"
        )

    def kernels(self) -> str:
        """Kernel of each block's most probable operation, a word per layer: ``3357 7-53 ...``, - for identity."""
        operations = self.supernet.space.operations
        names = [str(operations[i].kernel or "-") for i in self.scores.argmax(dim=1).tolist()]
        return " ".join("".join(layer) for layer in self.supernet.space.layers(names))

    def candidates(self) -> list[BlockChoice]:
        """Architectures to choose the result from."""
        return result.candidates(
            self.alpha.detach().cpu(), self.costing, self.settings.candidates, generator(self.seed, 11)
        )

    def _drawn(self, temperature: float) -> BlockChoice:
        """The path of this step's weight update; while warming up it is drawn as uniformly as the budget allows."""
        path, _ = sample(self.scores, temperature, generator(self.seed, 0, self.step))
        return tuple(path.tolist())

    def _update_weights(self, path: BlockChoice) -> Tensor:
        """Update the weights of a path.

        Returns:
            the loss.
        """
        drawn = self.weight_half.batch(self.step, self.batches["search.batch"], self.seed + 1)
        self.weight_optimizer.zero_grad(set_to_none=True)  # before the activations come
        loss, _ = self._loss(*drawn, 1, path, None)
        loss.backward()
        distributed.average_gradients(self.weights)
        nn.utils.clip_grad_norm_(self.weights, 5.0)
        self.weight_optimizer.step()
        return distributed.mean(loss)

    def _update_alpha(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Update alpha on the other patients; weights are frozen, so no weight gradient is computed.

        Returns:
            loss and accuracy of the path on its batch.
        """
        scores = self.scores + (self.alpha - self.alpha.detach())  # as if the multipliers of the budget were constants
        path, gates = sample(scores, temperature, generator(self.seed, 2, self.step))
        for weight in self.weights:
            weight.requires_grad_(False)
        drawn = self.alpha_half.batch(self.step, self.batches["search.alpha_batch"], self.seed + 3)
        loss, accuracy = self._loss(*drawn, 3, tuple(path.tolist()), gates)
        self.alpha_optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:  # a tight budget draws paths of identities alone, which no gate takes part in
            loss.backward()
            distributed.average_gradients([self.alpha])
            self.alpha_optimizer.step()
        for weight in self.weights:
            weight.requires_grad_(True)
        return distributed.mean(loss), distributed.mean(accuracy)

    def _loss(
        self, scans: Tensor, labels: Tensor, stream: int, path: BlockChoice, gates: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of a path on this process's share of a batch, augmented with this stream's draws."""
        volume = augment(scans, self.augmentation, generator(self.seed, stream, self.step))  # (B, 1, D, H, W)
        classes = self.supernet.head.out_features
        volume, labels = mixup(
            volume, labels, classes, self.augmentation.mixup, generator(self.seed, stream + 4, self.step)
        )
        volume, labels = layout(distributed.share(volume)), distributed.share(labels)
        device_type = volume.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=device_type == "cuda"):
            logits = self.supernet(
                volume.expand(-1, self.supernet.channels, -1, -1, -1),
                path,
                None if gates is None else gates.to(volume.device),
            )
        loss = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=self.settings.label_smoothing)
        heaviest = labels if labels.ndim == 1 else labels.argmax(dim=1)  # of a mixed scan's labels
        return loss, (logits.detach().argmax(dim=1) == heaviest).float().mean()

    def parts(self) -> Iterator[graphs.Part]:
        """What of the supernet to run as CUDA graphs; nothing elsewhere."""
        for batch in set(self.batches.values()):
            scans, _ = self.weight_half.batch(0, batch, self.seed)
            if scans.is_cuda:
                yield from graphs.parts_of(self.supernet, as_input(self.supernet, scans))

    def state(self) -> dict[str, Any]:
        """Everything that the next iteration depends on; random draws are functions of (seed, step)."""
        return {
            "step": self.step,
            "history": self.history,
            "probabilities": self.probabilities,
            "watch": self.watch.state(),
            "warmup_accuracy": self.warmup_accuracy,
            "supernet": self.supernet.state_dict(),
            "alpha": self.alpha.detach(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.step, self.history = state["step"], state["history"]
        self.probabilities = state["probabilities"]
        self.watch.load_state(state["watch"])
        self.warmup_accuracy = state["warmup_accuracy"]
        self.supernet.load_state_dict(state["supernet"])
        self.alpha.data.copy_(state["alpha"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.scores = self.costing.within(self.alpha.detach())
