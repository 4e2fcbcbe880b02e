"""A picture of a few scans per class, so that a person sees what the models will see."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from covidnet.data.packed import Packed

TILE, GAP, SCANS = 128, 4, 6
LEVELS = (0.3, 0.6)  # share of the depth, from the top


def write(packed: Packed, classes: Sequence[str], path: Path) -> None:
    """Draw one row per class: two axial levels and one coronal view of up to six scans, each as the models see it."""
    label_width, tile_height = 84, TILE * 3 + GAP * 2
    sheet = Image.new("L", (label_width + SCANS * (TILE + GAP), len(classes) * (tile_height + 3 * GAP)), 16)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for row, name in enumerate(classes):
        top = row * (tile_height + 3 * GAP)
        draw.text((8, top + tile_height // 2), name, fill=235, font=font)
        members = [i for i, item in enumerate(packed.rows) if item.label == name][:SCANS]
        for column, index in enumerate(members):
            left = label_width + column * (TILE + GAP)
            for level, plane in enumerate(planes(packed.scans[index])):
                sheet.paste(
                    Image.fromarray(plane).resize((TILE, TILE), Image.Resampling.BICUBIC),
                    (left, top + level * (TILE + GAP)),
                )
    sheet.save(path)


def planes(volume: np.ndarray) -> list[np.ndarray]:
    """Two axial planes and the middle coronal one of ``(D, H, W)``."""
    depth, height, _ = volume.shape
    return [np.asarray(volume[int(depth * share)]) for share in LEVELS] + [np.asarray(volume[:, height // 2])]
