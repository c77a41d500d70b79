"""Demonstrations that are played and policies that are taken over from, over real websockets."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest
import redis
from safetensors.numpy import load_file
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from actors.replay import replay
from expert_oracle.checkpoint import SHIPPED, load_checkpoint
from learner.demonstrations import load_demonstrations
from services.labeler import corrections, live, stage
from services.overrides import load_config
from services.run_directory import RunDirectory
from services.settings import preflight
from tests.labelers import Page, page, served, wait_for
from tutelage.types import EnvRecipe, Query

CARTPOLE, SEED = EnvRecipe("CartPole-v1"), 3


@pytest.fixture(autouse=True)
def _closed_pages():
    yield
    Page.close_all()


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint of a good policy."""
    with RunDirectory.create(tmp_path / "run", {"environment": {"env": CARTPOLE.id}}) as run:
        with run.new_checkpoint(7) as folder:
            shutil.copy(SHIPPED / "cartpole.safetensors", folder / "policy.safetensors")
        yield run


@pytest.fixture
def labeler(tmp_path, run):
    with served(run.path / "labeler", run=run.path) as running:
        yield running


def demonstration(name="d0", **context):
    return Query(name, "demonstration", [], {"env": CARTPOLE.id, "seed": SEED, **context})


def asked(running, *queries):
    running.labeling.submit(queries)
    running.labeling.run_once()


def stored(running):
    running.labeling.run_once()
    return {event.question: event.body for event in running.labeling.ledger.answers()}


class Socket:
    """A page's websocket: what came last of pictures and states."""

    def __init__(self, somebody, path, **settings):
        url = str(somebody.base_url).rstrip("/")
        cookies = "; ".join(f"{name}={value}" for name, value in somebody.cookies.items())
        headers = {name: value for name in ("Authorization",) if (value := somebody.headers.get(name))}
        given = {"origin": url, "additional_headers": {"Cookie": cookies, **headers}} | settings
        self._open = ExitStack()
        self.ws = self._open.enter_context(connect(url.replace("http", "ws", 1) + path, **given))
        self.pictures = 0
        self.states = []

    def say(self, **said):
        self.ws.send(json.dumps(said))

    def hear(self):
        """The next message; a state's mapping, or None for a picture."""
        message = self.ws.recv(timeout=60)
        if isinstance(message, bytes):
            assert message[:3] == b"\xff\xd8\xff"  # a JPEG
            self.pictures += 1
            return None
        self.states.append(json.loads(message))
        return self.states[-1]

    def until(self, state, **more):
        """The first state of that name that has all this."""
        while True:
            said = self.hear()
            if said and said["state"] == state and more.items() <= said.items():
                return said

    def see(self, pictures):
        """That many more."""
        wanted = self.pictures + pictures
        while self.pictures < wanted:
            self.hear()

    def close(self):
        self._open.close()

    def closed(self):
        """Code and last word."""
        try:
            while True:
                self.hear()
        except ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")


@contextmanager
def socket(somebody, path, **settings):
    one = Socket(somebody, path, **settings)
    try:
        yield one
    finally:
        one.close()


def leased(running, name="anna", question="d0"):
    anna = page(running, name)
    assert [one["id"] for one in anna.do("lease", n=1)["questions"]] == [question]
    return anna


def no_stages(running, deadline_s=30):
    """Until none is left; a stage belongs to a process that this one started."""
    deadline = time.monotonic() + deadline_s
    while stages():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stages():
    """Processes of stages that this one has."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    ).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "services.labeler.acting" in line]


# Demonstrations


def test_what_is_played_is_the_answer_and_replays(labeler):
    asked(labeler, demonstration(max_steps=200))
    anna = leased(labeler)
    keys = random.Random(0)
    with socket(anna, "/api/play/d0") as play:
        play.until("ready", step=0)
        assert play.pictures == 1
        play.say(action=keys.randrange(2))
        while True:
            said = play.hear()
            if said is None:
                with suppress(ConnectionClosed):  # it ended meanwhile
                    play.say(action=keys.randrange(2))
            elif said["state"] == "ended":
                break
        assert said["kept"] is True
        assert play.closed()[0] == 1000
    body = stored(labeler)["d0"]
    assert play.pictures == said["step"] + 1 == len(body["value"]) + 1 == body["steps"] + 1
    assert set(body["value"]) <= {0, 1}  # one key alone, where the machine was slow
    assert body["ended"] == "terminated"
    again = replay(CARTPOLE, SEED, np.array(body["value"]))
    assert (len(again.actions), again.terminated) == (len(body["value"]), True)
    assert body["versions"] == {"gymnasium": body["versions"]["gymnasium"], "numpy": np.__version__}
    assert anna.get("/api/me").json()["answered"] == 1
    no_stages(labeler)


def test_it_begins_with_the_first_key_and_begins_again_when_asked(labeler):
    asked(labeler, demonstration())
    with socket(leased(labeler), "/api/play/d0") as play:
        play.until("ready")
        play.say(end=True)  # nothing was played: there is nothing to keep
        play.say(action=None)
        play.say(restart=True)
        play.until("ready")
        assert play.pictures == 2
        play.say(action=1)
        play.see(3)
        play.say(restart=True)
        play.until("ready", step=0)
        play.say(action=0)
        play.see(2)
        play.say(action=None)  # let go: what was held goes on, since there is no doing nothing
        play.see(2)
        play.say(end=True)
        assert play.until("ended")["kept"] is True
    body = stored(labeler)["d0"]
    assert len(body["value"]) >= 4
    assert set(body["value"]) == {0}


def test_who_ends_it_is_done(labeler):
    asked(labeler, demonstration())
    with socket(leased(labeler), "/api/play/d0") as play:
        play.until("ready")
        play.say(action=1)
        play.see(2)
        play.say(end=True)
        said = play.until("ended", kept=True)
    body = stored(labeler)["d0"]
    assert len(body["value"]) == said["step"]
    if body["ended"] == "left":
        again = replay(CARTPOLE, SEED, np.array(body["value"]))
        assert not again.terminated


def test_what_was_played_is_kept_though_the_store_is_away_as_it_ends(labeler, monkeypatch):
    asked(labeler, demonstration())
    answer, away = labeler.labeling.answer, [True, True]

    def is_away_at_first(*arguments, **named):
        if away:
            away.pop()
            raise redis.ConnectionError("it is started again")
        return answer(*arguments, **named)

    monkeypatch.setattr(labeler.labeling, "answer", is_away_at_first)
    with socket(leased(labeler), "/api/play/d0") as play:
        play.until("ready")
        play.say(action=1)
        play.see(2)
        play.say(end=True)
        play.until("keeping")
        said = play.until("ended", kept=True)
        assert play.closed()[0] == 1000
    assert len(stored(labeler)["d0"]["value"]) == said["step"]


def test_what_was_played_is_kept_though_its_player_has_gone(labeler, monkeypatch):
    asked(labeler, demonstration())
    answer, called, gone = labeler.labeling.answer, threading.Event(), threading.Event()

    def is_away_until_they_have_gone(*arguments, **named):
        called.set()
        if not gone.is_set():
            raise redis.ConnectionError("it is started again")
        return answer(*arguments, **named)

    monkeypatch.setattr(labeler.labeling, "answer", is_away_until_they_have_gone)
    with socket(leased(labeler), "/api/play/d0") as play:
        play.until("ready")
        play.say(action=1)
        play.see(2)
        play.say(end=True)
        assert called.wait(30)
    gone.set()
    wait_for(lambda: "d0" in stored(labeler))


def test_letting_go_does_nothing_where_there_is_such_an_action(labeler):
    known = {"env": "MountainCar-v0", "seed": 1, "max_steps": 60}
    asked(labeler, Query("d0", "demonstration", [], known))
    with socket(leased(labeler), "/api/play/d0") as play:
        play.until("ready")
        play.say(action=2)
        play.see(3)
        play.say(action=None)
        play.until("ended", step=60, kept=True)
    value = stored(labeler)["d0"]["value"]
    assert value[0] == 2
    assert value[-1] == 1  # "Do nothing"


def test_sliders_begin_when_one_moves(labeler):
    known = {"env": "Pendulum-v1", "space": {"low": [-2.0], "high": [2.0]}, "seed": 1, "max_steps": 5}
    asked(labeler, Query("d0", "demonstration", [], known))
    with socket(leased(labeler), "/api/play/d0") as play:
        play.until("ready")
        play.say(action=[0.0])  # where it stands
        play.say(action=[1.5])
        play.until("ended", step=5, kept=True)
    assert stored(labeler)["d0"]["value"] == [[1.5]] * 5


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("", "message: it is not JSON"),
        ("[" * 5000, "message: it is not JSON"),
        ("null", "message: expected one of"),
        ("{}", "message: expected one of"),
        ('{"action": 1, "end": true}', "message: expected one of"),
        ('{"jump": 1}', "message: 'jump' is none of action, take_over, restart, end"),
        ('{"end": 1}', "end: expected true or false"),
        ('{"action": "left"}', "action: expected a number, a list of numbers, or null"),
        ('{"action": true}', "action: expected a number"),
        ('{"action": 1e999}', "action: expected a number"),
        ('{"action": NaN}', "action: expected a number"),
        ('{"action": [[0]]}', "action: expected a number"),
        ('{"action": ' + "9" * 5000 + "}", "message: it is not JSON"),
    ],
)
def test_messages_that_no_page_sends(message, why):
    with pytest.raises(live.Over, match=re.escape(why)):
        live._checked({"type": "websocket.receive", "text": message})


def test_a_message_that_no_page_sends_ends_it(labeler):
    asked(labeler, demonstration())
    anna = leased(labeler)
    for message, why in (
        ('{"action": 2}', "value: expected an action from 0 to 1"),
        ('{"action": [0, 1]}', "value: expected an action from 0 to 1"),
        ('{"action": 0.5}', "value: expected an action from 0 to 1"),
        ('{"jump": true}', "message: 'jump' is none of"),
        (b'{"action": 1}', "message: it is not JSON"),
    ):
        with socket(anna, "/api/play/d0") as play:
            play.until("ready")
            play.ws.send(message)
            code, reason = play.closed()
        assert (code, reason.startswith(why)) == (1008, True), (message, reason)
        no_stages(labeler)
    assert stored(labeler) == {}


def test_messages_that_are_too_long_end_it(labeler):
    asked(labeler, demonstration())
    with socket(leased(labeler), "/api/play/d0") as play:
        play.until("ready")
        play.ws.send("[" + "1," * 10_000 + "1]")
        assert play.closed()[0] == 1009
    no_stages(labeler)


def test_a_flood_ends_it(labeler):
    asked(labeler, demonstration())
    with socket(leased(labeler), "/api/play/d0") as play:
        play.until("ready")
        with suppress(ConnectionClosed):  # sooner or later
            while True:
                play.ws.send('{"action": null}')
        assert play.closed() == (1008, "too many messages")


def test_who_vanishes_leaves_the_question_and_stores_nothing(labeler):
    asked(labeler, demonstration())
    anna = leased(labeler)
    play = Socket(anna, "/api/play/d0")
    play.until("ready")
    play.say(action=1)
    play.see(2)
    play.ws.socket.close()  # without a word
    no_stages(labeler)
    assert stored(labeler) == {}
    assert [one["id"] for one in anna.do("lease", n=1)["questions"]] == ["d0"]
    with socket(anna, "/api/play/d0") as again:
        again.until("ready", step=0)


def test_a_question_is_played_by_who_has_it(labeler, monkeypatch):
    asked(labeler, demonstration(), Query("t0", "text", ["one", "two"], priority=-1))
    anna, bert = leased(labeler), page(labeler, "bert")
    for question in ("d0", "none", "%00", "%F0%9F%98%80"):
        with socket(bert, f"/api/play/{question}") as play:
            code, why = play.closed()
            assert (code, "not yours" in why) == (1008, True), question
    bert.do("lease", n=1)
    with socket(bert, "/api/play/t0") as play:
        assert play.closed() == (1008, "question: a text is not played")
    monkeypatch.setattr(live, "BEAT_S", 0.01)
    with socket(anna, "/api/play/d0") as play:
        play.until("ready")
        anna.do("give_back", question="d0")
        code, why = play.closed()
    assert "no longer yours" in why
    no_stages(labeler)


def test_who_may_not_does_not(labeler):
    asked(labeler, demonstration())
    anna = leased(labeler)
    robot = Page(labeler.url, headers={"Authorization": f"Bearer {labeler.access.token('trainer', 'robot')}"})
    stranger = Page(labeler.url)
    for path in ("/api/play/d0", "/api/live"):
        for somebody, settings, status in (
            (stranger, {}, 401),
            (robot, {}, 403),
            (anna, {"origin": "http://elsewhere.example"}, 403),
            (anna, {"origin": "null"}, 403),
            (anna, {"origin": None}, 403),
        ):
            with pytest.raises(InvalidStatus) as refused:
                Socket(somebody, path, **settings)
            response = refused.value.response
            assert response.status_code == status
            assert "detail" in json.loads(response.body or b"")
    assert stored(labeler) == {}
    assert not stages()


def test_who_is_revoked_plays_and_watches_no_longer(labeler, monkeypatch):
    monkeypatch.setattr(live, "BEAT_S", 0.05)
    asked(labeler, Query("d0", "demonstration", [], {"env": "MountainCar-v0", "max_steps": 10_000}))
    anna = leased(labeler)
    token = labeler.access.token("annotator", "robot")
    robot = Page(labeler.url, headers={"Authorization": f"Bearer {token}"})
    for who, somebody, path, first in (
        ("anna", anna, "/api/play/d0", "ready"),
        ("robot", robot, "/api/live", "policy"),
    ):
        with socket(somebody, path) as open_one:
            open_one.until(first)
            labeler.access.revoke(who)
            assert open_one.closed() == (1008, "your access has ended; ask who runs this labeler")
    assert stored(labeler) == {}


def test_a_machine_plays_with_its_token(labeler):
    asked(labeler, demonstration(max_steps=3))
    token = labeler.access.token("annotator", "robot")
    robot = Page(labeler.url, headers={"Authorization": f"Bearer {token}"})
    robot.do("lease", n=1)
    with socket(robot, "/api/play/d0", origin=None) as play:
        play.until("ready")
        play.say(action=0)
        play.until("ended", kept=True)
    assert stored(labeler)["d0"]["value"] == [0, 0, 0]


def test_too_many_at_once_are_told_so(labeler, monkeypatch):
    monkeypatch.setattr(stage, "MOST", 2)
    monkeypatch.setattr(stage, "MOST_EACH", 1)
    anna, bert, carl = (page(labeler, name) for name in ("anna", "bert", "carl"))
    with socket(anna, "/api/live") as first, socket(bert, "/api/live") as second:
        first.until("policy")
        second.until("policy")
        with socket(anna, "/api/live") as another:
            assert another.closed() == (1008, "you play in other windows already; close one of them")
        with socket(carl, "/api/live") as third:
            assert third.closed() == (1008, "2 people play already; try again in a while")
    no_stages(labeler)
    with socket(carl, "/api/live") as third:
        third.until("policy")


def test_who_does_nothing_is_sent_away(labeler, monkeypatch):
    monkeypatch.setattr(live, "IDLE_S", 0.5)
    asked(labeler, demonstration())
    with socket(leased(labeler), "/api/play/d0") as play:
        code, why = play.closed()
        assert (code, why.startswith("nothing came from you")) == (1000, True)


def test_an_environment_that_cannot_be_made_is_said(labeler):
    asked(labeler, Query("d0", "demonstration", [], {"env": "NoSuchEnv-v0", "space": {"n": 2}}))
    with socket(leased(labeler), "/api/play/d0") as play:
        assert "NoSuchEnv" in play.closed()[1]


def test_a_stage_that_dies_is_said(labeler):
    asked(labeler, demonstration())
    with socket(leased(labeler), "/api/play/d0") as play:
        play.until("ready")
        (pid,) = stages()
        os.kill(pid, signal.SIGKILL)
        assert play.closed() == (1008, "the episode broke off; begin again")


# Taking over


def test_the_policy_drives_until_somebody_takes_over_and_what_they_do_is_learnt(labeler, run):
    anna = page(labeler)
    with socket(anna, "/api/live") as drive:
        first = drive.until("policy", step=0, corrected=0)
        assert first["control"]["keys"] == {"ArrowLeft": 0, "ArrowRight": 1}
        assert first["checkpoint"] == "000007"
        drive.see(5)
        drive.say(take_over=True)
        drive.until("you")
        drive.see(3)  # nothing was pressed yet: the policy goes on
        drive.say(action=0)
        drive.until("you", corrected=1)
        drive.say(take_over=False)
        handed_back = drive.until("policy")
        assert 1 <= handed_back["corrected"] <= handed_back["step"] - 8
        drive.see(5)
        drive.say(take_over=True)
        drive.until("you")
        drive.say(action=1)
        end = drive.until("ended")
    assert end["reason"] == f"{end['corrected']} of its steps were yours and are kept."
    (path,) = (labeler.labeling.folder / "corrections").iterdir()
    about = corrections.about(path)
    whole = {**about, "ended_at": 0, "began_at": 0, "seed": 0}
    assert whole == {
        "run": "run",
        "checkpoint": "000007",
        "env": {"id": CARTPOLE.id, "kwargs": {}, "versions": about["env"]["versions"]},
        "seed": 0,
        "annotator": "anna",
        "began_at": 0,
        "ended_at": 0,
        "ended": "terminated",
        "corrected": end["corrected"],
        "takeovers": 2,
    }
    arrays = load_file(path)
    mine, T = arrays["by_expert"], end["step"]
    assert len(arrays["obs"]) - 1 == len(mine) == len(arrays["acts"]) == len(arrays["rewards"]) == T
    assert mine.sum() == end["corrected"]
    again = replay(CARTPOLE, about["seed"], arrays["acts"])
    np.testing.assert_array_equal(again.obs, arrays["obs"])
    begins = np.flatnonzero(np.diff(mine, prepend=False) & mine)
    assert begins[0] >= 8
    assert (arrays["acts"][begins[0] : begins[1]][mine[begins[0] : begins[1]]] == 0).all()
    expert = load_checkpoint("cartpole")
    np.testing.assert_array_equal(expert.act(arrays["obs"][:-1][~mine]), arrays["acts"][~mine])
    learnt = load_demonstrations(run.path)
    np.testing.assert_array_equal(learnt.obs, arrays["obs"][:-1][mine])
    np.testing.assert_array_equal(learnt.actions, arrays["acts"][mine])


def test_keys_held_before_it_count_at_once_and_not_after_it(labeler):
    with socket(page(labeler), "/api/live") as drive:
        drive.until("policy")
        drive.say(action=1)
        drive.see(3)
        drive.say(take_over=True)
        drive.until("you")
        drive.see(2)
        drive.say(action=None)
        drive.say(take_over=False)
        corrected = drive.until("policy")["corrected"]
        assert corrected >= 1
        drive.say(take_over=True)  # nothing held: what was held the last time is not done again
        drive.until("you")
        drive.see(3)
        drive.say(restart=True)
        drive.until("you", step=0)  # the key is still held
    no_stages(labeler)
    (path,) = (labeler.labeling.folder / "corrections").iterdir()
    assert corrections.about(path)["ended"] == "restarted"
    assert load_file(path)["by_expert"].sum() == corrected


def test_what_was_corrected_is_kept_whoever_leaves_and_however(labeler):
    anna = page(labeler)
    for leave in ("restart", "close", "vanish", "garbage"):
        drive = Socket(anna, "/api/live")
        drive.until("policy")
        drive.say(action=0)
        drive.say(take_over=True)
        drive.until("you")
        drive.see(3)
        if leave == "restart":
            drive.say(restart=True)
            drive.until("you", step=0)
            drive.say(take_over=False)
        elif leave == "vanish":
            drive.ws.socket.close()
        elif leave == "garbage":
            drive.say(action=5)
            assert "expected an action" in drive.closed()[1]
        drive.close()
        no_stages(labeler)
    files = sorted((labeler.labeling.folder / "corrections").iterdir())
    ended = {corrections.about(path)["ended"] for path in files}
    assert {"left"} <= ended <= {"restarted", "left", "terminated"}  # the last where this test was too slow
    assert len(files) >= 4
    assert len(load_demonstrations(files[0].parent)) == sum(
        corrections.about(path)["corrected"] for path in files
    )


def test_who_only_watches_leaves_nothing(labeler):
    with socket(page(labeler), "/api/live") as drive:
        drive.until("policy")
        drive.see(5)
        drive.say(restart=True)
        drive.until("policy", step=0)
    no_stages(labeler)
    assert not (labeler.labeling.folder / "corrections").exists()


def test_each_episode_is_of_the_newest_checkpoint(labeler, run):
    with socket(page(labeler), "/api/live") as drive:
        assert drive.until("policy")["checkpoint"] == "000007"
        with run.new_checkpoint(8) as folder:
            shutil.copy(SHIPPED / "cartpole.safetensors", folder / "policy.safetensors")
        drive.say(restart=True)
        assert drive.until("policy", checkpoint="000008", step=0)


def test_without_a_run_or_a_checkpoint_it_says_so(tmp_path):
    with served(tmp_path / "alone") as running, socket(page(running), "/api/live") as drive:
        assert drive.closed() == (
            1008,
            "there is no policy: this labeler was not started with --run RUN",
        )
    RunDirectory.create(run := tmp_path / "young", {"environment": {"env": CARTPOLE.id}}).close()
    with served(run / "labeler", run=run) as running, socket(page(running), "/api/live") as drive:
        drive.until("waiting")
        with RunDirectory.open(run).new_checkpoint(1) as folder:
            shutil.copy(SHIPPED / "cartpole.safetensors", folder / "policy.safetensors")
        assert drive.until("policy")["checkpoint"] == "000001"


def test_an_episode_may_wait_for_who_watches(labeler):
    with socket(page(labeler), "/api/live?held=1") as drive:
        drive.until("held", step=0)
        drive.say(restart=True)
        drive.until("policy")
        drive.say(restart=True)
        drive.until("held", step=0)
        drive.say(take_over=True)
        drive.until("you")
        drive.say(restart=True)
        drive.until("held", step=0)
        drive.say(action=0)
        drive.until("you")


def test_corrections_pass_for_demonstrations_of_a_run(labeler, run):
    with socket(page(labeler), "/api/live") as drive:
        drive.until("policy")
        drive.say(take_over=True)
        drive.say(action=1)
        drive.until("ended")
    for place in (run.path, labeler.labeling.folder / "corrections"):
        preflight(
            load_config(
                "bc-cartpole",
                [
                    f"method.demonstrations={place}",
                    "expert.oracle=null",
                    "stop.expert_labels=null",
                    "stop.env_steps=null",
                    "stop.rounds=2",
                ],
            )
        )


# The end


def test_sigterm_in_the_middle_ends_all_and_keeps_corrections(tmp_path, run):
    program = (
        "import asyncio, signal, sys; from pathlib import Path\n"
        "from services.labeler.serve import Settings, serving\n"
        "async def main():\n"
        "    over = asyncio.Event()\n"
        "    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)\n"
        "    run = Path(sys.argv[1])\n"
        "    settings = Settings(run / 'labeler', run=run, address='127.0.0.1:0', access=False)\n"
        "    async with serving(settings) as labeler:\n"
        "        print(labeler.url, flush=True)\n"
        "        await over.wait()\n"
        "asyncio.run(main())\n"
    )
    service = subprocess.Popen(
        [sys.executable, "-c", program, run.path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert service.stdout is not None
    you = Page(service.stdout.readline().strip()).load()
    with socket(you, "/api/live") as drive, socket(you, "/api/live") as idle:
        drive.until("policy")
        idle.until("policy")
        drive.say(action=0)
        drive.say(take_over=True)
        drive.until("you")
        drive.see(3)
        unread = threading.Thread(target=service.communicate)
        unread.start()
        service.terminate()
        assert drive.closed() == (1012, "the labeler is being stopped")
        unread.join(60)
    assert service.returncode == 0
    (path,) = (run.path / "labeler" / "corrections").iterdir()
    assert corrections.about(path)["corrected"] >= 1


def test_a_service_that_is_killed_leaves_no_stage(tmp_path):
    code = (
        "import asyncio\n"
        "from services.labeler.stage import Stage\n"
        "async def main():\n"
        "    body = {'env': 'CartPole-v1', 'kwargs': {}, 'seed': 0, 'max_steps': 9, 'start': 0}\n"
        "    stage = await Stage.begin({'play': body | {'actions': ['a', 'b'], 'keys': ['a', 'b']}})\n"
        "    async for said in stage.news():\n"
        "        print(stage.pid, flush=True)\n"
        "asyncio.run(main())\n"
    )
    service = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    pid = int(service.stdout.readline())
    service.kill()
    service.communicate()
    deadline = time.monotonic() + 30
    while _is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
