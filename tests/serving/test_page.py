"""The page, in a real browser: a scan is dropped, its answer is read, the map is seen to move through the slices."""

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from conftest import Server

pytestmark = pytest.mark.slow
# Without these Chromium asks its maker's servers for updates while the test runs.
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
SOFTWARE_GL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
DRAWN = "#viewer[aria-busy=false]"
WAIT_MS = 120_000  # a software renderer, on a machine that runs other tests


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed; apt-get install chromium")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", *SOFTWARE_GL, *QUIET])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, server: "Server") -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(WAIT_MS)
    opened.goto(f"{server.http}/")
    yield opened
    opened.close()


def drop(page: Any, path: Path) -> None:
    """What a browser does when a person lets go of a file over the page."""
    make = """([name, content]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name));
        return transfer;
    }"""
    transfer = page.evaluate_handle(make, [path.name, base64.b64encode(path.read_bytes()).decode()])
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    page.wait_for_selector(DRAWN)


def colour(page: Any) -> np.ndarray:
    """Where the canvas has the map's colours, which red leads in; anatomy is grey and the crosshair cyan."""
    png = page.screenshot(clip=page.locator("#canvas").bounding_box(), timeout=WAIT_MS, full_page=True)
    red, green, _ = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int).transpose(2, 0, 1)
    return red > green + 30


def set_slider(page: Any, selector: str, value: int) -> None:
    page.locator(selector).evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)


def look_through(page: Any) -> list[int]:
    """How many pixels have colour in axial slices from head to foot, of the map at full opacity."""
    page.check("[name=view][value=axial]")
    set_slider(page, "#opacity", 100)
    depth = int(page.locator("[data-axis='2']").get_attribute("max"))
    pixels = []
    for number in np.linspace(1, depth, 6).round():
        set_slider(page, "[data-axis='2']", int(number))
        pixels.append(int(colour(page).sum()))
    return pixels


@pytest.mark.parametrize("width", [1280, 390])
def test_a_dropped_scan_is_answered_on_the_page(browser: Any, server: "Server", nifti: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.set_default_timeout(WAIT_MS)
    complaints: list[str] = []
    requests: list[str] = []
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("warning", "error") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{server.http}/")
    drop(page, nifti)
    assert "Most probable" in page.inner_text("#verdict")
    rows = page.locator(".class").all_inner_texts()
    assert [row.split("\n")[0].split()[0] for row in rows] == ["NCP", "CP", "Normal"]
    assert "unlike" in page.inner_text("#flags")  # the fixture's bundle flags every scan
    assert "inference" in page.inner_text("#facts")
    assert "axial slice" in page.inner_text("#place")
    assert "no output is a diagnosis" in page.inner_text("main")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert [c for c in complaints if "GPU stall" not in c and "GL Driver" not in c] == []  # what the policy refused
    assert all(url.startswith((server.http, "data:")) for url in requests)
    page.close()


def test_the_map_moves_through_the_slices_and_fades_with_its_slider(page: Any, nifti: Path) -> None:
    drop(page, nifti)
    pixels = look_through(page)
    assert max(pixels) > 500
    assert len(set(pixels)) > 2  # another picture in other slices
    set_slider(page, "#opacity", 0)
    assert colour(page).sum() == 0


def test_a_real_scan_is_shown_with_its_map(page: Any, real_scans: Path) -> None:
    drop(page, real_scans / "covid-ct-md" / "nifti_256" / "NCP_P001.nii.gz")
    assert max(look_through(page)) > 500


def test_windows_and_views_change_what_is_seen(page: Any, nifti: Path) -> None:
    drop(page, nifti)
    set_slider(page, "#opacity", 0)
    page.check("[name=view][value=axial]")
    box = page.locator("#canvas").bounding_box()
    seen = set()
    for choice in ("[name=window][value='-160,240']", "[name=window][value='-1350,150']", "[name=view][value=coronal]"):
        page.check(choice)
        seen.add(page.screenshot(clip=box, timeout=WAIT_MS, full_page=True))
    assert len(seen) == 3


def test_a_synthetic_scan_and_its_slices_can_be_reached_by_keyboard(page: Any) -> None:
    for _ in range(2):  # the file chooser, then the first button
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(DRAWN)
    assert "class NCP" in page.inner_text("#origin")
    assert page.evaluate("document.activeElement.id") == "answer"  # where a screen reader goes on
    before = page.locator("[data-axis='2']").get_attribute("aria-valuetext")
    page.focus("[data-axis='2']")
    page.keyboard.press("ArrowRight")
    after = page.locator("[data-axis='2']").get_attribute("aria-valuetext")
    assert int(after.split()[1]) == int(before.split()[1]) + 1


def test_a_file_that_is_no_scan_gets_a_reason(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no scan")
    page.set_input_files("#file", tmp_path / "notes.txt")
    page.wait_for_selector("#fault:visible")
    assert "NIfTI" in page.inner_text("#reason")
