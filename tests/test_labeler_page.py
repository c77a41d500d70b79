"""The labeler's page in a real browser, against the real service, with real clips.

TUTELAGE_SCREENSHOTS=docs/images writes what the pages look like to that folder.
"""

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from actors.environments import make_env
from actors.replay import replay
from services.labeler.serve import Running
from tests.browser import GUIDED, GUIDES
from tests.labelers import served, texts
from tutelage.types import EnvRecipe, Query, Segment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
SCREENSHOTS = os.environ.get("TUTELAGE_SCREENSHOTS")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install the package chromium")

CURRENT = ".question.shown"
ANSWERED = "header .figure:has-text('answered') b"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def labeler(tmp_path) -> Iterator[Running]:
    with served(tmp_path / "cheetah") as running:
        yield running


@pytest.fixture
def visit(browser) -> Iterator[Any]:
    """Opens a page for somebody; whatever it complains about fails the test."""
    opened = []

    def visit(
        running: Running,
        path: str = "/",
        *,
        name: str = "anna",
        role: Any = "annotator",
        context: Any = None,
        guided: bool = True,
        **settings: Any,
    ) -> Page:
        if context is None:
            context = browser.new_context(**{"viewport": {"width": 1100, "height": 760}} | settings)
            invite = running.access.invite(role, name=name)
            origin = {"Origin": running.url}
            said = context.request.post(
                f"{running.url}/api/session", data={"invite": invite, "name": name}, headers=origin
            )
            assert said.ok, said.text()
            opened.append((context, complaints := []))
            if guided:
                context.add_init_script(GUIDED % json.dumps(GUIDES))
        else:
            complaints = next(said for known, said in opened if known is context)
        page = context.new_page()
        page.on(
            "console",
            lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.complaints = complaints  # type: ignore[attr-defined]
        page.goto(running.url + path)
        return page

    yield visit
    for context, complaints in opened:
        context.close()
        assert complaints == []


def segments(env: str, n: int, *, length: int = 20) -> list[Segment]:
    recipe = EnvRecipe(env)
    made = make_env(recipe)
    made.action_space.seed(0)
    actions = np.stack([made.action_space.sample() for _ in range(length + n)])
    if env == "CartPole-v1":  # so that it stands for that long
        actions = np.arange(length + n) % 2
    made.close()
    played = replay(recipe, 0, actions)
    return [
        Segment(played.obs[k : k + length], actions[k : k + length], recipe, 0, actions[:k]) for k in range(n)
    ]


def comparisons(n: int, env: str = "CartPole-v1", **context: Any) -> list[Query]:
    """`n` pairs of as few clips as can be."""
    parts = segments(env, next(m for m in itertools.count(2) if math.comb(m, 2) >= n), length=12)
    return [
        Query(f"q{k}", "comparison", list(pair), {"task": "Keep it upright.", **context})
        for k, pair in zip(range(n), itertools.combinations(parts, 2), strict=False)
    ]


def one_of_each_kind() -> list[Query]:
    (part,) = segments("CartPole-v1", 1)
    state = np.array([0.1, 0.0, 0.05, 0.2], np.float32)
    told = {"env": "CartPole-v1", "draw": {"id": "CartPole-v1"}}
    torque = {"env": "Pendulum-v1", "space": {"low": [-2.0], "high": [2.0]}}
    return [
        Query("a-action", "action", [state], told, priority=5),
        Query("b-sliders", "action", [np.array([0.0, 1.0, 0.5], np.float32)], torque, priority=4),
        Query("c-rating", "rating", [part], {"task": "Keep it upright."}, priority=3),
        Query("d-praise", "rating", [part], {"task": "Keep it upright.", "per_frame": True}, priority=2),
        *texts(1),
    ]


def asked(running: Running, queries: list[Query]) -> None:
    """Until all of them can be answered."""
    running.labeling.submit(queries)
    while running.labeling.waiting():
        running.labeling.run_once()


def stored(running: Running) -> dict[str, Any]:
    """Bodies of the answers that count, by question, each of them once."""
    running.labeling.run_once()
    answers = running.labeling.ledger.answers()
    assert len({event.question for event in answers}) == len(answers)
    return {event.question: event.body for event in answers}


def press(page: Page, key: str) -> None:
    """As a person would, when the question is there for a moment, and until the next one is."""
    question = page.locator(CURRENT)
    question.locator("video, article, canvas").first.wait_for()
    page.wait_for_timeout(170)  # sooner is taken for the end of the press before
    answered = int(page.locator(ANSWERED).inner_text())
    page.keyboard.press(key)
    expect(page.locator(ANSWERED)).to_have_text(str(answered + 1))


def sent(page: Page) -> None:
    unsent = "Object.keys(localStorage).some((key) => key.startsWith('tutelage-unsent'))"
    page.wait_for_function(f"() => !{unsent}")


def shot(page: Page, name: str) -> None:
    if SCREENSHOTS:
        page.wait_for_timeout(600)
        page.screenshot(path=str(Path(SCREENSHOTS) / f"labeler-{name}.png"))


def axe(page: Page) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == [], scheme
    size = page.viewport_size
    assert size is not None
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.set_viewport_size(size)


def test_forty_comparisons_of_half_cheetah_by_keys(labeler, visit, offscreen_gl):
    asked(labeler, comparisons(40, "HalfCheetah-v5", task="Run forward."))
    page = visit(labeler)
    shot(page, "comparison")
    keys = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"] * 10
    for key in keys:
        press(page, key)
    sent(page)
    expect(page.locator(".empty h1")).to_have_text("No questions at the moment")
    answers = stored(labeler)
    assert len(answers) == 40
    assert sum(body["cannot_tell"] for body in answers.values()) == 10
    ties = [body for body in answers.values() if body["value"] == [0.5, 0.5]]
    assert len(ties) == 10
    for body in answers.values():
        if body["cannot_tell"]:
            assert body["value"] is None
            continue
        if body["value"] != [0.5, 0.5]:
            assert set(body["value"]) == {0.0, 1.0}
        assert sorted(body["side_shown"]) == [0, 1]
        assert body["started_at"] <= body["first_key_at"]
    assert len({tuple(body["side_shown"]) for body in answers.values()}) == 2


def test_left_is_what_was_shown_on_the_left(labeler, visit):
    asked(labeler, comparisons(6))
    page = visit(labeler)
    for _ in range(6):
        press(page, "ArrowLeft")
    sent(page)
    for body in stored(labeler).values():
        assert body["value"][body["side_shown"][0]] == 1.0


def test_both_clips_play_in_step_and_stop_together(labeler, visit):
    asked(labeler, comparisons(2))
    page = visit(labeler)
    page.locator(f"{CURRENT} video").nth(1).wait_for()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.shown video')].every((v) => !v.paused && v.currentTime > 0)"
    )
    page.keyboard.press(" ")
    page.wait_for_function("() => [...document.querySelectorAll('.shown video')].every((v) => v.paused)")
    one, other = page.evaluate("[...document.querySelectorAll('.shown video')].map((v) => v.currentTime)")
    assert abs(one - other) < 0.1
    page.evaluate("document.querySelectorAll('.shown video').forEach((v) => (v.currentTime = 0))")
    page.keyboard.press(".")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.shown video')].every((v) => v.currentTime > 0.015)"
    )
    page.wait_for_function(  # loaded before its turn
        "() => document.querySelector('.question.ahead video').readyState >= 2"
    )


def test_an_answer_is_taken_back_and_given_again(labeler, visit):
    asked(labeler, comparisons(3))
    page = visit(labeler)
    press(page, "ArrowLeft")
    sent(page)
    page.keyboard.press("z")
    expect(page.locator(ANSWERED)).to_have_text("0")
    press(page, "ArrowUp")
    sent(page)
    answers = stored(labeler)
    assert [body["value"] for body in answers.values()] == [[0.5, 0.5]]


def test_a_key_pressed_twice_answers_once(labeler, visit):
    asked(labeler, comparisons(3))
    page = visit(labeler)
    page.locator(f"{CURRENT} video").first.wait_for()
    page.wait_for_timeout(170)
    pressed = "new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true})"
    page.evaluate(f"for (let n = 0; n < 2; n++) document.body.dispatchEvent({pressed})")
    expect(page.locator(ANSWERED)).to_have_text("1")
    sent(page)
    assert len(stored(labeler)) == 1


def test_a_reload_goes_on_with_the_same_question(labeler, visit):
    asked(labeler, comparisons(8))
    page = visit(labeler)
    press(page, "ArrowLeft")
    sent(page)
    before = page.locator(f"{CURRENT} video").first.get_attribute("src")
    page.reload()
    expect(page.locator(f"{CURRENT} video").first).to_have_attribute("src", str(before))
    expect(page.locator(ANSWERED)).to_have_text("1")


def test_answers_given_offline_are_sent_later_even_after_a_reload(labeler, visit):
    asked(labeler, comparisons(3))
    page = visit(labeler)
    page.locator(f"{CURRENT} video").first.wait_for()
    page.wait_for_function("() => document.querySelectorAll('.question').length === 3")
    page.route("**/api/answer", lambda route: route.abort())
    press(page, "ArrowLeft")
    press(page, "ArrowLeft")
    expect(page.locator(".badge", has_text="unsent: 2")).to_be_visible()
    assert stored(labeler) == {}
    page.unroute("**/api/answer")
    page.reload()
    sent(page)
    assert len(stored(labeler)) == 2
    # the browser says that requests failed, some of it late
    page.complaints[:] = [said for said in page.complaints if "net::ERR_FAILED" not in said]


def test_two_tabs_of_one_person_answer_each_question_once(labeler, visit):
    asked(labeler, comparisons(4))
    page = visit(labeler)
    page.locator(f"{CURRENT} video").first.wait_for()
    other = visit(labeler, context=page.context)
    for one in (page, other):
        one.bring_to_front()
        for _ in range(4):
            if one.locator(CURRENT).count() == 0:
                break
            one.wait_for_timeout(170)
            one.keyboard.press("ArrowRight")
    sent(page)
    assert len(stored(labeler)) == 4


def test_every_kind_is_shown_and_answered(labeler, visit):
    asked(labeler, one_of_each_kind())
    page = visit(labeler)
    expect(page.locator(f"{CURRENT} .choice").nth(1)).to_contain_text("Push right")
    shot(page, "action")
    axe(page)
    press(page, "ArrowRight")
    slider = page.locator(f"{CURRENT} input[type=range]")
    slider.fill("1.5")
    shot(page, "sliders")
    axe(page)
    press(page, "Enter")
    expect(page.locator(f"{CURRENT} .choice")).to_have_count(6)
    shot(page, "rating")
    axe(page)
    press(page, "5")
    expect(page.locator(f"{CURRENT} .track")).to_be_visible()
    page.locator(f"{CURRENT} video").wait_for()
    page.keyboard.press("2")
    page.keyboard.press("1")
    expect(page.locator(f"{CURRENT} .track i")).to_have_count(2)
    shot(page, "praise")
    axe(page)
    press(page, "Enter")
    expect(page.locator(f"{CURRENT} article")).to_have_count(2)
    page.keyboard.press("d")
    expect(page.locator(f"{CURRENT} ins")).to_have_count(2)
    shot(page, "text")
    axe(page)
    press(page, "ArrowLeft")
    sent(page)
    answers = stored(labeler)
    assert answers["a-action"]["value"] == 1
    assert answers["b-sliders"]["value"] == [1.5]
    assert answers["c-rating"]["value"] == [1.0]
    assert [mark[1] for mark in answers["d-praise"]["value"]] == [1.0, -1.0]
    assert len(answers) == 5


def test_no_text_becomes_html(labeler, visit):
    bad = "<img src=x onerror=alert(1)><script>document.title='x'</script> **bold** [x](javascript:alert(1))"
    asked(labeler, [Query("q", "text", [bad, "plain"], {"prompt": bad})])
    page = visit(labeler)
    page.locator(f"{CURRENT} article strong").wait_for()
    assert page.locator(f"{CURRENT} img, {CURRENT} script").count() == 0
    assert not page.locator(f"{CURRENT} a").first.get_attribute("href")
    assert page.title() != "x"


def test_the_guide_comes_once_and_again_when_asked_for(labeler, visit):
    asked(labeler, comparisons(2))
    page = visit(labeler, guided=False)
    dialog = page.locator("dialog[open]")
    expect(dialog.locator("h1")).to_have_text("Two short clips")
    shot(page, "guide")
    axe(page)
    page.keyboard.press("ArrowLeft")  # nothing is answered behind it
    for _ in range(3):
        page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    assert stored(labeler) == {}
    page.reload()
    page.locator(f"{CURRENT} video").first.wait_for()
    expect(dialog).to_have_count(0)
    page.keyboard.press("?")
    expect(dialog).to_have_count(1)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_praise_has_a_guide_of_its_own_besides_that_of_ratings(labeler, visit):
    asked(labeler, [query for query in one_of_each_kind() if query.kind == "rating"])
    page = visit(labeler, guided=False)
    dialog = page.locator("dialog[open]")
    for title in ("One clip at a time", "Praise and scold"):
        expect(dialog.locator("h1")).to_have_text(title)
        for _ in range(3):
            page.keyboard.press("Enter")
        expect(dialog).to_have_count(0)
        press(page, "ArrowDown")
    sent(page)
    assert len(stored(labeler)) == 2


def test_a_question_that_comes_later_appears_by_itself(labeler, visit):
    page = visit(labeler)
    expect(page.locator(".empty h1")).to_have_text("No questions at the moment")
    shot(page, "empty")
    axe(page)
    asked(labeler, texts(1))
    page.locator(f"{CURRENT} article").first.wait_for()


def test_on_a_phone_nothing_scrolls_sideways_and_buttons_answer(labeler, visit):
    asked(labeler, comparisons(3))
    page = visit(labeler, viewport={"width": 360, "height": 720}, has_touch=True, color_scheme="dark")
    page.locator(f"{CURRENT} video").first.wait_for()
    page.wait_for_timeout(170)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    shot(page, "phone")
    page.locator(f"{CURRENT} .choice", has_text="Left is better").tap()
    sent(page)
    assert len(stored(labeler)) == 1


def test_coming_in_by_an_invite(labeler, browser):
    context = browser.new_context()
    page = context.new_page()
    page.goto(labeler.url)
    expect(page.locator("h1")).to_have_text("You need an invite")
    axe(page)
    page.goto(labeler.link("annotator"))
    page.locator("input").fill("Berta")
    shot(page, "invite")
    axe(page)
    page.keyboard.press("Enter")
    expect(page.locator(".empty h1")).to_be_visible()
    page.goto(f"{labeler.url}/operator")
    expect(page.locator("h1")).to_have_text("For operators")
    context.close()


def test_an_invite_that_is_none_is_said(labeler, browser):
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{labeler.url}/invite/nonsense")
    expect(page.locator("h1")).to_have_text("This link does not work")
    context.close()


def test_operators_see_what_goes_on_and_act(labeler, visit):
    asked(labeler, [*comparisons(4), *texts(2, first=10)])
    labeler.labeling.submit([Query("no-such", "comparison", [_nowhere(), _nowhere()])])
    anna = visit(labeler)
    press(anna, "ArrowLeft")
    sent(anna)
    page = visit(labeler, "/operator", name="olga", role="operator")
    row = page.locator("tbody tr", has_text="anna")
    expect(row.locator("td").first).to_have_text("1")
    expect(page.locator(".dead li")).to_contain_text("no-such")
    axe(page)
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Make a link").click()
    link = page.locator(".link input").input_value()
    assert link.startswith(f"{labeler.url}/invite/")
    page.on("dialog", lambda dialog: dialog.accept())
    row.get_by_role("button", name="Ban").click()
    expect(row).to_have_class("banned")
    with page.expect_download() as download:
        page.get_by_text("Answers as JSON lines").click()
    assert len(Path(download.value.path()).read_text().splitlines()) == 1
    page.locator(".audit summary").click()
    expect(page.locator(".audit li", has_text="banned").first).to_be_visible()


def _nowhere() -> Segment:
    return Segment(
        np.zeros((3, 4), np.float32),
        np.zeros(3, np.int64),
        EnvRecipe("NoSuchEnv-v0"),
        0,
        np.zeros(0, np.int64),
    )
