"""DAgger learns from a person who answers in the page, and waits for them while they are away."""

import json
import re
import subprocess
import sys
import threading

import pytest
from playwright.sync_api import Page

from tests.browser import CHROMIUM, GUIDED, GUIDES, SHOWN, chromium

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install the package chromium"),
]
NUMBERS = f"[...document.querySelectorAll('{SHOWN} td:last-child')].map((cell) => Number(cell.textContent))"
LABELS = 1000
AWAY_S = 60


def balance(page: Page, answers: int) -> int:
    """Answer like somebody who can balance a pole, reading position and speeds from the page."""
    for done in range(answers):
        question = page.locator(SHOWN)
        if not question.count():
            try:
                question.wait_for(timeout=20_000)
            except Exception:
                return done
        page.wait_for_timeout(160)
        numbers = page.evaluate(NUMBERS)
        if len(numbers) != 4:
            return done
        x, v, angle, spin = numbers
        right = angle + 0.5 * spin + 0.03 * x + 0.06 * v > 0
        page.keyboard.press("ArrowRight" if right else "ArrowLeft")
    return answers


def test_a_run_learns_cartpole_from_the_page(tmp_path):
    run = tmp_path / "run"
    settings = ["expert.oracle=human", "method.beta=0", f"stop.expert_labels={LABELS}", "run.episodes=20"]
    settings += ["env_runners.rollout_fragment_length=100", "evaluation.evaluation_duration=10"]
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "train", "dagger-cartpole", *settings, "--run", run, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    link = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+/invite/\S+", line)))
    rest = threading.Thread(target=process.stderr.read, daemon=True)
    rest.start()
    with chromium() as browser:
        page = browser.new_page()
        page.add_init_script(GUIDED % json.dumps(GUIDES))
        page.goto(link)
        page.locator("input").fill("Anna")
        page.keyboard.press("Enter")
        assert balance(page, 150) == 150
        page.wait_for_timeout(1000 * AWAY_S)
        assert process.poll() is None
        while process.poll() is None:
            balance(page, 50)
    assert process.stdout is not None
    summary = json.loads(process.stdout.read().splitlines()[-1])
    assert summary["expert_labels"] == LABELS
    assert summary["return_mean"] >= 475
