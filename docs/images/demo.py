"""The README's pictures, from a finished demo: `python docs/images/demo.py results` writes them beside itself.

The found architecture, its probabilities over the search, the first right answer for NCP with its map, and the report as a
desktop and a phone show it.
"""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
COLOURS = 192  # of a palette; keeps a picture below 200 KB
VIEWS = {"report.png": (1280, 1600, 1), "report-phone.png": (390, 950, 2)}  # width, height, pixels per point


def main(
    results: Annotated[Path, typer.Argument(help="Folder of the demo's results.")] = Path("results"),
    overlay: Annotated[str, typer.Option(help="Which map of results/evaluate/overlays.")] = "01-right.png",
) -> None:
    """Copy what the stages drew, and take pictures of the report."""
    searched, evaluated = results / "search" / "S", results / "evaluate"
    shutil.copy(searched / "architecture.svg", HERE)
    shutil.copy(evaluated / "overlays" / overlay, HERE / "overlay.png")
    smaller(Image.open(searched / "probabilities.png"), HERE / "probabilities.png")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height, scale) in VIEWS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
            page.goto((evaluated / "report.html").resolve().as_uri())
            page.screenshot(path=HERE / name)
            smaller(Image.open(HERE / name), HERE / name)
        browser.close()


def smaller(picture: Image.Image, path: Path) -> None:
    """Save with a palette."""
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    typer.run(main)
