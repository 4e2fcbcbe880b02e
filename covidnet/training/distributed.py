"""Data-parallel training: the same verbs under `torchrun`, each process with its share of every batch.

    torchrun --nproc-per-node 2 --no-python covidnet search

Every process holds the packed dataset (it is small), draws the same path, the same batch and the same augmentation from
(seed, step), and computes on its rows of it; gradients are averaged. So nothing has to be scattered, a path's unused
weights cost nothing, and the result is that of one process with the same batch. Process 0 alone writes files.
"""

import atexit
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from covidnet import folder
from covidnet.errors import UsageError
from covidnet.models.synchronised import shared


def device() -> torch.device:
    """This process's device; joins the group that `torchrun` started, where there is one.

    Raises:
        UsageError: more processes on this machine than GPUs.
    """
    gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
    if gpus and local >= gpus:
        raise UsageError(
            f"torchrun started process {local + 1} on this machine, which has {gpus} GPUs: one each at most"
        )
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if gpus else "gloo")
        atexit.register(dist.destroy_process_group)
    if gpus:
        torch.cuda.set_device(local)
        torch.set_num_threads(1)  # the host is left with handfuls of numbers, and waking threads for them takes longer
    return torch.device("cuda", local) if gpus else torch.device("cpu")


def check_batch(batch: int, key: str) -> None:
    """Refuse a batch that can't be shared evenly, since the mean of the shares would not be the batch's mean."""
    if shared() and batch % dist.get_world_size():
        raise UsageError(
            f"{key} is {batch}, which {dist.get_world_size()} processes can't share evenly; make it a multiple of them"
        )


def share(batch: Tensor) -> Tensor:
    """This process's rows of a batch."""
    return batch.chunk(dist.get_world_size())[dist.get_rank()] if shared() else batch


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average over processes what the backward pass left; all have gradients for the same weights, those of one path."""
    if not shared():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    # one message instead of hundreds
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).to(_message_device())
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, averaged in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(averaged.view_as(gradient))


def mean(value: Tensor) -> Tensor:
    """Mean over processes of a scalar."""
    total = value.detach().clone()
    if shared():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total


def anyone(asked: bool) -> bool:
    """Whether any process was asked to stop: all stop after the same step."""
    return bool(mean(torch.tensor(float(asked), device=_message_device()))) if shared() else asked


def from_first(value: Any) -> Any:
    """What process 0 holds, in all of them."""
    if not shared():
        return value
    box = [value]
    dist.broadcast_object_list(box, device=_message_device())
    return box[0]


@contextmanager
def write(out: Path, stage: str, parameters: Mapping[str, Any], inputs: Mapping[str, Path]) -> Iterator[Path | None]:
    """`covidnet.folder.write` for a stage that may run in several processes: what the others write is thrown away.

    Yields:
        the folder to write into, or None when ``out`` is complete for the same parameters and inputs.
    """
    device()  # joins the group
    if not shared() or dist.get_rank() == 0:
        with folder.write(out, stage, parameters, inputs) as work:
            yield work if from_first(work is not None) else None
    elif from_first(None):
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
    else:
        yield None


def _message_device() -> torch.device:
    return device() if torch.cuda.is_available() else torch.device("cpu")
