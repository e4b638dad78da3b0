"""The page in a real headless Chromium: what its layout does to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stapes.report import build_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH: Debian's package `chromium` has it"),
]


@pytest.fixture(scope="module")
def widths(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[int, int, int]]:
    """By width of the window: width of the page, and of the table of parts what is shown and what there is."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: `make install` brings it"
    )
    page_path = build_report([finished_run], tmp_path_factory.mktemp("report"), num_samples=3, seed=0)
    found = {}
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (400, 700, 1300):
            page = chromium.new_page(viewport={"width": width, "height": 900})
            page.goto(page_path.as_uri())
            table = page.locator(".beside .scroll")
            shown, there = table.evaluate("element => [element.clientWidth, element.scrollWidth]")
            found[width] = (page.evaluate("document.documentElement.scrollWidth"), shown, there)
        chromium.close()
    return found


def test_no_window_is_too_narrow_for_the_page(widths):
    assert {width: page for width, (page, _, _) in widths.items()} == {400: 400, 700: 700, 1300: 1300}


def test_all_variants_are_seen_beside_the_chart(widths):
    _, shown, there = widths[1300]
    assert shown == there
