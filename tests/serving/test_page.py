"""The page, in a real browser: a scan is dropped, its answer is seen."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Server

pytestmark = pytest.mark.slow
# Without these Chromium asks its maker's servers for updates while the test runs.
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu", *QUIET])
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_chosen_scan_is_answered_on_the_page(browser: Any, server: "Server", nifti: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844})
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{server.http}/")
    page.set_input_files("#file", nifti)
    page.wait_for_selector("#answer:visible", timeout=60_000)
    assert "Most probable" in page.inner_text("#verdict")
    assert [row.split("\n")[0].split()[0] for row in page.locator(".class").all_inner_texts()] == [
        "NCP",
        "CP",
        "Normal",
    ]
    assert "unlike" in page.inner_text("#flags")  # the fixture's bundle flags every scan
    assert page.evaluate("document.getElementById('overlay').naturalWidth") > 400
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert complaints == []  # such as what the content policy refused
    assert all(url.startswith((server.http, "data:")) for url in requests)


def test_a_synthetic_scan_can_be_asked_for_by_keyboard(browser: Any, server: "Server") -> None:
    page = browser.new_page()
    page.goto(f"{server.http}/")
    for _ in range(2):  # the file chooser, then the first button
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer:visible", timeout=60_000)
    assert "class NCP" in page.inner_text("#origin")


def test_a_file_that_is_no_scan_gets_a_reason(browser: Any, server: "Server", tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no scan")
    page = browser.new_page()
    page.goto(f"{server.http}/")
    page.set_input_files("#file", tmp_path / "notes.txt")
    page.wait_for_selector("#fault:visible", timeout=60_000)
    assert "NIfTI" in page.inner_text("#reason")
