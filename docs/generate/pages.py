"""Which page is made by what."""

from collections.abc import Callable
from pathlib import Path

from docs.generate import commands, endpoint, figures, files, parameters, supply

FOLDER = Path(__file__).parents[1] / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "cli.md": commands.page,
    "params.md": parameters.page,
    "files.md": files.page,
    "model-card.md": files.model_card,
    "metrics.md": figures.page,
    "http.md": endpoint.page,
    "dependencies.md": supply.page,
    "openapi.json": endpoint.openapi,
}
