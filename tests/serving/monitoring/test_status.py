"""The page at `/status`."""

import shutil
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from conftest import Server


def test_the_page_shows_what_the_server_counted(server: "Server") -> None:
    httpx.post(f"{server.http}/v1/phantoms/CP", timeout=60).raise_for_status()
    page = httpx.get(f"{server.http}/status")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    scans = sum(server.metric("covidnet_predictions_total", label=label) for label in ("NCP", "CP", "Normal"))
    assert f"<b>{scans:,.0f}</b><small>classified</small>" in page.text
    assert "$" not in page.text  # no place of the template is left open


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_the_screen(server: "Server", width: int) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed; apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 844})
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(f"{server.http}/status")
        assert page.inner_text("h1")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert complaints == []  # such as what the content policy refused
        browser.close()
