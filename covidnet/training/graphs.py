"""CUDA graphs for training: the kernels of a module's two passes recorded once and launched together ever after.

These networks are so small that a GPU is done long before its host has launched the thousand kernels of a step one by one.
Recorded, a module takes two launches, whatever is in it; numbers stay what they were.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from covidnet.models.supernet import Supernet
from covidnet.models.synchronised import shared
from covidnet.progress import tell

Part = tuple[Sequence[nn.Module], Tensor]


@contextmanager
def recorded(parts: Iterable[Part], half: bool) -> Iterator[None]:
    """Run modules as CUDA graphs while training; in evaluation mode they run as always.

    Nothing is recorded in data-parallel training, and where recording fails, for want of memory say, all goes on without.

    Args:
        parts: modules of which one at most is used in a step, for they share memory, and a sample of their input on the
            GPU, in shape, type, and whether it needs a gradient.
        half: record under bfloat16 autocast.
    """
    done: list[nn.Module] = []
    if not shared():
        try:
            for modules, sample in parts:
                pool = torch.cuda.graph_pool_handle()
                for module in modules:
                    _record(module, sample, half, pool)
                    done.append(module)
        except RuntimeError as error:
            tell(f"training goes on without CUDA graphs: {str(error).splitlines()[0]}")
            _release(done)
            torch.cuda.empty_cache()
    try:
        with warnings.catch_warnings():
            # gradients come from the stream of the recording: said once a run, and only to mean some waiting
            warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
            yield
    finally:
        _release(done)


def parts_of(supernet: Supernet, volume: Tensor) -> Iterator[Part]:
    """What of a supernet is worth recording: all but the head.

    Args:
        volume: a batch ``(B, C, D, H, W)`` of its input on the GPU.
    """
    inputs: dict[nn.Module, Tensor] = {}
    fixed = [supernet.stem, *supernet.calibrations, supernet.last]
    hooks = [
        module.register_forward_pre_hook(lambda m, given: inputs.update({m: given[0].detach()}))
        for module in (*fixed, *supernet.blocks)
    ]
    supernet.eval()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        supernet(volume, [0] * len(supernet.blocks))
    supernet.train()
    for hook in hooks:
        hook.remove()
    for module in fixed:
        yield [module], inputs[module].requires_grad_(module is not supernet.stem)
    for block in supernet.blocks:
        assert isinstance(block.candidates, nn.ModuleDict)
        yield list(block.candidates.children()), inputs[block].requires_grad_()


def _record(module: nn.Module, sample: Tensor, half: bool, pool: Any) -> None:
    """Replace the module's `forward` for inputs of the sample's shape.

    Recording runs it a few times, so that its statistics are put back afterwards.
    """
    before = module.forward
    kept = [buffer.clone() for buffer in module.buffers()]
    given = sample.detach().clone(memory_format=torch.channels_last_3d).requires_grad_(sample.requires_grad)
    with torch.autocast("cuda", torch.bfloat16, enabled=half, cache_enabled=False):
        torch.cuda.make_graphed_callables(module, (given,), pool=pool)
    for buffer, value in zip(module.buffers(), kept, strict=True):
        buffer.copy_(value)
    recorded = module.forward
    module.forward = lambda x: recorded(x) if x.shape == sample.shape else before(x)


def _release(modules: list[nn.Module]) -> None:
    while modules:
        vars(modules.pop()).pop("forward", None)
