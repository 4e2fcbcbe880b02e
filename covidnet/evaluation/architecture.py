"""A found architecture as a picture: one row per layer, colour by kernel, height by expansion, identity a thin line."""

import re
from collections.abc import Sequence
from html import escape, unescape
from typing import Any, NamedTuple

from covidnet.errors import CovidnetError

_FILL = {3: ("#a6cee3", "#10212e"), 5: ("#3f8fc4", "#ffffff"), 7: ("#0b4a86", "#ffffff")}  # kernel: fill, text
_HEIGHT = {3: 26, 4: 34, 6: 50}  # expansion: pixels
_WIDTH, _PITCH, _LEFT, _ROW = 58, 66, 118, 64


class _Block(NamedTuple):
    kernel: int
    expansion: int


def draw_architecture(genotype: dict[str, Any]) -> str:
    """SVG of a genotype, 420 units wide, legible from 360 pixels up; text takes the colour of the page.

    Args:
        genotype: ``widths`` and ``strides`` per layer; ``blocks``: per layer a list of operation names, such as
            ``5x5_MBConv4`` or ``Identity``.

    Raises:
        CovidnetError: an operation that isn't of this form, or layers that don't match.
    """
    widths, strides, blocks = genotype["widths"], genotype["strides"], genotype["blocks"]
    if not len(widths) == len(strides) == len(blocks):
        raise CovidnetError(
            f"genotype: expected one width, stride and list of blocks per layer; found {len(widths)}, {len(strides)} "
            f"and {len(blocks)}"
        )
    layers = [[_parse(name) for name in layer] for layer in blocks]
    top, bottom = 62, 62 + _ROW * len(layers)
    rows = [
        _layer(top + i * _ROW, i + 1, layer, int(width), int(stride))
        for i, (layer, width, stride) in enumerate(zip(layers, widths, strides, strict=True))
    ]
    parts = [
        _terminal(28, "Stem", "3&#215;3&#215;3 convolution"),
        _line(_LEFT, 42, top + _ROW / 2),
        *rows,
        *(_turn(top + i * _ROW + _ROW / 2, len(layer)) for i, layer in enumerate(layers[:-1])),
        _turn(bottom - _ROW / 2, len(layers[-1]), down=_ROW / 2 - 14),
        _terminal(bottom + _ROW / 2, "Head", "1&#215;1&#215;1 conv · average pool · linear"),
        _legend(bottom + 84),
    ]
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 420 {bottom + 126}" role="img" aria-label="{escape(_summary(layers))}" '
        'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" font-size="13.5" fill="currentColor">'
        f"{body}</svg>"
    )


def _parse(name: str) -> _Block:
    if name == "Identity":
        return _Block(0, 0)
    match = re.fullmatch(r"(\d)x\1_MBConv(\d)", name)
    if match is None or int(match[1]) not in _FILL or int(match[2]) not in _HEIGHT:
        raise CovidnetError(f"genotype: expected operations like 5x5_MBConv4, or Identity; found {name!r}")
    return _Block(int(match[1]), int(match[2]))


def _layer(y: float, number: int, blocks: Sequence[_Block], width: int, stride: int) -> str:
    middle = y + _ROW / 2
    scale = "half size" if stride == 2 else "same size"
    label = (
        f'<text x="0" y="{middle - 3}" font-weight="600">Layer {number}</text>'
        f'<text x="0" y="{middle + 13}" font-size="12.5" opacity=".7">{width} ch, {scale}</text>'
    )
    drawn = [_block(_LEFT + 10 + i * _PITCH, middle, block) for i, block in enumerate(blocks)]
    return label + _horizontal(_LEFT, _end(len(blocks)), middle) + "".join(drawn)


def _block(x: float, middle: float, block: _Block) -> str:
    if not block.kernel:
        return (
            f'<g><title>Identity: no operation</title><text x="{x + _WIDTH / 2}" y="{middle - 6}" text-anchor="middle" '
            'font-size="12.5" opacity=".7">skip</text></g>'
        )
    fill, ink = _FILL[block.kernel]
    height = _HEIGHT[block.expansion]
    k = block.kernel
    return (
        f"<g><title>Inverted bottleneck: kernel {k}&#215;{k}&#215;{k}, expansion {block.expansion}</title>"
        f'<rect x="{x}" y="{middle - height / 2}" width="{_WIDTH}" height="{height}" rx="5" fill="{fill}"/>'
        f'<text x="{x + _WIDTH / 2}" y="{middle + 4}" text-anchor="middle" fill="{ink}">'
        f"{k}³ · &#215;{block.expansion}</text></g>"
    )


def _end(blocks: int) -> float:
    return _LEFT + 10 + blocks * _PITCH + 2


def _line(x: float, y1: float, y2: float) -> str:
    return f'<path d="M{x} {y1}V{y2}" stroke="currentColor" stroke-opacity=".45" fill="none"/>'


def _horizontal(x1: float, x2: float, y: float) -> str:
    return f'<path d="M{x1} {y}H{x2}" stroke="currentColor" stroke-opacity=".45" fill="none"/>'


def _turn(y: float, blocks: int, down: float = _ROW / 2) -> str:
    """From the end of a row back to the start of the next, between the two."""
    path = f"M{_end(blocks)} {y}v{_ROW / 2}H{_LEFT}v{down}"
    return f'<path d="{path}" stroke="currentColor" stroke-opacity=".45" fill="none" stroke-linejoin="round"/>'


def _terminal(y: float, name: str, what: str) -> str:
    width = 30 + 7.0 * len(unescape(what))
    return (
        f'<text x="0" y="{y + 4}" font-weight="600">{name}</text>'
        f'<rect x="{_LEFT - 10}" y="{y - 14}" width="{width}" height="28" rx="14" fill="none" stroke="currentColor" '
        f'stroke-opacity=".45"/><text x="{_LEFT - 10 + width / 2}" y="{y + 4}" text-anchor="middle">{what}</text>'
    )


def _legend(y: float) -> str:
    colors = "".join(
        f'<rect x="{_LEFT - 10 + i * 80}" y="{y - 10}" width="12" height="12" rx="2" fill="{fill}"/>'
        f'<text x="{_LEFT + 7 + i * 80}" y="{y}">{k}&#215;{k}&#215;{k}</text>'
        for i, (k, (fill, _)) in enumerate(_FILL.items())
    )
    heights = "".join(
        f'<rect x="{_LEFT - 10 + i * 80}" y="{y + 29 - h / 2.4}" width="12" height="{h / 2.4:.1f}" rx="2" fill="none" '
        f'stroke="currentColor" stroke-opacity=".6"/><text x="{_LEFT + 7 + i * 80}" y="{y + 27}">&#215;{e}</text>'
        for i, (e, h) in enumerate(_HEIGHT.items())
    )
    return (
        f'<g font-size="12.5"><text x="0" y="{y}" opacity=".7">Kernel</text>{colors}'
        f'<text x="0" y="{y + 27}" opacity=".7">Expansion</text>{heights}</g>'
    )


def _summary(layers: Sequence[Sequence[_Block]]) -> str:
    flat = [block for layer in layers for block in layer]
    used = sum(block.kernel > 0 for block in flat)
    return f"Found architecture: {len(layers)} layers, {used} of {len(flat)} blocks in use"
