"""The audit as one self-contained HTML page, with the scans that look alike side by side."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from covidnet.data.audit.shortcuts import FLAGGED_ABOVE, MIN_PATIENTS
from covidnet.data.packed import Packed

if TYPE_CHECKING:
    from covidnet.data.audit import Audit

SHOWN_PAIRS, SHOWN_SCANS = 12, 4
SIDE = 128  # pixels of a picture


def render(audit: "Audit", dataset: Packed | None = None) -> str:
    """The page; with pictures where there are scans, which split files alone don't have."""
    environment = Environment(
        loader=PackageLoader("covidnet.data", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    classes = sorted({label for per_class in audit.scans.values() for label in per_class})
    return environment.get_template("audit.html.j2").render(
        audit=audit,
        classes=classes,
        total=sum(count for per_class in audit.scans.values() for count in per_class.values()),
        most=max((count for per_class in audit.scans.values() for count in per_class.values()), default=1),
        spread={name: _scaled(per_class) for name, per_class in audit.spread.items()},
        flagged_above=FLAGGED_ABOVE,
        min_patients=MIN_PATIENTS,
        pairs=[] if dataset is None else _pairs(audit, dataset),
        examples=[] if dataset is None else _examples(dataset, classes),
    )


def _scaled(per_class: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Five-number summaries with their places, in percent, on an axis from 0 to the largest value."""
    most = max((numbers[-1] for numbers in per_class.values()), default=0) or 1
    return {
        label: {"numbers": numbers, "at": [100 * number / most for number in numbers]}
        for label, numbers in per_class.items()
    }


def _pairs(audit: "Audit", dataset: Packed) -> list[dict[str, Any]]:
    return [
        {
            "likeness": likeness,
            "leak": dataset.rows[a].split != dataset.rows[b].split or dataset.rows[a].label != dataset.rows[b].label,
            "scans": [{"row": dataset.rows[i], "picture": picture(dataset.scans[i])} for i in (a, b)],
        }
        for a, b, likeness in audit.near[:SHOWN_PAIRS]
    ]


def _examples(dataset: Packed, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A few scans of every class, spread over the dataset."""
    found = []
    for label in classes:
        rows = [i for i, row in enumerate(dataset.rows) if row.label == label]
        chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, min(SHOWN_SCANS, len(rows))).astype(int)]
        found.append({"label": label, "pictures": [picture(dataset.scans[i]) for i in chosen]})
    return found


def picture(volume: np.ndarray) -> str:
    """Middle axial and coronal planes of ``uint8 (D, H, W)`` as the data URI of a PNG."""
    sheet = Image.new("L", (2 * SIDE, SIDE))
    for column, plane in enumerate((volume[len(volume) // 2], volume[:, volume.shape[1] // 2])):
        sheet.paste(
            Image.fromarray(np.asarray(plane)).resize((SIDE, SIDE), Image.Resampling.BICUBIC), (column * SIDE, 0)
        )
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
