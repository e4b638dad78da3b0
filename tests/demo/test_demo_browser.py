"""The page in a real headless Chromium, from an upload to the answer and its figures, and what it asks of a network."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import soundfile

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT_MS = 180_000
MAX_NEW_TOKENS = 300
# A name that page, template engine and browser must all take for what it is.
ODD_NAME = "odd <b>${1+1}<b> {{value}} &amp;"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, speech_like: Callable[[float, int], np.ndarray]) -> Path:
    path = tmp_path_factory.mktemp("sounds") / "clip.wav"
    soundfile.write(path, speech_like(2.0, 0), 16_000)
    return path


@pytest.fixture(scope="module")
def models(tiny_model_and_processor: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders of a model that does not end its answers by itself, so that there is time to see them grow."""
    from stapes.assembly import save_model

    tiny = tmp_path_factory.mktemp("models") / "tiny"
    save_model(*tiny_model_and_processor(seed=2), tiny)
    odd = tmp_path_factory.mktemp("odd") / ODD_NAME
    shutil.copytree(tiny, odd)
    return [tiny, odd]


@pytest.fixture(scope="module")
def examples(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(clip, folder / "hum.wav")
    line = {
        "id": "hum",
        "audio": "hum.wav",
        "task": "qa",
        "prompt": "Which sound?",
        "target": "a hum",
        "licence": "CC0",
    }
    (folder / "clips.jsonl").write_text(json.dumps(line) + "\n")
    return folder / "clips.jsonl"


@pytest.fixture(scope="module")
def server(models: list[Path], examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """Address and process of `stapes demo` with two models."""
    pytest.importorskip("gradio", reason="gradio is not installed: `make install` brings it")
    log = tmp_path_factory.mktemp("log") / "stderr"
    command = [sys.executable, "-m", "stapes", "demo", *map(str, models), "--port", "0", "--examples", str(examples)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--max-new-tokens", str(MAX_NEW_TOKENS), "--max-audio-s", "60", "--device", "cpu"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
        )
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address), log.read_text()
            yield address, process
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0, log.read_text()
            assert "Traceback" not in log.read_text()
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make install`")
    if CHROMIUM is None:
        pytest.skip("there is no chromium: `apt-get install chromium`")
    with driver.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """A page that is open, and what it asked for."""

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.requested: list[str] = []
        self.refused: list[str] = []
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("websocket", lambda websocket: self.requested.append(websocket.url))
        self.page.on("console", self._note)
        self.page.goto(address)
        self.button("Transcribe").wait_for()

    def _note(self, line: Any) -> None:
        if "Content Security Policy" in line.text:
            self.refused.append(line.text)

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def upload(self, path: Path) -> None:
        self.page.locator("input[type=file]").first.set_input_files(path)
        self.page.get_by_role("button", name="Clear", exact=True).wait_for()

    def answers(self) -> list[str]:
        """Wait until every card has its figures, and return the cards' words."""
        cards = self.page.locator(".card.done")
        cards.nth(1).locator(".figures").wait_for()
        return [cards.nth(row).inner_text() for row in range(cards.count())]

    def message(self) -> str:
        self.page.locator(".message").wait_for()
        return self.page.locator(".message").inner_text()


@pytest.fixture
def visit(browser: Any, server: tuple[str, Any]) -> Iterator[Callable[..., Visit]]:
    """Open the page in a fresh browser context: `visit(**context) -> Visit`."""
    visits: list[Visit] = []

    def open_page(**context: Any) -> Visit:
        visits.append(Visit(browser, server[0], **context))
        return visits[-1]

    yield open_page
    for each in visits:
        each.context.close()


def test_from_upload_to_answer(
    visit: Callable[..., Visit], clip: Path, models: list[Path], server: tuple[str, Any], tmp_path: Path
) -> None:
    here = visit(viewport={"width": 1280, "height": 900})
    here.upload(clip)
    here.button("Transcribe").click()
    # Streamed: some of the answer is there while it is being made.
    here.page.locator(".card.speaking .answer:not(.absent)").first.wait_for()
    first, second = here.answers()
    pattern = (
        r"{name}\n.+Time to first token\n(\d+ ms|\d+\.\d s)\n.*Tokens per second\n[\d,]+\.\d\n300 in all\n.*"
        r"Audio tokens\n6\nfor 2\.0 s of sound\n.*Peak memory\n[\d,]+ MB\nof the whole program.*"
        r"Cut off after 300 tokens"
    )
    assert re.search(pattern.replace("{name}", "^tiny"), first, re.DOTALL), first
    assert re.search(pattern.replace("{name}", "^" + re.escape(ODD_NAME)), second, re.DOTALL), second
    picture = tmp_path / "page.png"
    here.page.screenshot(path=picture, full_page=True)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 20_000
    asked = {urlsplit(url).netloc for url in here.requested if not url.startswith(("data:", "blob:"))}
    assert asked == {urlsplit(server[0]).netloc}
    assert here.refused == []
    whom = {each.raddr.ip for each in psutil.Process(server[1].pid).net_connections() if each.raddr}
    assert whom <= {"127.0.0.1"}


def test_an_example_and_the_keyboard(visit: Callable[..., Visit]) -> None:
    here = visit()
    here.button("hum").focus()
    here.page.keyboard.press("Enter")
    here.page.get_by_role("button", name="Clear", exact=True).wait_for()
    assert here.page.locator(".about").inner_text().split("\n") == ["Right would be", "a hum", "From", "CC0"]
    question = here.page.get_by_label("Question")
    assert question.input_value() == "Which sound?"
    question.press("Enter")
    assert len(here.answers()) == 2
    here.button("Clear").click()
    here.page.locator(".about").wait_for(state="hidden")


def test_mistakes_are_told_in_a_line(visit: Callable[..., Visit], clip: Path, tmp_path: Path) -> None:
    here = visit()
    here.button("Transcribe").click()
    assert here.message() == "There is no sound yet: record some, choose a file, or take an example."
    here.upload(clip)
    here.button("Ask").click()
    here.page.get_by_text("The question is empty").wait_for()
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF but no audio")
    for path, told in ((broken, "broken.wav: not audio"), (long_clip(tmp_path), "The sound lasts 61 s")):
        here.button("Clear").click()
        here.upload(path)
        here.button("Describe").click()
        here.page.locator(".message", has_text=told).wait_for()
        assert len(here.message().splitlines()) == 1
    assert "Traceback" not in here.page.locator("body").inner_text()


def long_clip(folder: Path) -> Path:
    soundfile.write(folder / "long.wav", np.zeros(61 * 16_000, np.float32), 16_000)
    return folder / "long.wav"


def test_stop_and_ask_again(visit: Callable[..., Visit], clip: Path) -> None:
    here = visit()
    here.upload(clip)
    here.button("Transcribe").click()
    here.page.locator(".card.speaking .answer:not(.absent)").first.wait_for()
    here.button("Stop").click()
    here.page.get_by_text("Stopped.").first.wait_for()
    assert here.page.locator(".card.done").count() < 2
    assert here.page.locator('[aria-busy="true"]').count() == 0
    here.button("Describe").click()
    assert len(here.answers()) == 2


def test_two_people_at_once(visit: Callable[..., Visit], clip: Path) -> None:
    here, there = visit(), visit()
    for each in (here, there):
        each.upload(clip)
    for each in (here, there):
        each.button("Transcribe").click()
    spoken = [[card.split("\nTime to first token")[0] for card in each.answers()] for each in (here, there)]
    assert spoken[0] == spoken[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(visit: Callable[..., Visit], scheme: str) -> None:
    here = visit(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert here.page.evaluate("document.documentElement.scrollWidth") <= 360
    lefts = [here.page.locator(".card").nth(row).bounding_box()["x"] for row in (0, 1)]
    assert lefts[0] == lefts[1]  # one below the other
    card = here.page.locator(".card").first
    ink, paper = (
        card.evaluate(f"element => getComputedStyle(element).{what}") for what in ("color", "backgroundColor")
    )
    assert contrast(ink, paper) > 7
    assert (
        contrast(*(here.button("Ask").evaluate(f"e => getComputedStyle(e).{w}") for w in ("color", "backgroundColor")))
        > 4.5
    )
    assert (brightness(paper) < 0.2) == (scheme == "dark")


def brightness(color: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)` (WCAG 2.2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((brightness(one), brightness(other)))
    return (high + 0.05) / (low + 0.05)
