"""Playing and taking over in a real browser, by keys.

TUTELAGE_SCREENSHOTS=docs/images writes what the pages look like to that folder.
"""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from actors.replay import replay
from expert_oracle.checkpoint import SHIPPED
from learner.demonstrations import load_demonstrations
from services.labeler import corrections
from services.run_directory import RunDirectory
from tests.browser import CHROMIUM, SHOWN, Person, axe, chromium, stored
from tests.labelers import served, texts, wait_for
from tutelage.types import EnvRecipe, Query

SCREENSHOTS = os.environ.get("TUTELAGE_SCREENSHOTS")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install the package chromium")


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def run(tmp_path):
    with RunDirectory.create(tmp_path / "cartpole", {"environment": {"env": "CartPole-v1"}}) as run:
        with run.new_checkpoint(12) as folder:
            shutil.copy(SHIPPED / "cartpole.safetensors", folder / "policy.safetensors")
        yield run


@pytest.fixture
def labeler(run):
    with served(run.path / "labeler", run=run.path) as running:
        yield running


@pytest.fixture
def anna(browser, labeler):
    person = Person(browser, labeler, viewport={"width": 1100, "height": 760}).come_in()
    yield person
    person.context.close()
    assert person.complaints == []


def shot(page, name):
    if SCREENSHOTS:
        page.screenshot(path=str(Path(SCREENSHOTS) / f"labeler-{name}.png"))


def drawn(page):
    """Until a picture is there: its middle column is not the black of an empty canvas."""
    page.wait_for_function(
        "() => { const c = document.querySelector('canvas'); return c && c.width > 256 &&"
        " c.getContext('2d').getImageData(c.width / 2, 0, 1, 1).data[3] === 255; }"
    )


def test_a_demonstration_is_played_by_keys(labeler, anna):
    known = {"env": "MountainCar-v0", "seed": 5, "max_steps": 400}
    labeler.labeling.submit([Query(f"d{n}", "demonstration", [], known, priority=-n) for n in range(2)])
    labeler.labeling.run_once()
    page = anna.page
    assert anna.shown() == "d0"
    state = page.locator(f"{SHOWN} .state")
    expect(state).to_contain_text("Press a key to begin.")
    drawn(page)
    assert axe(page) == []
    page.keyboard.down("ArrowRight")
    expect(state).to_contain_text("You play.")
    expect(page.locator(f"{SHOWN} .choice.held")).to_contain_text("Push right")
    page.keyboard.press("r")
    expect(state).to_contain_text("Press a key to begin.")
    page.keyboard.up("ArrowRight")
    page.keyboard.down("ArrowLeft")
    page.wait_for_function("() => /step (1[5-9]|[2-9]\\d|\\d{3})/.test(document.body.innerText)")
    shot(page, "demonstration")
    page.keyboard.up("ArrowLeft")
    page.keyboard.press("Enter")
    page.locator(f'{SHOWN}[data-question="d1"]').wait_for()
    played = stored(labeler)["d0"]
    actions = np.array(played["value"])
    assert len(actions) >= 15
    assert (actions[:10] == 0).all()
    assert len(replay(EnvRecipe("MountainCar-v0"), 5, actions).actions) == len(actions)
    expect(page.locator("header .figure:has-text('answered') b")).to_have_text("1")


def test_a_demonstration_is_taken_back_and_played_anew(labeler, anna):
    known = {"env": "MountainCar-v0", "seed": 5, "max_steps": 400}
    labeler.labeling.submit([*texts(1, priority=1), Query("d0", "demonstration", [], known)])
    labeler.labeling.run_once()
    page = anna.page

    def play(key):
        expect(page.locator(f"{SHOWN} .state")).to_contain_text("Press a key to begin.")
        page.keyboard.down(key)
        expect(page.locator(f"{SHOWN} .state")).to_contain_text("You play.")
        page.keyboard.up(key)
        page.keyboard.press("Enter")
        page.locator('[data-question="d0"]').wait_for(state="detached")

    assert anna.answer("ArrowLeft") == "q0"
    play("ArrowLeft")
    page.keyboard.press("z")
    anna.back("d0")
    play("ArrowRight")
    answers = stored(labeler)
    assert set(answers) == {"q0", "d0"}
    assert answers["d0"]["value"][0] == 2
    undone = [event.question for event in labeler.labeling.queue.events()[0] if event.type == "undo"]
    assert undone == ["d0"]


def test_what_is_broken_off_can_be_begun_again(labeler, anna):
    known = {"env": "MountainCar-v0", "seed": 5}
    labeler.labeling.submit([Query("d0", "demonstration", [], known)])
    labeler.labeling.run_once()
    page = anna.page
    anna.shown()
    state = page.locator(f"{SHOWN} .state")
    expect(state).to_contain_text("Press a key to begin.")
    page.route_web_socket("**/api/play/*", lambda socket: socket.close(code=1008, reason="for a test"))
    page.reload()
    expect(state).to_contain_text("for a test")
    page.unroute_all()
    page.route_web_socket("**/api/play/*", lambda socket: socket.connect_to_server())
    page.keyboard.press("r")
    expect(state).to_contain_text("Press a key to begin.")
    assert stored(labeler) == {}


def test_a_person_takes_over_from_the_policy_by_keys(labeler, anna, run):
    page = anna.page
    page.goto("/live")
    banner = page.locator(".banner")
    expect(banner).to_have_text("READY")
    drawn(page)
    page.wait_for_timeout(500)
    expect(page.locator(".state")).to_contain_text("step 0")  # it waits
    page.keyboard.press("n")
    expect(banner).to_have_text("POLICY")
    page.wait_for_function("() => /step [1-9]/.test(document.body.innerText)")
    page.keyboard.down("ArrowLeft")
    page.keyboard.down(" ")
    expect(banner).to_have_text("YOU")
    shot(page, "live")
    page.keyboard.up(" ")
    page.wait_for_function("() => ['POLICY', 'ENDED'].includes(document.querySelector('.banner').innerText)")
    page.keyboard.up("ArrowLeft")
    page.keyboard.press("n")
    expect(banner).to_have_text("READY")
    page.get_by_role("button", name="Hold to take over").focus()
    page.keyboard.press("Enter")
    expect(banner).to_have_text(re.compile("YOU|ENDED"))
    expect(page.get_by_role("button", name="Hold to take over", pressed=True)).to_be_visible()
    page.keyboard.press(" ")
    expect(page.get_by_role("button", name="Hold to take over", pressed=False)).to_be_visible()
    page.get_by_role("button", name="Push left").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Push left", pressed=True)).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Push left", pressed=False)).to_be_visible()
    assert axe(page) == []
    page.goto("/")
    corrected = run.path / "labeler" / "corrections"
    wait_for(lambda: list(corrected.glob("*.safetensors")))
    (path,) = corrected.glob("*.safetensors")
    about = corrections.about(path)
    assert (about["annotator"], about["checkpoint"]) == ("anna", "000012")
    learnt = load_demonstrations(run.path)
    assert len(learnt) == about["corrected"] >= 1
    assert (learnt.actions == 0).all()


def test_without_a_run_the_page_says_why(browser, tmp_path):
    with served(tmp_path / "alone") as running:
        anna = Person(browser, running).come_in()
        anna.page.goto("/live")
        expect(anna.page.locator(".banner")).to_have_text("BROKEN OFF")
        expect(anna.page.locator(".state")).to_contain_text("was not started with --run RUN")
        assert axe(anna.page) == []
        anna.context.close()
        assert anna.complaints == []
