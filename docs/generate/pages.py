"""Which page is made by what."""

from collections.abc import Callable
from pathlib import Path

from docs.generate import commands, endpoint, figures, files, parameters

FOLDER = Path(__file__).parents[1] / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "cli.md": commands.page,
    "params.md": parameters.page,
    "files.md": files.page,
    "metrics.md": figures.page,
    "http.md": endpoint.page,
    "openapi.json": endpoint.openapi,
}
