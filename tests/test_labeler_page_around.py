"""The page when things go otherwise than planned, on other screens, and as operators see it.

Like test_labeler_page, in a real Chromium and with real clips; TUTELAGE_SCREENSHOTS=docs/images writes
pictures.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from actors.clips import render
from services.labeler.access import Role
from services.run_directory import RunDirectory
from tests.browser import (
    CHROMIUM,
    PHONE,
    SHOWN,
    Person,
    axe,
    cheetahs,
    chromium,
    segments,
    sideways,
    stored,
)
from tests.labelers import Page, served, texts, wait_for
from tutelage.types import EnvRecipe, Query

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: the page is not tried; install chromium"
)

LEFT, RIGHT, TIE, CANNOT_TELL = "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"
OFFLINE = "ERR_INTERNET_DISCONNECTED|ERR_FAILED|ERR_NETWORK|Failed to fetch"
CARTPOLE = EnvRecipe("CartPole-v1")


@pytest.fixture(scope="module")
def browser():
    with chromium() as ours:
        yield ours


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with served(tmp_path_factory.mktemp("labeler") / "halfcheetah") as labeler:
        yield labeler


@pytest.fixture
def comes(browser, running):
    """People who come in; at the end none of their browsers may have complained."""
    people = []

    def come(name="", role: Role = "annotator", at=None, enters=True, **settings):
        person = Person(browser, at or running, **settings)
        people.append(person)
        return person.come_in(name or f"anna-{next(NUMBERS)}", role) if enters else person

    yield come
    complaints = [words for person in people for words in person.complaints]
    for person in people:
        person.context.close()
    assert complaints == []


NUMBERS = itertools.count()


@pytest.fixture
def ask(running):
    """Asks questions, with ids of their own, and withdraws them at the end."""
    asked = []

    def ask(queries, at=None):
        labeling = (at or running).labeling
        mark = f"{next(NUMBERS)}-"
        ids = labeling.submit([dataclasses.replace(query, id=mark + query.id) for query in queries])
        if at is None:
            asked.extend(ids)
        while labeling.waiting():
            labeling.run_once()
            time.sleep(0.02)
        dead = labeling.queue.dead()
        assert not set(ids) & set(dead), dead
        return ids

    yield ask
    running.labeling.queue.withdraw(asked)


@pytest.fixture
def snap():
    """Pictures for the documentation, where they are wanted."""
    folder = os.environ.get("TUTELAGE_SCREENSHOTS")

    def snap(page, name):
        if folder:
            page.screenshot(path=Path(folder) / f"labeler-{name}.png")

    return snap


# Answering


def meaning(said):
    """The key that an answer to a comparison of two stands for."""
    if said["cannot_tell"]:
        assert said["value"] is None
        return CANNOT_TELL
    if said["value"] == [0.5, 0.5]:
        return TIE
    return (LEFT, RIGHT)[said["side_shown"].index(int(np.argmax(said["value"])))]


def test_an_answer_is_taken_back_and_given_otherwise(comes, ask, running):
    ids = ask(texts(3))
    person = comes()
    first = person.answer(LEFT)
    person.page.keyboard.press("z")  # perhaps while it is being sent
    person.back(first)
    assert person.answer(RIGHT) == first
    person.sent()
    person.page.get_by_role("button", name="Undo").click()
    person.back(first)
    for key in (CANNOT_TELL, LEFT, LEFT):
        person.answer(key)
    person.sent()
    answers = stored(running)
    assert [meaning(answers[id]) for id in (first, *sorted(set(ids) - {first}))] == [CANNOT_TELL, LEFT, LEFT]


def test_an_answer_whose_reply_was_lost_is_taken_back_from_the_service_too(comes, ask, running):
    ids = ask(texts(2))
    person = comes("ilse")
    person.shown()
    lost = []

    def lose_the_first(route):
        if lost:
            return route.continue_()
        lost.append(route.fetch())
        return route.abort()

    person.context.route("**/api/answer", lose_the_first)
    first = person.answer(LEFT)
    expect(person.page.get_by_role("button", name="unsent: 1")).to_be_visible()
    unsent = person.page.evaluate("() => Object.keys(localStorage).filter(key => key.includes('unsent'))")
    assert unsent == [f"tutelage-unsent:{running.access.mark}:ilse"]
    assert meaning(stored(running)[first]) == LEFT
    person.page.keyboard.press("z")
    person.back(first)
    assert person.answer(RIGHT) == first
    person.answer(TIE)
    person.sent()
    answers = stored(running)
    assert {meaning(answers[id]) for id in ids if id != first} == {TIE}
    assert meaning(answers[first]) == RIGHT
    person.forgive(OFFLINE)


def test_what_can_no_longer_be_taken_back_is_said(comes, ask, running):
    ask(texts(2))
    person = comes("jens")
    first = person.answer(LEFT)
    person.sent()
    running.labeling.queue.ban("jens")
    person.page.keyboard.press("z")
    expect(person.page.get_by_role("status")).to_contain_text("can no longer be taken back")
    expect(person.page.locator(f'[data-question="{first}"]')).to_have_count(0)
    person.forgive("status of 403")


def test_a_question_whose_answer_was_refused_is_asked_again(comes, ask, running):
    (id,) = ask(texts(1))
    person = comes()
    person.shown()
    person.context.route(
        "**/api/answer", lambda route: route.fulfill(status=422, json={"detail": "not so"}), times=1
    )
    person.page.keyboard.press(LEFT)
    expect(person.page.get_by_role("status")).to_contain_text("not so")
    person.back(id)
    person.answer(RIGHT)
    person.sent()
    assert meaning(stored(running)[id]) == RIGHT
    person.forgive("status of 422")


def test_a_question_whose_answer_came_too_late_is_asked_again_once_it_is_open(comes, ask, running):
    (id,) = ask(texts(1))
    person = comes("lars")
    person.shown()
    queue = running.labeling.queue

    def lets_go(name):  # as when a lease has ended
        queue.ban(name)
        queue.ban(name, False)

    lets_go("lars")
    assert [one.id for one in running.labeling.assign("mona", 1)] == [id]
    person.page.keyboard.press(LEFT)
    expect(person.page.get_by_role("status")).to_contain_text("came too late")
    expect(person.page.get_by_role("button", name="Undo")).to_be_disabled()
    lets_go("mona")
    person.back(id)
    person.answer(RIGHT)
    person.sent()
    assert meaning(stored(running)[id]) == RIGHT


def enter(page, running, name):
    """Sign in, as in another tab."""
    page.evaluate(
        "invite => fetch('/api/session', {method: 'POST', body: JSON.stringify({invite}), "
        "headers: {'Content-Type': 'application/json'}})",
        running.access.invite("annotator", name=name),
    )


def test_an_answer_waits_for_who_gave_it_when_somebody_else_signs_in(comes, ask, running):
    (id, _) = ask(texts(2))
    person = comes("nele")
    page = person.page
    assert person.shown() == id
    enter(page, running, "otto")
    page.evaluate("document.documentElement.dataset.before = ''")
    page.keyboard.press(LEFT)
    expect(page.locator("html[data-before]")).to_have_count(0)  # it began anew
    expect(page.locator("header .figure:has-text('answered') b")).to_have_text("0")
    assert id not in stored(running)
    enter(page, running, "nele")
    page.reload()
    person.sent()
    assert meaning(stored(running)[id]) == LEFT
    person.forgive("status of 403")


def test_an_answer_on_its_way_when_somebody_else_signs_in_waits_too(comes, ask, running):
    (id, _) = ask(texts(2))
    person = comes("nina")
    page, answers, documents = person.page, [], []
    assert person.shown() == id
    page.route("**/api/answer", lambda route: answers.append(route), times=1)
    page.route(page.url, lambda route: documents.append(route))  # it does not go yet when it begins anew
    enter(page, running, "otto")
    page.keyboard.press(LEFT)  # the answer is held; the next lease finds that it is otto who is there
    wait_for(lambda: page.wait_for_timeout(20) or (answers and documents), 20)
    with page.expect_response("**/api/answer") as refused:
        answers[0].continue_()
    assert refused.value.status == 403
    page.wait_for_timeout(500)  # whatever follows from that
    (document,) = documents
    document.continue_()
    page.unroute(page.url)
    expect(page.locator("header .figure:has-text('answered') b")).to_have_text("0")
    enter(page, running, "nina")
    page.reload()
    person.sent()
    assert meaning(stored(running)[id]) == LEFT
    person.forgive("status of 403")


def test_keys_are_known_by_their_places_where_the_letters_are_others(comes, ask, running):
    ids = ask(texts(2))
    person = comes()
    page = person.page

    def press(key, code):
        page.evaluate("keys => dispatchEvent(new KeyboardEvent('keydown', keys))", {"key": key, "code": code})

    first = person.answer(LEFT)
    press("y", "KeyZ")  # a keyboard on which the two have changed places
    assert person.shown() != first
    press("я", "KeyZ")
    person.back(first)
    for _ in ids:
        person.answer(LEFT)
    (id,) = ask([asked_as("comparison-of-three")])
    assert person.shown() == id
    press("é", "Digit2")
    page.locator(f'[data-question="{id}"]').wait_for(state="detached")
    person.sent()
    said = stored(running)[id]
    assert said["value"][said["side_shown"][1]] == 1


def test_a_held_key_answers_one_question(comes, ask, running):
    ids = ask(texts(3))
    person = comes()
    first = person.shown()
    person.page.keyboard.down(LEFT)
    assert person.shown() != first
    person.page.keyboard.down(LEFT)  # it repeats
    person.shown()
    person.page.keyboard.up(LEFT)
    person.sent()
    assert set(stored(running)) & set(ids) == {first}


def test_answers_given_offline_are_sent_later(comes, ask, running, snap):
    ids = ask(texts(6))
    person = comes()
    person.shown()
    person.context.set_offline(True)
    given = [person.answer(RIGHT) for _ in range(3)]
    badge = person.page.get_by_role("button", name="unsent: 3")
    expect(badge).to_be_visible()
    snap(person.page, "unsent")
    assert not set(stored(running)) & set(ids)
    person.context.set_offline(False)
    expect(badge).to_be_hidden()
    person.sent()
    assert set(stored(running)) & set(ids) == set(given)
    person.forgive(OFFLINE)


def test_unsent_answers_survive_a_reload(comes, ask, running):
    ids = ask(texts(6))
    person = comes()
    person.shown()
    person.context.route("**/api/answer", lambda route: route.abort())
    given = [person.answer(LEFT) for _ in range(2)]
    person.page.reload()
    assert person.shown() not in given
    badge = person.page.get_by_role("button", name="unsent: 2")
    expect(badge).to_be_visible()
    person.context.unroute("**/api/answer")
    badge.click()
    person.sent()
    assert set(stored(running)) & set(ids) == set(given)
    person.forgive(OFFLINE)


def test_a_pause_is_said_and_ends_by_itself(comes, ask, running):
    ask(texts(2))
    running.labeling.queue.pause()
    try:
        person = comes()
        expect(person.page.get_by_role("heading")).to_have_text("Paused")
    finally:
        running.labeling.queue.pause(False)
    person.answer(LEFT)


def test_a_pause_hides_what_is_held_and_draining_lets_it_be_finished(comes, ask, running):
    ask(texts(8))
    person = comes()
    person.shown()
    expect(person.page.locator("header .figure", has_text="open")).to_have_text("8 open")
    heading = person.page.get_by_role("heading", level=1)
    try:
        running.labeling.queue.pause()
        expect(heading).to_have_text("Paused")
        running.labeling.queue.pause(drain=True)
        for _ in range(4):
            person.answer(LEFT)
        expect(heading).to_have_text("Paused")
        assert running.labeling.queue.counts()["open"] == 4
    finally:
        running.labeling.queue.pause(False)
    person.shown()


def test_leases_are_kept_and_left_to_others_when_nobody_is_there(comes, ask):
    ask(texts(2))
    person = comes()
    person.page.clock.install()
    person.page.reload()
    expect(person.page.locator(SHOWN)).to_be_visible()
    with person.page.expect_request("**/api/beat") as beat:
        person.page.clock.run_for(21_000)
    assert len(json.loads(beat.value.post_data or "")["questions"]) == 2
    person.page.clock.run_for(4 * 60_000 + 20_000)
    expect(person.page.get_by_text("Your questions go to others in 0:1")).to_be_visible()
    person.page.evaluate(PAD)
    person.page.evaluate("() => void (pad.buttons[0].pressed = true)")
    person.page.clock.run_for(1000)
    expect(person.page.get_by_text("Your questions go to others")).to_be_hidden()
    person.page.evaluate("() => void (pad.buttons[0].pressed = pad.axes[0] = 0)")
    person.page.clock.run_for(5 * 60_000)
    expect(person.page.get_by_text("You were away")).to_be_visible()
    with person.page.expect_request("**/api/beat"):
        person.page.keyboard.press("Shift")
    expect(person.page.get_by_text("You were away")).to_be_hidden()


def test_a_tab_leaves_out_what_another_has_answered(comes, ask, running):
    ids = ask(texts(3))
    person = comes()
    other = person.tab()
    other.goto("/")
    first = person.shown(other)
    assert person.answer(LEFT) == first
    other.locator(f'[data-question="{first}"]').wait_for(state="detached")
    second = person.answer(RIGHT, other)
    third = person.answer(LEFT)
    person.sent()
    person.sent(other)
    assert sorted((first, second, third)) == sorted(ids)
    answers = stored(running)
    assert [meaning(answers[id]) for id in (first, second, third)] == [LEFT, RIGHT, LEFT]


def test_a_session_of_another_tab_goes_on_here(comes, ask, running):
    (id, _) = ask(texts(2))
    person = comes("erna")
    person.shown()
    other = person.tab()
    other.goto(f"/invite/{running.access.invite('annotator', name='erna')}")
    other.get_by_role("button", name="Begin").click()
    other.wait_for_url(f"{running.url}/")
    assert person.answer(LEFT) == id
    person.sent()
    assert meaning(stored(running)[id]) == LEFT
    person.forgive("status of 403")


def test_events_that_were_refused_are_listened_to_again(comes, ask):
    person = comes()
    person.context.route("**/api/events", lambda route: route.fulfill(status=503, json={"detail": "not now"}))
    person.page.reload()
    expect(person.page.get_by_text("offline")).to_be_visible()
    person.context.unroute("**/api/events")
    expect(person.page.get_by_text("offline")).to_be_hidden()
    person.forgive("status of 503")


def test_a_tab_says_when_there_is_a_question_and_how_long_it_is_used(comes, ask, running):
    person = comes()
    page, name = person.page, "halfcheetah"
    expect(page).to_have_title(f"Waiting · {name}")
    expect(page.get_by_text("Nothing is asked yet, or others are answering it.")).to_be_visible()
    page.evaluate("() => { for (const k in sessionStorage) sessionStorage[k] -= 754000 }")
    page.reload()
    expect(page.get_by_role("timer", name="Time in this session")).to_have_text(re.compile("12:3|12:4"))
    ask(texts(1))
    expect(page).to_have_title(f"A question · {name}")
    person.context.route("**/api/events", lambda route: route.fulfill(status=503, json={"detail": "not now"}))
    page.reload()
    expect(page.get_by_text(re.compile(r"offline; questions kept for 1:[12]\d"))).to_be_visible()
    assert axe(page) == []
    person.answer(LEFT)
    expect(page.get_by_text("You have answered all that there are for you.")).to_be_visible()
    person.forgive("status of 503")


def test_who_is_banned_is_told(comes, ask, running):
    ask(texts(2))
    person = comes("fred")
    person.shown()
    running.labeling.queue.ban("fred", True)
    person.answer(LEFT)  # which comes too late
    banned = person.page.get_by_role("heading", name="You are banned")
    expect(banned).to_be_visible()
    expect(person.page.locator(".notice")).to_be_hidden()
    person.page.reload()
    expect(banned).to_be_visible()
    running.labeling.queue.ban("fred", False)
    person.shown()
    person.forgive("status of 403")


def test_the_service_is_away_for_a_while(comes, ask):
    ask(texts(1))
    person = comes()
    person.shown()
    person.context.route(
        "**/api/*", lambda route: route.fulfill(status=503, json={"detail": "the disk is full"})
    )
    person.answer(LEFT)
    expect(person.page.get_by_role("alert")).to_contain_text("the disk is full")
    person.context.unroute("**/api/*")
    expect(person.page.get_by_role("heading")).to_have_text("No questions at the moment")
    person.sent()
    person.forgive("status of 503")


# Clips


def test_clips_play_in_step_slower_and_picture_by_picture(comes, ask, offscreen_gl):
    ask(cheetahs(2))
    person = comes()
    page = person.page
    person.shown()
    page.wait_for_function(both("!video.paused"))
    page.keyboard.press("-")
    page.get_by_role("button", name="0.5×", pressed=True).wait_for()
    page.wait_for_function(both("video.playbackRate === 0.5"))
    page.keyboard.press("+")
    page.get_by_role("button", name="2×").click()
    page.wait_for_function(both("video.playbackRate === 2"))
    page.wait_for_function(LOOPED)
    page.keyboard.press(" ")
    page.get_by_role("button", name="Play").wait_for()
    page.wait_for_function(both("video.paused"))
    page.keyboard.press("r")
    page.get_by_role("button", name="Pause").wait_for()

    def times():
        return page.locator(f"{SHOWN} video").evaluate_all("all => all.map(video => video.currentTime)")

    for key, pictures in ((".", 1), (".", 1), (",", -1)):
        page.keyboard.press(key)
        before = times()
        page.keyboard.press(key)
        assert np.allclose(np.subtract(times(), before), pictures / 20, atol=1e-3)
    one, other = times()
    assert abs(one - other) < 0.08
    page.wait_for_function(both("video.readyState === 4", among=".question.ahead"))


def both(condition, *, among=SHOWN):
    """Whether it is true of every `video` there."""
    return f"() => [...document.querySelectorAll('{among} video')].every(video => {condition})"


LOOPED = f"""() => {{
  const at = document.querySelector("{SHOWN} video").currentTime;
  window.latest = Math.max(window.latest ?? 0, at);
  return at < window.latest / 2;
}}"""


def test_a_clip_that_cannot_be_played_is_said_and_passed_on(comes, ask, running, offscreen_gl):
    ids = ask(cheetahs(1) + texts(1))
    person = comes()
    person.context.route("**/clips/*", lambda route: route.abort())
    person.page.reload()
    while person.shown() != ids[0]:
        person.answer(LEFT)
    with person.page.expect_response("**/api/give_back") as given_back:
        person.page.get_by_role("button", name="Next question").first.click()
    said = json.loads(given_back.value.request.post_data or "")
    assert said["question"] == ids[0]
    assert re.fullmatch(r"[0-9a-f]{64}\.mp4: cannot be played", said["broken"])
    person.context.unroute("**/clips/*")
    for name in ("karl", "lena"):
        running.labeling.assign(name, 2)
        running.labeling.give_back(ids[0], name, "not for me either")
    assert running.labeling.queue.requeue(ids[0])
    while person.shown() != ids[0]:
        person.answer(LEFT)
    person.forgive(OFFLINE)


def test_who_wants_less_motion_starts_the_clips_themselves(comes, ask, offscreen_gl):
    ask(cheetahs(1))
    person = comes(reduced_motion="reduce")
    person.shown()
    assert person.page.evaluate(both("video.paused"))
    person.page.keyboard.press(" ")
    person.page.wait_for_function(both("!video.paused"))


# Kinds


def asked_as(shape):
    """A question as an annotator would get it."""
    stretch = segments(CARTPOLE, 1, length=12)[0]
    task = {"task": "Keep the pole upright."}
    torque = {"env": "Pendulum-v1", "space": {"low": [-2], "high": [2]}}
    return {
        "comparison": Query("q", "comparison", [stretch] * 2, task),
        "comparison-of-three": Query("q", "comparison", [stretch] * 3, task),
        "sliders": Query("q", "action", [np.zeros(3, np.float32)], torque),
        "demonstration": Query("q", "demonstration", [], {"env": "CartPole-v1", "seed": 1, "max_steps": 20}),
    }[shape]


@pytest.mark.parametrize(
    ("shape", "keys"),
    [
        ("comparison", [TIE]),
        ("comparison-of-three", ["2"]),
        ("sliders", ["End", "Enter"]),
        ("demonstration", ["x"]),
    ],
)
def test_every_shape_is_answered_by_keys_alone(comes, ask, running, snap, shape, keys):
    (id,) = ask([asked_as(shape)])
    person = comes(color_scheme="dark")
    page = person.page
    assert person.shown() == id
    if shape == "demonstration":
        expect(page.get_by_text("Press a key to begin.")).to_be_visible()
    assert axe(page) == []
    snap(page, f"{shape}-dark")
    page.set_viewport_size(PHONE)
    assert sideways(page) == []
    for key in keys:
        page.keyboard.press(key)
    page.locator(f'[data-question="{id}"]').wait_for(state="detached")
    person.sent()
    said = stored(running)[id]
    if shape == "comparison":
        assert said["value"] == [0.5, 0.5]
    elif shape == "comparison-of-three":
        assert said["value"][said["side_shown"][1]] == 1
    elif shape == "sliders":
        assert said["value"] == [2.0]
    else:
        assert said["cannot_tell"]


PAD = """() => {
  window.pad = {axes: [0.5], buttons: [{pressed: false}]};
  navigator.getGamepads = () => [window.pad];
  dispatchEvent(new Event("gamepadconnected"));
}"""


def test_a_gamepad_moves_the_sliders_and_sends(comes, ask, running):
    (id,) = ask([asked_as("sliders")])
    person = comes()
    person.shown()
    person.page.evaluate(PAD)
    expect(person.page.get_by_role("slider")).to_have_value("1")
    person.page.evaluate("() => void (pad.buttons[0].pressed = true)")
    person.page.locator(f'[data-question="{id}"]').wait_for(state="detached")
    person.sent()
    assert stored(running)[id]["value"] == [1.0]


def test_a_button_that_was_clicked_does_not_keep_the_keys(comes, ask):
    ask(texts(3))
    person = comes()
    first = person.answer(LEFT)
    person.page.get_by_role("button", name="Undo").click()
    assert person.shown() == first
    person.page.keyboard.press(" ")  # undoes nothing more
    assert person.answer(RIGHT) == first


def test_long_texts_are_reached_by_keys(comes, ask, running):
    long = "\n\n".join(f"Paragraph {n} of many." for n in range(80))
    (id,) = ask([Query("q", "text", [long, "short"], {"prompt": long})])
    person = comes()
    person.shown()
    assert axe(person.page) == []
    panels = person.page.locator(f"{SHOWN} article")
    panel = panels.filter(has_text="Paragraph 7 ")
    panel.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowUp"):
        before = panel.evaluate("panel => panel.scrollTop")
        person.page.keyboard.press(key)
        moved = "([panel, before]) => panel.scrollTop !== before"
        person.page.wait_for_function(moved, arg=[panel.element_handle(), before])
    assert person.shown() == id  # nothing was said
    person.page.set_viewport_size(PHONE)
    assert sideways(person.page) == []
    panels.filter(has_text="short").focus()  # has nothing to scroll
    person.page.keyboard.press(TIE)
    person.page.locator(f'[data-question="{id}"]').wait_for(state="detached")
    person.sent()
    assert meaning(stored(running)[id]) == TIE


# Signing in


def test_people_come_in_by_an_invite_and_a_name(browser, comes, running, snap):
    person = comes(enters=False)
    page = person.page
    page.goto("/")
    expect(page.get_by_role("heading")).to_have_text("You need an invite")
    assert axe(page) == []
    snap(page, "no-access")
    page.goto("/invite/nonsense")
    expect(page.get_by_role("alert")).to_contain_text("invite: it is not known, or too old")
    assert axe(page) == []
    page.goto(f"/invite/{running.access.invite('annotator')}")
    page.get_by_role("textbox").fill("Zoë")
    snap(page, "invite")
    assert axe(page) == []
    page.keyboard.press("Enter")
    page.wait_for_url("**/")
    expect(page.get_by_role("heading")).to_have_text("No questions at the moment")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading")).to_have_text("You need an invite")
    page.goto(f"/invite/{running.access.invite('annotator', name='Zoë')}")
    expect(page.get_by_text("They are kept under the name Zoë.")).to_be_visible()
    page.get_by_role("button", name="Begin").click()
    page.wait_for_url("**/")
    expect(page.get_by_text("as Zoë")).to_be_visible()
    running.access.revoke("Zoë", by="a test")
    page.reload()
    expect(page.get_by_role("heading")).to_have_text("You need an invite")
    person.forgive(r"status of (401|403|404|410|422)")


# The operator's page


@pytest.fixture
def looked_after(tmp_path):
    """A labeler of a run that has a curve, with a dead letter and some answers."""
    path = tmp_path / "dagger-cartpole"
    with RunDirectory.create(path, {"env": {"id": "CartPole-v1"}}) as run:
        for k, mean in enumerate((22.0, 61.5, 140.0, 233.0, 391.0, 478.0)):
            spread = 60 / (k + 1)
            figures = {
                "validation_mean": mean,
                "validation_lo": mean - spread,
                "validation_hi": mean + spread,
            }
            run.log({"env_steps": 2000 * (k + 1), "expert_labels": 150 * (k + 1), **figures}, step=k)
        run.clips.mkdir(exist_ok=True)
        render(CARTPOLE, 0, np.arange(12) % 2, run.clips / "best.mp4", size=128)
    with served(path / "labeler", run=path) as labeler:
        yield labeler


def test_operators_see_how_it_goes_and_do_something_about_it(comes, looked_after, ask, snap):
    running = looked_after
    ask(texts(30), at=running)
    for n, name in enumerate(("anna", "bela", "cleo")):
        for one in running.labeling.assign(name, 6 - n):
            running.labeling.answer(one.id, name, [1, 0], started_at=time.time() - 3)
    (broken,) = ask([dataclasses.replace(texts(1)[0], priority=9)], at=running)
    for name in ("anna", "bela", "cleo"):
        running.labeling.assign(name, 1)
        running.labeling.give_back(broken, name, "its clip cannot be decoded")
    assert broken in running.labeling.queue.dead()
    person = comes("olga", "operator", at=running)
    page = person.page
    expect(page.get_by_role("img", name="Return 478 after 12k steps and 900 labels")).to_be_visible()
    page.wait_for_function("() => document.querySelector('video').readyState >= 2")
    expect(page.get_by_role("row", name=re.compile("anna"))).to_contain_text("6")
    expect(page.get_by_text("its clip cannot be decoded").first).to_be_visible()
    page.get_by_role("button", name="against labels").click()
    expect(page.locator(".curve text").get_by_text("labels", exact=True)).to_be_visible()
    page.get_by_role("button", name="against labels").click()
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert axe(page) == []
        snap(page, "operator" if scheme == "light" else "operator-dark")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    assert running.labeling.assign("dora", 1) == []
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Drain")).to_be_visible()
    assert len(running.labeling.assign("dora", 1)) == 1
    page.get_by_role("row", name=re.compile("cleo")).get_by_role("button", name="Ban").click()
    expect(page.get_by_role("row", name=re.compile("cleo")).get_by_role("button")).to_have_text(
        ["Unban", "Revoke"]
    )
    page.set_viewport_size({"width": 1280, "height": 800})
    assert page.locator(".wide").evaluate("box => box.scrollWidth - box.clientWidth") == 0
    page.locator(".dead").get_by_role("button", name="Ask again").click()
    expect(page.locator(".dead")).to_be_hidden()
    page.get_by_role("button", name="Make a link").click()
    link = page.get_by_label("The link").input_value()
    guest = comes(enters=False, at=running)
    guest.page.goto(link)
    guest.page.get_by_role("textbox").fill("gus")
    guest.page.keyboard.press("Enter")
    guest.answer(LEFT)
    expect(page.get_by_role("row", name=re.compile("gus"))).to_contain_text("1")  # without a reload
    with page.expect_download() as download:
        page.get_by_role("link", name="Answers as JSON lines").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) == 16
    page.get_by_text("Who did what").click()
    expect(page.locator(".audit")).to_contain_text("paused")
    page.set_viewport_size(PHONE)
    assert sideways(page) == []
    assert axe(page) == []


def test_operators_revoke_people_and_links(comes, looked_after, ask):
    ask(texts(2), at=looked_after)
    page = comes("olga", "operator", at=looked_after).page
    guest = comes("gus", at=looked_after)
    guest.answer(LEFT)
    page.get_by_role("row", name=re.compile("gus")).get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("gus is signed out.")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("gus"))).to_be_visible()  # the answers stay
    guest.page.reload()
    expect(guest.page.get_by_role("heading")).to_have_text("You need an invite")
    guest.forgive("status of 401")
    page.get_by_role("button", name="Make a link").click()
    link = page.get_by_label("The link").input_value()
    asks = page.locator("form", has=page.get_by_label("a name, or a link"))
    for what, said in ((link, "Revoked."), ("nobody", "There was nothing to revoke.")):
        asks.get_by_role("textbox").fill(what)
        asks.get_by_role("button").click()
        expect(asks.get_by_role("status")).to_have_text(said)
    late = Page(looked_after.url).post("/api/session", json={"invite": link.split("/")[-1], "name": "x"})
    assert late.status_code == 403
