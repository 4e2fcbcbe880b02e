"""The fast depthwise convolution equals PyTorch's, values and gradients, and leaves inference and export alone."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from covidnet.models import depthwise
from covidnet.models.depthwise import depthwise_conv3d

Convolution = Callable[[Tensor, Tensor], Tensor]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
GRIDS = [(1, 1, 1), (1, 1, 5), (1, 4, 4), (2, 2, 2), (2, 4, 3), (3, 1, 6), (4, 5, 7), (8, 6, 6)]


def autograd_conv3d(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv3d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])


def draw(batch: int, channels: int, grid: tuple[int, int, int], kernel: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(kernel)
    shapes = ((batch, channels, *grid), (channels, 1, kernel, kernel, kernel), (batch, channels, *grid))
    x, weight, grad = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return x, weight, grad


def run(convolution: Convolution, x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Output, input gradient and weight gradient."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = convolution(x, weight)
    return (y.detach(), *torch.autograd.grad(y, (x, weight), grad))


@pytest.mark.parametrize("largest_kernel", [2**20, 40, 1], ids=["whole", "scans", "planes"])
@pytest.mark.parametrize(("grid", "kernel"), list(itertools.product(GRIDS, (1, 3, 5, 7))))
def test_values_and_gradients_equal_autograd(
    grid: tuple[int, int, int], kernel: int, largest_kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depthwise, "LARGEST_KERNEL", largest_kernel)
    x, weight, grad = draw(3, 2, grid, kernel, torch.float64)
    torch.testing.assert_close(run(depthwise_conv3d, x, weight, grad), run(autograd_conv3d, x, weight, grad))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("batch", "grid"), [(1, (4, 8, 8)), (8, (2, 4, 4)), (8, (1, 4, 4)), (2, (4, 16, 16))])
def test_float32_is_as_exact_as_autograd(
    batch: int, grid: tuple[int, int, int], memory_format: torch.memory_format
) -> None:
    x, weight, grad = draw(batch, 24, grid, 7, torch.float64)
    exact = run(autograd_conv3d, x, weight, grad)
    narrow = (tensor.float() for tensor in (x, weight, grad))
    found = run(depthwise_conv3d, *(t.contiguous(memory_format=memory_format) for t in narrow))
    for one, other in zip(found, exact, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_gradcheck() -> None:
    x, weight, _ = draw(2, 2, (2, 3, 2), 5, torch.float64)
    assert torch.autograd.gradcheck(depthwise_conv3d, (x.requires_grad_(), weight.requires_grad_()))


def test_a_crop_of_a_shared_kernel_receives_its_gradient() -> None:
    x, shared, grad = draw(2, 6, (2, 4, 4), 7, torch.float64)
    x = x[:, :4]

    def cropped(convolution: Convolution) -> Convolution:
        return lambda x, shared: convolution(x, shared[:4, :, 1:6, 1:6, 1:6])

    found = run(cropped(depthwise_conv3d), x, shared, grad[:, :4])
    torch.testing.assert_close(found, run(cropped(autograd_conv3d), x, shared, grad[:, :4]))


def test_frozen_weight_costs_no_weight_gradient_and_keeps_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> Tensor:
        raise AssertionError("a weight gradient was computed")

    monkeypatch.setattr(depthwise, "_weight_gradient", forbidden)
    x, weight, grad = draw(2, 4, (2, 4, 4), 3, torch.float32)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = depthwise_conv3d(x.requires_grad_(), weight)
    (x_grad,) = torch.autograd.grad(y, x, grad)
    assert [tensor.shape for tensor in saved] == [weight.shape]
    assert x_grad.shape == x.shape


def test_input_without_gradient_still_trains_the_weight() -> None:
    x, weight, grad = draw(2, 4, (2, 4, 4), 3, torch.float64)
    expected = run(autograd_conv3d, x, weight, grad)[2]
    (found,) = torch.autograd.grad(depthwise_conv3d(x, weight.requires_grad_()), weight, grad)
    torch.testing.assert_close(found, expected)


def test_training_keeps_channels_last() -> None:
    x, weight, _ = draw(2, 4, (2, 4, 4), 3, torch.float32)
    y = depthwise_conv3d(x, weight.requires_grad_())
    assert y.is_contiguous(memory_format=torch.channels_last_3d)


def test_autocast_sees_a_plain_convolution() -> None:
    x, weight, _ = draw(2, 4, (2, 4, 4), 3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv3d(x, weight.requires_grad_())
    assert y.dtype == torch.bfloat16
    assert type(y.grad_fn).__name__ == "ConvolutionBackward0"


@pytest.mark.parametrize("shape", [(4, 1, 2, 2, 2), (4, 1, 3, 3, 5)])
def test_other_kernels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="k odd"):
        depthwise_conv3d(torch.zeros(1, 4, 2, 4, 4), torch.zeros(shape))


class Depthwise(nn.Module):
    """One depthwise convolution whose kernel is larger than the grid, so that a crop would show in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(1, 4, (1, 4, 4), 7, torch.float32)[1])

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv3d(x, self.weight)


@pytest.mark.parametrize("grad_enabled", [False, True])
def test_export_sees_one_plain_convolution(grad_enabled: bool) -> None:
    with torch.set_grad_enabled(grad_enabled):
        program = torch.export.export(Depthwise().eval(), (torch.zeros(2, 4, 1, 4, 4),))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.conv3d.default"]


@pytest.mark.slow
def test_onnx_sees_one_plain_convolution() -> None:
    with torch.no_grad():
        program = torch.onnx.export(Depthwise().eval(), (torch.zeros(2, 4, 1, 4, 4),), dynamo=True, verbose=False)
    assert program is not None
    assert [node.op_type for node in program.model.graph] == ["Conv"]


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((2, 72, 4, 16, 16), 3),
        ((3, 96, 8, 32, 32), 7),
        ((2, 40, 1, 2, 2), 5),
        ((1, 240, 5, 9, 11), 5),
        ((2, 6, 3, 7, 3), 7),
    ],
)
def test_gpu_kernels_agree_with_float64(shape: tuple[int, ...], kernel: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)
    weight = torch.randn(shape[1], 1, kernel, kernel, kernel, device="cuda", requires_grad=True)
    y = depthwise_conv3d(x, weight)
    grad = torch.randn_like(y)
    y.backward(grad)

    exact_x, exact_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    exact = torch.nn.functional.conv3d(exact_x, exact_weight, padding=kernel // 2, groups=shape[1])
    exact.backward(grad.double())

    assert type(y.grad_fn).__name__ == "_DepthwiseConv3dBackward"
    for found, expected in ((y, exact), (x.grad, exact_x.grad), (weight.grad, exact_weight.grad)):
        assert found is not None
        assert expected is not None
        error = (found.double() - expected).norm() / expected.norm()
        assert error < (1e-6 if dtype == torch.float32 else 4e-3)
