"""Triton kernels of the depthwise 3D convolution and its gradients, for channels-last volumes on a GPU.

A lane holds one channel and a tile of outputs of `TH` rows by `TW` columns in registers. It walks over the input rows that
the tile can see, loads each value once, and adds it to every output of the tile that it touches; neighbouring lanes are
neighbouring channels, so that every load is one of consecutive addresses. The input gradient is the same with the kernel
flipped. For the weight gradient a lane holds the taps of a few rows of the kernel instead, over its share of the volume's
rows; the shares are summed afterwards, in a fixed order.

Shapes are those of the memory: volumes ``(B, D, H, W, C)``, kernels ``(KD, KH, KW, C)`` in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

Taps = tuple[int, int, int]

BLOCK, WARPS = 128, 2  # lanes of a program, two a thread
BUSY = 132 * 32  # programs that keep a large GPU busy


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Convolution of stride 1 and same padding.

    Args:
        x: ``(B, C, D, H, W)``, channels last.
        weight: ``(C, 1, kd, kh, kw)``, each odd.

    Returns:
        ``(B, C, D, H, W)`` like x.
    """
    batch, channels, depth, height, width = x.shape
    y = torch.empty_like(x)
    rows, columns = min(2, height), _columns(width)
    grid = (triton.cdiv(triton.cdiv(width, columns) * channels, BLOCK), triton.cdiv(height, rows), batch * depth)
    _convolve[grid](
        x, _packed(weight), y, depth, height, width, channels, *weight.shape[2:],
        TH=rows, TW=columns, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return y


def correlate(x: Tensor, grad: Tensor, taps: Taps) -> Tensor:
    """Gradient of the kernel.

    Args:
        x: input ``(B, C, D, H, W)``, channels last.
        grad: of the output, likewise.
        taps: ``(kd, kh, kw)``, each odd.

    Returns:
        float32 ``(C, 1, kd, kh, kw)``.
    """
    batch, channels, depth, height, width = x.shape
    kd, kh, kw = taps
    together = min(2, kh)  # rows of the kernel in one lane
    rows, programs = batch * depth * height, kd * triton.cdiv(kh, together)
    shares = max(1, min(rows, BUSY * BLOCK // (channels * programs)))
    parts = x.new_empty((shares, kd, kh, kw, channels), dtype=torch.float32)
    grid = (triton.cdiv(shares * channels, BLOCK), programs)
    _correlate[grid](
        x, grad, parts, rows, shares, depth, height, width, channels, kd, kh, kw,
        TK=together, TW=_columns(width), BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return parts.sum(dim=0).movedim(-1, 0).unsqueeze(1)


def _columns(width: int) -> int:
    """Columns of a tile: the power of two that holds the row, four at most."""
    return min(4, triton.next_power_of_2(width))


def _packed(weight: Tensor) -> Tensor:
    return weight[:, 0].movedim(0, -1).float().contiguous()


@triton.jit
def _add(
    sums, value, factors, at: tl.constexpr, ROWS: tl.constexpr, SUMS: tl.constexpr, FACTORS: tl.constexpr,
):  # fmt: skip
    """A value of a row to every sum that it has a factor for: sum ``s`` meets it with factor ``at - s``, in each row."""
    added = ()
    for t in tl.static_range(ROWS):
        for s in tl.static_range(SUMS):
            if at >= s and at - s < FACTORS:
                added = added + (sums[t * SUMS + s] + value * factors[t * FACTORS + at - s],)
            else:
                added = added + (sums[t * SUMS + s],)
    return added


@triton.jit(do_not_specialize=["D", "H", "W"])
def _convolve(
    x, w, y, D, H, W, C,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.max_contiguous(tl.multiple_of(lane % C, 2), 2)
    w0 = lane // C * TW
    h0 = tl.program_id(1) * TH
    scan, d = tl.program_id(2) // D, tl.program_id(2) % D
    sums = ()
    for _ in tl.static_range(TH * TW):
        sums = sums + (tl.zeros((BLOCK,), tl.float32),)
    for di in range(tl.maximum(d - KD // 2, 0), tl.minimum(d + KD // 2 + 1, D)):
        kd = di - d + KD // 2
        for hi in range(tl.maximum(h0 - KH // 2, 0), tl.minimum(h0 + TH + KH // 2, H)):
            taps = ()
            for t in tl.static_range(TH):
                kh = hi - h0 - t + KH // 2
                for k in tl.static_range(KW):
                    at = ((kd * KH + kh) * KW + k) * C
                    taps = taps + (tl.load(w + at + c, mask=(kh >= 0) & (kh < KH) & (c >= 0), other=0.0),)
            row = x + ((scan * D + di).to(tl.int64) * H + hi) * W * C
            for i in tl.static_range(TW + KW - 1):
                wi = w0 + i - KW // 2
                value = tl.load(row + wi * C + c, mask=(wi >= 0) & (wi < W), other=0.0).to(tl.float32)
                sums = _add(sums, value, taps, i, TH, TW, KW)
    for t in tl.static_range(TH):
        row = y + (tl.program_id(2).to(tl.int64) * H + h0 + t) * W * C
        for j in tl.static_range(TW):
            inside = (w0 + j < W) & (h0 + t < H)
            tl.store(row + (w0 + j) * C + c, sums[t * TW + j].to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "shares", "D", "H", "W"])
def _correlate(
    x, dy, parts, rows, shares, D, H, W, C,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, TK: tl.constexpr, TW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.max_contiguous(tl.multiple_of(lane % C, 2), 2)
    share = lane // C
    live = share < shares
    groups: tl.constexpr = (KH + TK - 1) // TK
    kd, kh0 = tl.program_id(1) // groups, tl.program_id(1) % groups * TK
    sums = ()
    for _ in tl.static_range(TK * KW):
        sums = sums + (tl.zeros((BLOCK,), tl.float32),)
    for step in range(tl.cdiv(rows, shares)):
        number = share + step * shares  # of the input row
        hi, di = number % H, number // H % D
        d = di - kd + KD // 2  # of the output rows that this tap takes it to
        ok = live & (number < rows) & (d >= 0) & (d < D)
        row = number.to(tl.int64) * W * C
        for w0 in range(0, W, TW):
            grads = ()
            for t in tl.static_range(TK):
                h = hi - kh0 - t + KH // 2
                seen = ok & (h >= 0) & (h < H) & (kh0 + t < KH)
                other = ((number // H - di + d).to(tl.int64) * H + h) * W * C
                for j in tl.static_range(TW):
                    inside = seen & (w0 + j < W)
                    grads = grads + (tl.load(dy + other + (w0 + j) * C + c, mask=inside, other=0.0).to(tl.float32),)
            for i in tl.static_range(TW + KW - 1):
                wi = w0 + i - KW // 2
                value = tl.load(x + row + wi * C + c, mask=ok & (wi >= 0) & (wi < W), other=0.0).to(tl.float32)
                sums = _add(sums, value, grads, i, TK, KW, TW)
    for t in tl.static_range(TK):
        for k in tl.static_range(KW):
            at = ((share * KD + kd) * KH + kh0 + t) * KW + k
            tl.store(parts + at * C + c, sums[t * KW + k], mask=live & (kh0 + t < KH))
