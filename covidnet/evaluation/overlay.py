"""Class activation maps as pictures: laid over slices, as a page with a colour bar, as a film.

Needs numpy and Pillow only: prediction and serving use it.
"""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from covidnet.errors import CovidnetError
from covidnet.evaluation.cam import Heat, Mask, choose_slices

Rgb = NDArray[np.uint8]

# Matplotlib's inferno from a third of its range up: even steps of lightness, also for the colour-blind.
_COLORS = np.array(
    [[101, 21, 110], [146, 37, 103], [188, 55, 84], [224, 83, 51], [245, 125, 21], [250, 175, 25], [246, 215, 70]]
)
_TRANSPARENT_BELOW, _OPACITY = 0.25, 0.75
_OUTLINE = (94, 229, 229)
_INK, _FAINT, _PAPER = (28, 32, 38), (96, 104, 114), (255, 255, 255)
_PANEL, _GAP, _MARGIN = 168, 6, 22  # pixels


def overlay_slices(
    volume: NDArray[np.integer],
    heat: Heat,
    slices: Sequence[int],
    window_hu: tuple[float, float] = (-1000.0, 400.0),
) -> Rgb:
    """Axial slices with the positive part of a map laid over them.

    Args:
        volume: ``uint8 (D, H, W)`` grey levels, or signed HU, which ``window_hu`` maps to grey.
        heat: ``(D, H, W)``, of any scale: colour runs from 0 to its maximum over the volume, so that slices compare.
        slices: indices into D.

    Returns:
        ``uint8 (len(slices), H, W, 3)``.

    Raises:
        CovidnetError: volume and map differ in shape.
    """
    if volume.shape != heat.shape:
        raise CovidnetError(f"overlay: expected a map of the volume's shape {volume.shape}, found {heat.shape}")
    chosen = list(slices)
    grey = _grey(volume[chosen], window_hu).astype(np.float32)  # (S, H, W)
    level = np.clip(heat[chosen] / max(float(heat.max()), 1e-30), 0, 1)
    opacity = _opacity(level)[..., None]
    blended: Rgb = (grey[..., None] * (1 - opacity) + _color(level) * opacity).round().astype(np.uint8)
    return blended


def montage(
    volume: NDArray[np.integer],
    heat: Heat,
    title: str,
    *,
    label: str,
    mask: Mask | None = None,
    window_hu: tuple[float, float] = (-1000.0, 400.0),
    slices: int = 8,
) -> Image.Image:
    """Slices of a scan in two rows, plain and with the map, one colour scale for all.

    The slices are evenly spaced over the middle of the scan; the nearest gives way to the one with the map's maximum.

    Args:
        volume: as in `overlay_slices`.
        heat: ``(D, H, W)``.
        title: e.g. "Predicted NCP (0.93), true label NCP".
        label: the class that the map is of, for the colour bar.
        mask: lesion ``(D, H, W)``; its outline is drawn where given.
        slices: columns; fewer where the scan has fewer.
    """
    chosen = choose_slices(heat, slices)
    grey = _grey(volume[chosen], window_hu)
    rows = (np.repeat(grey[..., None], 3, axis=-1), overlay_slices(volume, heat, chosen, window_hu))
    height, width = _panel_size(volume.shape)
    pitch_x, pitch_y, top = width + _GAP, height + _GAP, 86
    page = Image.new("RGB", (_MARGIN * 2 + pitch_x * len(chosen) + 108, top + 2 * pitch_y + 46), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, 16), title, fill=_INK, font=_font(25))
    for column, index in enumerate(chosen):
        x = _MARGIN + column * pitch_x
        draw.text((x, top - 24), f"slice {index + 1} of {len(volume)}", fill=_FAINT, font=_font(16))
        for row, images in enumerate(rows):
            panel = Image.fromarray(images[column]).resize((width, height), Image.Resampling.BICUBIC)
            if mask is not None:
                panel = _outlined(panel, mask[index])
            page.paste(panel, (x, top + row * pitch_y))
    _color_bar(page, (_MARGIN + len(chosen) * pitch_x + 8, top + pitch_y), height, float(heat.max()), label)
    outline = "" if mask is None else "Cyan outline: annotated lesion.  "
    footer = f"{outline}Research use only, no diagnosis."
    draw.text((_MARGIN, page.height - 38), footer, fill=_FAINT, font=_font(16))
    return page


def sweep(
    volume: NDArray[np.integer],
    heat: Heat,
    title: str,
    *,
    label: str,
    window_hu: tuple[float, float] = (-1000.0, 400.0),
) -> list[Image.Image]:
    """One frame per slice, cranial to caudal: plain on the left, with the map on the right, one colour scale for all.

    Args:
        volume: as in `overlay_slices`.
        heat: ``(D, H, W)``.
        title: as in `montage`.
        label: the class that the map is of.
    """
    every = range(len(volume))
    overlays, grey = overlay_slices(volume, heat, every, window_hu), _grey(volume, window_hu)
    height, width = (2 * side for side in _panel_size(volume.shape))
    frames = []
    for index in every:
        frame = Image.new("RGB", (2 * (_MARGIN + width) + _GAP + 108, height + 100), _PAPER)
        draw = ImageDraw.Draw(frame)
        draw.text((_MARGIN, 12), title, fill=_INK, font=_font(22))
        draw.text((_MARGIN, height + 64), "Research use only, no diagnosis.", fill=_FAINT, font=_font(16))
        draw.text((frame.width - 170, height + 64), f"slice {index + 1} of {len(volume)}", fill=_FAINT, font=_font(16))
        for column, picture in enumerate((Image.fromarray(grey[index]), Image.fromarray(overlays[index]))):
            resized = picture.resize((width, height), Image.Resampling.BICUBIC)
            frame.paste(resized.convert("RGB"), (_MARGIN + column * (width + _GAP), 50))
        _color_bar(frame, (_MARGIN + 2 * width + _GAP + 8, 50), height, float(heat.max()), label)
        frames.append(frame)
    return frames


def png(image: Image.Image) -> bytes:
    """The image as the bytes of a PNG file."""
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _grey(voxels: NDArray[np.integer], window_hu: tuple[float, float]) -> NDArray[np.uint8]:
    if voxels.dtype == np.uint8:
        return voxels.astype(np.uint8)
    low, high = window_hu
    grey: NDArray[np.uint8] = (np.clip((voxels - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)
    return grey


def _opacity(level: NDArray[np.floating]) -> NDArray[np.floating]:
    """Faint evidence leaves the anatomy visible."""
    opacity: NDArray[np.floating] = np.clip((level - _TRANSPARENT_BELOW) / (1 - _TRANSPARENT_BELOW), 0, 1) * _OPACITY
    return opacity


def _color(level: NDArray[np.floating]) -> NDArray[np.floating]:
    """Levels 0..1 to RGB 0..255, shape ``(..., 3)``."""
    stops = np.linspace(0, 1, len(_COLORS))
    return np.stack([np.interp(level, stops, _COLORS[:, channel]) for channel in range(3)], axis=-1)


def _panel_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width in pixels of a slice, its longer side filling the panel."""
    scale = _PANEL / max(shape[1:])
    return round(shape[1] * scale), round(shape[2] * scale)


def _outlined(panel: Image.Image, mask: Mask) -> Image.Image:
    """Draw the mask's edge, at the panel's resolution."""
    grown = Image.fromarray(mask.astype(np.uint8) * 255).resize(panel.size, Image.Resampling.BILINEAR)
    inside = np.pad(np.asarray(grown) > 127, 1)
    neighbours = [np.roll(inside, shift, axis) for axis in (0, 1) for shift in (-1, 1)]
    edge = (inside & ~np.logical_and.reduce(neighbours))[1:-1, 1:-1]
    pixels = np.array(panel)
    pixels[edge] = _OUTLINE
    return Image.fromarray(pixels)


def _color_bar(page: Image.Image, corner: tuple[int, int], height: int, maximum: float, label: str) -> None:
    """The scale from 0 to the map's maximum, as it looks on mid-grey tissue."""
    level = np.linspace(1, 0, height)[:, None].repeat(14, axis=1)
    opacity = _opacity(level)[..., None]
    bar = 110 * (1 - opacity) + _color(level) * opacity
    page.paste(Image.fromarray(bar.round().astype(np.uint8)), corner)
    draw, x, y = ImageDraw.Draw(page), corner[0] + 20, corner[1]
    lines = (f"{max(maximum, 0.0):.3g}", "", "evidence", f"for {label}")
    for row, line in enumerate(lines):
        draw.text((x, y - 2 + row * 20), line, fill=_INK if row == 0 else _FAINT, font=_font(16))
    draw.text((x, y + height - 18), "0", fill=_INK, font=_font(16))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
