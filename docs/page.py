"""The picture of the page in docs/serving.md, from a running server: a synthetic scan of the class NCP, no patient's.

covidnet serve --bundle results/export/bundle &
python docs/page.py                                              # docs/images/page.png
python docs/page.py --scan scan.nii.gz --width 390 --out narrow.png   # to look at the page with a scan of yours
"""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from playwright.sync_api import sync_playwright

# Without these Chromium asks its maker's servers for updates; its WebGL needs no graphics card with the last ones.
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--no-first-run", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # fmt: skip
WAIT_MS = 180_000
COLOURS = 192  # of the picture's palette; keeps it below 200 KB


def main(
    url: str = "http://127.0.0.1:8080",
    scan: Annotated[Path | None, typer.Option(help="A file to drop; default: the page's synthetic NCP.")] = None,
    width: int = 1280,
    out: Path = Path(__file__).parent / "images" / "page.png",
) -> None:
    """Take the picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(WAIT_MS)
        page.goto(url)
        if scan is None:
            page.click("[data-phantom=NCP]")
        else:
            page.set_input_files("#file", scan)
        page.wait_for_selector("#viewer[aria-busy=false]")
        page.screenshot(path=out, full_page=True)
        browser.close()
    Image.open(out).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    typer.run(main)
