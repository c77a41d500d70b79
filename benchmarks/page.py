"""The labeler's page: `python -m benchmarks.page [--json] [CASE...]`.

A Chromium without a window answers the 40 comparisons of `tutelage labeler serve --demo` by keys. Measured,
by the page's own clock, is from a key press to the first picture of both clips of the next pair, as
requestVideoFrameCallback has it: when that is expected to be on the screen, and when the callback comes,
which is up to a refresh of the screen later. Let nothing else run.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.request import urlopen

import numpy as np
from playwright.sync_api import Page, sync_playwright

from benchmarks.common import Row, row, run

BUDGET_MS = 50.0
COMPARISONS = 40
THINK_MS = 700  # of a person, who takes longer
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
KEYS = ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown")
GUIDED = "localStorage.setItem('tutelage-guided:comparison:choice', '1')"
WATCH = """() => {
  window.waited = [];
  addEventListener("keydown", (event) => {
    const videos = [...(document.querySelectorAll(".question")[1]?.querySelectorAll("video") ?? [])];
    const pictures = videos.map((video) => new Promise((seen) =>
      video.requestVideoFrameCallback((now, picture) => seen([picture.expectedDisplayTime, now]))));
    if (!videos.length) return;
    Promise.all(pictures).then((times) => waited.push(
      [0, 1].map((k) => Math.max(...times.map((time) => time[k])) - event.timeStamp)));
  }, {capture: true});
}"""
PLAYING = """() => {
  const all = [...document.querySelectorAll(".question.shown video")];
  return all.length === 2 && all.every((video) => video.currentTime > 0);
}"""
AHEAD = (
    "() => [...document.querySelectorAll('.question.ahead video')].every((video) => video.readyState === 4)"
)


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The URL of a labeler of its own, in a process of its own, with all clips there."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "services.cli", "labeler", "serve", "--folder", folder, "--demo"]
        process = subprocess.Popen(
            [*command, "--address", "127.0.0.1:0", "--access", "off", "--repeats", "0", "--overlap", "0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            while _open(url) < COMPARISONS:
                if process.poll() is not None:
                    raise SystemExit("the labeler did not start")
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait()


def _open(url: str) -> int:
    with urlopen(f"{url}/api/me") as said:
        return json.load(said)["open"]


def answered(page: Page) -> list[list[float]]:
    """Milliseconds that each answer but the last waited: for the screen, for the callback."""
    page.evaluate(WATCH)
    for n in range(COMPARISONS):
        page.wait_for_function(PLAYING)
        page.wait_for_function(AHEAD)
        page.wait_for_timeout(THINK_MS)
        page.keyboard.press(KEYS[n % len(KEYS)])
    page.get_by_role("heading", name="No questions at the moment").wait_for()
    waited: Any = page.evaluate("() => waited")
    if len(waited) != COMPARISONS - 1:
        raise SystemExit(f"{len(waited)} of {COMPARISONS - 1} pairs were seen to appear")
    return waited


def key_to_frame() -> Iterable[Row]:
    if (chromium := shutil.which("chromium")) is None:
        raise SystemExit("no Chromium: install the package chromium")
    with served() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        context = browser.new_context()
        context.add_init_script(GUIDED)
        page = context.new_page()
        page.goto(url)
        waited = answered(page)
        browser.close()
    screen, callback = np.transpose(waited)
    for what, share, times in (("", 50, screen), ("", 90, screen), (", callback", 50, callback)):
        yield row(
            "page",
            f"key press to the next pair's first frame{what}, p{share}",
            ours=float(np.percentile(times, share)),
            against="what is wanted",
            reference=BUDGET_MS,
            unit="ms",
            reach=1.0 if times is screen and share == 50 else None,
            smaller_is_better=True,
        )


if __name__ == "__main__":
    run({"key-to-frame": key_to_frame})
