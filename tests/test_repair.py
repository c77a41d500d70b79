"""A labeler's folder is damaged in every way that disks have, and comes back with every answer."""

import io
from collections import Counter

import pytest
from typer.testing import CliRunner

from services.cli import app
from services.labeler.ledger import Ledger
from services.labeler.repair import examine, repair, sound_length
from services.labeler.valkey import Embedded
from tests.labelers import Page, page, served, texts
from tutelage.errors import ConfigError, ServiceError


@pytest.fixture(autouse=True)
def _closed_pages():
    yield
    Page.close_all()


@pytest.fixture
def folder(tmp_path):
    """A labeler's that has stopped: of 12 questions 5 are answered, one of them anew."""
    with served(tmp_path / "labeler") as running:
        running.labeling.submit(texts(12))
        running.labeling.run_once()
        anna = page(running)
        for one in anna.do("lease", n=5)["questions"]:
            anna.do("answer", question=one["id"], value=[1, 0])
        anna.do("undo", question="q0")
        anna.do("answer", question="q0", value=[0, 1])
    return tmp_path / "labeler"


def levels(folder):
    return {check.name: check.level for check in examine(folder)}


def commands(folder):
    (path,) = (folder / "store" / "appendonlydir").glob("*.incr.aof")
    return path


def all_is_there(folder):
    """Every answer once, in queue and ledger, and the other questions are asked."""
    with served(folder) as running:
        running.labeling.run_once()
        events = running.labeling.queue.events()[0]
        undone = {event.undoes for event in events}
        counted = [e for e in events if e.type == "answer" and e.id not in undone]
        assert Counter(event.question for event in counted) == {f"q{i}": 1 for i in range(5)}
        assert {event.id for event in running.labeling.ledger.answers()} >= {e.id for e in counted}
        assert len(running.labeling.ledger.answers()) == 5
        (anew,) = (event for event in counted if event.question == "q0")
        assert anew.body["value"] == [0.0, 1.0]
        asked = {one["id"] for one in page(running, name="bert").do("lease", n=16)["questions"]}
        assert asked == {f"q{i}" for i in range(5, 12)}


def test_a_sound_folder_is_left_alone(folder):
    assert levels(folder) == {"store": "ok", "ledger": "ok", "questions": "ok"}
    assert list(repair(folder)) == []
    all_is_there(folder)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_damaged_store_is_made_anew(folder, share):
    data = bytearray(commands(folder).read_bytes())
    at = data.index(b"\r\n*", int(share * len(data))) + 2
    data[at : at + 4] = b"\xff\xfe\xfd\xfc"
    commands(folder).write_bytes(data)
    with (
        pytest.raises(ServiceError, match=r"is damaged; `tutelage doctor --labeler \S+ --repair`"),
        served(folder),
    ):
        pass
    assert levels(folder)["store"] == "failure"
    (words,) = repair(folder)
    assert "the damaged one is kept in" in words
    assert bytes(data) in [
        path.read_bytes() for path in folder.glob("store-damaged-*/appendonlydir/*.incr.aof")
    ]
    assert levels(folder)["store"] == "ok"
    all_is_there(folder)


def test_a_store_of_which_nothing_can_be_read_is_begun_anew(folder):
    (folder / "store" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    (words,) = repair(folder)
    assert "is empty" in words
    all_is_there(folder)


@pytest.mark.parametrize("line", [b"{nonsense", b"\x00\x00\x00", b'{"id": 3}'])
def test_a_damaged_ledger_is_made_anew_from_the_store(folder, line):
    path = folder / "answers.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]) + b"\n")
    assert levels(folder)["ledger"] == "failure"
    (words,) = repair(folder)
    assert "made anew with 5 answers" in words
    assert path.read_bytes().splitlines() == lines
    all_is_there(folder)


def test_both_damaged_answers_come_back_from_what_either_has(folder):
    path = folder / "answers.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([b"x", *lines[1:]]) + b"\n")
    data = bytearray(commands(folder).read_bytes())
    data[-40:-30] = b"\xff" * 10
    commands(folder).write_bytes(data)
    assert len(list(repair(folder))) == 2
    assert len(Ledger(path).answers()) == 5
    all_is_there(folder)


@pytest.fixture
def elsewhere(folder, tmp_path):
    """The URL of a store that is not in the labeler's folder."""
    (folder / "store").rename(tmp_path / "elsewhere")
    with Embedded(tmp_path / "elsewhere") as server:
        yield server.url()


def test_a_damaged_ledger_is_made_anew_from_a_store_elsewhere(folder, elsewhere):
    path = folder / "answers.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], b"x", *lines[3:]]) + b"\n")
    assert levels(folder) == {"store": "warning", "ledger": "failure", "questions": "ok"}
    (words,) = repair(folder)
    assert "made anew with 4 answers" in words
    assert "no store was looked at" in words
    assert levels(folder)["ledger"] == "ok"  # as far as can be known here
    said = {check.name: check for check in examine(folder, elsewhere)}
    assert (said["store"].found, said["ledger"].found) == (
        "7 answers, with those taken back",
        "lacks 1 lines that the store has",
    )
    (words,) = repair(folder, elsewhere)
    assert "made anew with 5 answers" in words
    assert path.read_bytes().splitlines() == lines
    assert len(list(folder.glob("answers.jsonl-damaged-*"))) == 2
    assert list(repair(folder, elsewhere)) == []


def test_a_store_elsewhere_that_is_away_is_said(folder, tmp_path):
    url = f"unix://{tmp_path}/nobody.sock"
    assert {check.name: check.level for check in examine(folder, url)}["store"] == "failure"
    with pytest.raises(ServiceError, match="the store cannot be reached"):
        list(repair(folder, url))
    with pytest.raises(ConfigError, match="--store: nonsense"):
        list(examine(folder, "nonsense"))


def test_sound_length_ends_at_the_first_command_that_is_none():
    good = b"*1\r\n$4\r\nPING\r\n"
    for bad in (
        b"",
        b"*",
        b"*1\r\n$9\r\nshort\r\n",
        b"\xff",
        b"*1\r\n$4\r\nPINGxx",
        b"*x\r\n",
        b"*0\r\n",
        b"*-1\r\n",
    ):
        assert sound_length(io.BytesIO(2 * good + bad)) == 2 * len(good)


def test_a_folder_in_use_is_not_touched(folder):
    with served(folder):
        assert levels(folder) == {"labeler": "ok", "ledger": "ok"}
        with pytest.raises(ConfigError, match="in use by process"):
            list(repair(folder))


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no labeler's folder"):
        list(repair(tmp_path))


def test_the_command_says_and_does_it(folder):
    commands(folder).write_bytes(b"\xff" + commands(folder).read_bytes())
    done = CliRunner().invoke(app, ["doctor", "--labeler", str(folder)])
    assert done.exit_code == 1
    assert "--repair" in done.output
    done = CliRunner().invoke(app, ["doctor", "--labeler", str(folder), "--repair"])
    assert "store: a new one" in done.output
    assert done.exit_code == 0
    for alone in (["--repair"], ["--store", "redis://localhost"]):
        assert CliRunner().invoke(app, ["doctor", *alone]).exit_code == 2
    all_is_there(folder)
