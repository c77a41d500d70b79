"""For tests: a Chromium that watches itself, and people who answer in it by keys."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from actors.clips import episode
from actors.environments import make_env
from actors.replay import replay
from services.labeler.access import Role
from services.labeler.serve import Running
from tutelage.types import Array, EnvRecipe, Query, Segment

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
GUIDES = (
    *("action:choice", "action:sliders", "comparison:choice", "demonstration:play"),
    *("rating:choice", "rating:frames", "text:choice"),
)
PHONE = {"width": 360, "height": 740}
SHOWN = ".question.shown"
SETTLE_MS = 200  # a little more than the page wants between two answers
SETTLED = f"""() => {{
  const shown = document.querySelector("{SHOWN}");
  if (!shown) return false;
  window.seen ??= new WeakMap();
  if (!window.seen.has(shown)) window.seen.set(shown, performance.now());
  return performance.now() - window.seen.get(shown) > {SETTLE_MS};
}}"""
GUIDED = "for (const name of %s) localStorage.setItem(`tutelage-guided:${name}`, '1')"


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium of the system, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Person:
    """Somebody with a browser of their own. Whatever it complains about is in `complaints`.

    guided: they know what is asked already, so no guide is shown
    """

    def __init__(self, browser: Browser, running: Running, *, guided: bool = True, **settings: Any) -> None:
        self.running = running
        self.complaints: list[str] = []
        self.context: BrowserContext = browser.new_context(base_url=running.url, **settings)
        self.context.set_default_timeout(20_000)
        if guided:
            self.context.add_init_script(GUIDED % json.dumps(GUIDES))
        self.page = self.tab()

    def tab(self) -> Page:
        """One more tab of the same browser."""
        page = self.context.new_page()
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())  # whether it is meant
        return page

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} ({message.location.get('url', '')})")

    def forgive(self, pattern: str) -> None:
        """Complaints that a test expects."""
        self.complaints = [words for words in self.complaints if not re.search(pattern, words)]

    def come_in(self, name: str = "anna", role: Role = "annotator") -> Person:
        """By an invite, as people do."""
        self.page.goto(f"/invite/{self.running.access.invite(role, name=name)}")
        self.page.get_by_role("button", name="Begin").click()
        self.page.wait_for_url(re.compile(r"/(operator)?$"))
        return self

    def shown(self, page: Page | None = None) -> str:
        """The id of the question that is shown, once it takes answers."""
        page = page or self.page
        page.wait_for_function(SETTLED)
        return page.locator(SHOWN).get_attribute("data-question") or ""

    def back(self, question: str) -> None:
        """Wait until a question is shown again that was taken back."""
        self.page.locator(f'{SHOWN}[data-question="{question}"]').wait_for()
        self.shown()

    def answer(self, key: str, page: Page | None = None) -> str:
        """Press a key, wait for what comes next; returns what was answered."""
        page = page or self.page
        question = self.shown(page)
        page.keyboard.press(key)
        page.locator(f'{SHOWN}[data-question="{question}"]').wait_for(state="detached")
        return question

    def sent(self, page: Page | None = None) -> None:
        """Wait until the service has every answer."""
        unsent = "() => !Object.keys(localStorage).some(key => key.startsWith('tutelage-unsent'))"
        (page or self.page).wait_for_function(unsent)


def stored(running: Running) -> dict[str, dict[str, Any]]:
    """By question, the answers that count, as the queue has them."""
    found: dict[str, dict[str, Any]] = {}
    for event in running.labeling.queue.events("0", wait_s=0)[0]:
        if event.type == "undo":
            found.pop(event.question)
        else:
            assert event.question not in found, f"{event.question} is stored twice"
            found[event.question] = dict(event.body)
    return found


def axe(page: Page) -> list[str]:
    """What axe-core finds wrong with the page, a line each."""
    found = Axe().run(page).response["violations"]
    return [
        f"{wrong['id']}: {node['html'][:160]} {node['failureSummary'][:300]}"
        for wrong in found
        for node in wrong["nodes"]
    ]


def sideways(page: Page) -> list[str]:
    """What is wider than the window."""
    return page.evaluate(
        """() => {
          const width = document.documentElement.clientWidth;
          if (document.documentElement.scrollWidth <= width) return [];
          return [...document.querySelectorAll("body *")]
            .filter((one) => one.getBoundingClientRect().right > width + 1)
            .map((one) => one.outerHTML.slice(0, 120));
        }"""
    )


# What they are asked


def cheetahs(n: int) -> list[Query]:
    """Comparisons of two stretches of HalfCheetah at random, a second each; few clips make many pairs."""
    stretches = segments(EnvRecipe("HalfCheetah-v5"), 10, length=20)
    pairs = [[one, other] for k, one in enumerate(stretches) for other in stretches[:k]]
    return [Query(f"run-{k:02d}", "comparison", pair, RUNNING) for k, pair in enumerate(pairs[:n])]


RUNNING = {"prompt": "Which one runs better?"}


def segments(recipe: EnvRecipe, n: int, *, length: int) -> list[Segment]:
    """The first `n` stretches of an episode that is played at random."""
    env = make_env(recipe)
    space = env.action_space
    env.close()
    space.seed(0)

    def act(obs: Sequence[Any]) -> Array:
        return np.stack([space.sample() for _ in obs])

    actions = episode(act, recipe, 0, n * length)
    obs = replay(recipe, 0, actions).obs
    assert len(actions) == n * length, "the episode is too short"
    return [
        Segment(obs[k : k + length], actions[k : k + length], recipe, 0, actions[:k])
        for k in range(0, n * length, length)
    ]
