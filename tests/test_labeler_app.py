"""The labeler over HTTP, as pages use it: real sockets, a real store."""

import hashlib
import json
import re
import socket
import ssl
import sys
import threading
import time
from dataclasses import replace
from urllib.parse import quote

import grpc
import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from expert_oracle.access import ServerAccess
from expert_oracle.feedback import Footage
from services import cli
from services.labeler.access import Person
from services.labeler.shield import MAX_REQUEST
from services.run_directory import RunDirectory
from tests.labelers import Page, page, served, texts
from tests.test_oracle_access import Authority
from tutelage.errors import ConfigError, ServiceError
from tutelage.proto.tutelage.v1 import labeler_pb2 as pb
from tutelage.proto.tutelage.v1.labeler_pb2_grpc import LabelerStub
from tutelage.types import EnvRecipe


@pytest.fixture(autouse=True)
def _closed_pages():
    yield
    Page.close_all()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with served(tmp_path_factory.mktemp("labeler")) as labeler:
        yield labeler


@pytest.fixture
def asked(running, request):
    """Three comparisons that nobody else is asked about, with ids of this test's."""
    mark = hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    queries = [replace(query, id=f"{mark}-{query.id}", priority=9) for query in texts(3)]
    ids = running.labeling.submit(queries)
    running.labeling.run_once()
    yield ids
    running.labeling.queue.withdraw(ids)


def events(client, path, n):
    """The first `n` server-sent events, each (name, data)."""
    found = []
    with client.stream("GET", path) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                found.append((name, json.loads(line[6:])))
                if len(found) == n:
                    return found
    return found


def test_somebody_comes_in_is_asked_answers_and_leaves(running, asked):
    anna = page(running, "anna-1")
    me = anna.get("/api/me").json()
    assert (me["annotator"], me["role"], me["answered"], me["paused"], me["access"]) == (
        "anna-1",
        "annotator",
        0,
        False,
        True,
    )
    assert "text" in me["kinds"]
    leased = anna.do("lease", n=3)
    assert {question["id"] for question in leased["questions"]} == set(asked)
    first = leased["questions"][0]
    assert len(first["view"]["panels"]) == 2
    assert first["ends_at"] > first["began_at"] - 1
    said = anna.do("answer", question=first["id"], value=[1, 0], shown_at=first["began_at"])
    assert said == {"outcome": "accepted", "answered": 1}
    assert anna.do("answer", question=first["id"], value=[0, 1])["outcome"] == "duplicate"
    assert anna.do("answer", question="nobody asked", value=[0, 1])["outcome"] == "unknown"
    second = leased["questions"][1]["id"]
    assert anna.do("answer", question=second, value=None, cannot_tell=True)["answered"] == 2
    assert anna.do("undo", question=second) == {"undone": True, "late": False}
    assert anna.get("/api/me").json()["answered"] == 1
    assert anna.do("beat", questions=[second, "other"]) == {"kept": [second], "lease_s": 90}
    assert anna.do("give_back", question=second, broken="") == {"given_back": True}
    assert anna.delete("/api/session").json()["annotator"] == "anna-1"
    assert anna.get("/api/me").status_code == 401


def test_a_wrong_answer_is_refused_in_one_line_that_names_the_field(running, asked):
    anna = page(running, "anna-2")
    question = anna.do("lease", n=1)["questions"][0]["id"]
    for said in (
        {"question": question, "value": [1, 2, 3]},
        {"question": question, "value": "left"},
        {"question": question, "value": [1, 0], "shown_at": -1},
        {"question": ["no"], "value": [1, 0]},
    ):
        refused = anna.post("/api/answer", json=said)
        assert refused.status_code == 422, said
        assert re.match(r"(value|shown_at|question)\b[^\n]+$", refused.json()["detail"]), refused.text
    assert anna.post("/api/answer", content=b"{").status_code == 422
    huge = anna.post("/api/answer", content=b"[" * 100_000, headers={"Content-Type": "application/json"})
    assert huge.status_code in (400, 422)


def test_bodies_have_an_end(running):
    anna = page(running, "anna-3")
    assert anna.post("/api/answer", content=b"x" * (MAX_REQUEST + 1)).status_code == 413

    def endless():
        for _ in range(MAX_REQUEST // 1000 + 2):
            yield b"x" * 1000

    assert anna.post("/api/answer", content=endless()).status_code == 413


def test_pages_are_told_what_changes(running, asked):
    anna = page(running, "anna-4")
    leased = anna.do("lease", n=1)["questions"]
    answered = threading.Timer(0.3, lambda: anna.do("answer", question=leased[0]["id"], value=[1, 0]))
    answered.start()
    (name, before), *_, (_, after) = events(page(running, "anna-4"), "/api/events", 2)
    answered.join()
    assert name == "state"
    assert set(before) == set(after) == {"open", "answered", "paused", "draining"}
    assert before != after


@pytest.mark.parametrize("path", ["/api/events", "/api/operator/events"])
def test_who_is_revoked_is_told_nothing_more(running, path):
    access, name = running.access, f"gone-{path.count('/')}"
    token = {"Authorization": f"Bearer {access.token('operator', f'{name}-robot')}"}
    for who, client in (
        (name, page(running, name, "operator")),
        (f"{name}-robot", Page(running.url, headers=token)),
    ):
        with client.stream("GET", path) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("event: ")
            assert access.revoke(who) == 1
            for _ in lines:  # until it ends
                pass


def test_operators_see_what_goes_on_and_can_stop_it(running, asked):
    anna, boss = page(running, "anna-5"), page(running, "boss-5", "operator")
    question = anna.do("lease", n=1)["questions"][0]["id"]
    anna.do("answer", question=question, value=[1, 0])
    ((name, streamed),) = events(boss, "/api/operator/events", 1)
    seen = boss.get("/api/operator/statistics").json()
    assert (name, set(streamed)) == ("statistics", set(seen))
    (row,) = [row for row in seen["annotators"] if row["name"] == "anna-5"]
    assert (row["answers"], row["active"], row["banned"]) == (1, True, False)
    assert seen["depth"]["text"] >= 2

    boss.do("operator/pause")
    assert anna.do("lease", n=2) | {"open": 0} == {
        "questions": [],
        "lease_s": 90,
        "paused": True,
        "draining": False,
        "open": 0,
        "answered": 1,
    }
    boss.do("operator/resume")
    held = anna.do("lease", n=1)["questions"]
    boss.do("operator/drain")
    assert anna.do("lease", n=3)["questions"][0]["id"] == held[0]["id"]
    assert page(running, "bert-5").do("lease", n=1)["questions"] == []
    boss.do("operator/resume")

    boss.do("operator/ban", annotator="anna-5", banned=True)
    refused = anna.post("/api/lease", json={"n": 1})
    assert (refused.status_code, "banned" in refused.json()["detail"]) == (403, True)
    boss.do("operator/ban", annotator="anna-5", banned=False)
    assert len(anna.do("lease", n=1)["questions"]) == 1

    url = boss.do("operator/invite", role="annotator", uses=1, name="carl-5")["url"]
    carl = Page(running.url).come_in(url.removeprefix("/invite/"))
    assert carl.get("/api/me").json()["annotator"] == "carl-5"
    boss.do("operator/revoke", name="carl-5")
    assert carl.get("/api/me").status_code == 401
    did = [line["did"] for line in boss.get("/api/operator/audit").json()]
    assert {"paused", "drained", "resumed", "banned", "unbanned", "invited", "revoked"} <= set(did)


def test_dead_questions_are_shown_and_asked_again(running, asked):
    boss = page(running, "boss-6", "operator")
    for name in ("d1", "d2", "d3"):
        someone = page(running, name)
        someone.do("lease", n=3)
        for question in asked:
            someone.do(
                "give_back", question=question, broken="it does not play" if question == asked[0] else ""
            )
    seen = boss.get("/api/operator/statistics").json()
    assert {"id": asked[0], "why": "it does not play"} in seen["dead"]
    assert any("nobody" in alert for alert in seen["alerts"])
    assert boss.do("operator/requeue", question=asked[0]) == {"done": True}
    assert boss.do("operator/requeue", question=asked[0]) == {"done": False}


def test_answers_are_exported_with_what_was_asked(running, asked, tmp_path):
    anna, boss = page(running, "anna-7"), page(running, "boss-7", "operator")
    for question in anna.do("lease", n=2)["questions"]:
        key_at, sent_at = question["began_at"] - 3600, time.time() - 3600  # a clock that is slow
        moments = {"shown_at": 5.0, "first_key_at": key_at, "sent_at": sent_at}
        anna.do("answer", question=question["id"], value=[1, 0], **moments)
    anna.do("undo", question=asked[1])
    boss.get("/api/operator/statistics")
    lines = [json.loads(line) for line in boss.get("/api/operator/export.jsonl").text.splitlines()]
    (mine,) = [line for line in lines if line["annotator"] == "anna-7"]
    assert (mine["question"], mine["value"], mine["cannot_tell"]) == (asked[0], [1.0, 0.0], False)
    assert sorted(mine["side_shown"]) == [0, 1]
    assert mine["asked"]["options"] == ["one 0", "two 0"]
    assert 0 <= mine["more"]["first_key_at"] - mine["started_at"] < 0.1
    got = boss.get("/api/operator/export.parquet")
    (tmp_path / "answers.parquet").write_bytes(got.content)
    rows = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    assert [row["event"] for row in rows] == [line["event"] for line in lines]
    assert json.loads(rows[-1]["value"]) == lines[-1]["value"]
    assert boss.get("/api/operator/export.csv").status_code == 422
    assert any(line["did"] == "exported" for line in boss.get("/api/operator/audit").json())


def test_what_a_disk_has_damaged_is_no_download_that_breaks_off(tmp_path):
    with served(tmp_path / "labeler") as running:
        running.labeling.submit(texts(3))
        running.labeling.run_once()
        anna, boss = page(running, "anna"), page(running, "boss", "operator")
        for question in anna.do("lease", n=3)["questions"]:
            anna.do("answer", question=question["id"], value=[1, 0])
        with running.labeling.queries.path.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\0")
        lines = [json.loads(line) for line in boss.get("/api/operator/export.jsonl").text.splitlines()]
        assert [line["question"] for line in lines if line["asked"] is None] == ["q2"]
        assert len(lines) == 3
        ledger = running.labeling.ledger.path
        whole = ledger.read_bytes().splitlines(keepends=True)
        ledger.write_bytes(b"".join([whole[0], b"\0" * (len(whole[1]) - 1) + b"\n", whole[2]]))
        for form in ("jsonl", "parquet"):
            answer = boss.get(f"/api/operator/export.{form}")
            assert (answer.status_code, "answers.jsonl, line 2" in answer.json()["detail"]) == (503, True)


def test_clips_are_served_in_ranges_and_only_this_labelers(running, tmp_path_factory):
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    footage = Footage(EnvRecipe("CartPole-v1"), 0, np.zeros((3, 1)), 0, frames=frames)
    anna, name = page(running, "anna-8"), running.labeling.clips.film(footage).result()["clip"]
    whole = anna.get(f"/clips/{name}")
    assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
    assert whole.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert anna.get("/clips/a%0A%E2%80%A8b").json() == {"detail": "clip: there is no a b"}
    part = anna.get(f"/clips/{name}", headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, whole.content[2:5])
    with served(tmp_path_factory.mktemp("other")) as other:
        elsewhere = page(other, "anna")
        assert elsewhere.get(f"/clips/{name}").status_code == 404
        assert other.labeling.clips.film(footage).result()["clip"] != name
        assert Page(other.url, cookies=anna.cookies).get("/api/me").status_code == 401
    for path in ("../secret", "..%2fsecret", "%2e%2e/secret", "secret", "x.mp4", f"{name}/..", "\0"):
        assert anna.get(f"/clips/{quote(path, safe='%/')}").status_code == 404, path


def test_machines_come_by_grpc_with_their_tokens(tmp_path):
    with served(tmp_path, grpc_address="127.0.0.1:0") as running:
        trainer = LabelerStub(grpc.insecure_channel(running.grpc_address))
        token = running.access.token("trainer", "learner")
        with pytest.raises(grpc.RpcError, match="asks for a token"):
            trainer.Stats(pb.StatsRequest())
        assert trainer.Stats(pb.StatsRequest(), metadata=[("authorization", f"Bearer {token}")]).counts


def test_every_answer_is_shielded(running):
    with httpx.Client(base_url=running.url) as client:
        for path in ("/health", "/api/me", "/nowhere", "/"):
            headers = client.get(path).headers
            assert "default-src 'self'" in headers["content-security-policy"]
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert "server" not in headers
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/openapi.json").status_code == 404


def test_what_cannot_be_served_is_said_in_one_line(running, tmp_path):
    port = running.url.rpartition(":")[2]
    taken = f"127.0.0.1:{port}"
    said = rf"--address: cannot listen on {taken}: .*in use.*; choose another"
    refused(ServiceError, said, tmp_path / "a", address=taken)
    refused(ConfigError, r"is in use by .*; stop it", running.labeling.folder)
    said = r"--address: 0\.0\.0\.0:80 can be reached .* --access off"
    refused(ConfigError, said, tmp_path / "b", address="0.0.0.0:80", access=False)
    refused(ConfigError, "--address: 'x' is not of the form HOST:PORT", tmp_path / "c", address="x")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{free.getsockname()[1]}"
        refused(ServiceError, "the store cannot be reached", tmp_path / "d", store=url)


def refused(kind, said, folder, **settings):
    with pytest.raises(kind, match=said), served(folder, **settings):
        pass


def test_a_run_that_asks_shows_its_curve_and_its_newest_video(tmp_path):
    path = tmp_path / "cheetah"
    with RunDirectory.create(path, {"env": {"id": "HalfCheetah-v5"}}) as run:
        run.log({"env_steps": 100, "expert_labels": 7}, step=100)
        run.log(
            {
                "env_steps": 200,
                "expert_labels": 9,
                "validation_mean": 5.0,
                "validation_lo": 4.0,
                "validation_hi": 6.0,
            },
            step=200,
        )
    with served(path / "labeler", run=path) as running:
        boss = page(running, "boss", "operator")
        assert boss.get("/api/me").json()["run"] == "cheetah"
        point = {"env_steps": 200, "return_mean": 5.0, "low": 4.0, "high": 6.0, "labels": 9}
        assert boss.get("/api/operator/run").json() == {"known": True, "curve": [point], "video": None}
        assert boss.get("/api/operator/policy.mp4").status_code == 404
        run.clips.mkdir()
        (run.clips / "best.mp4").write_bytes(b"film")
        video = boss.get("/api/operator/run").json()["video"]
        assert boss.get(video).content == b"film"


def test_it_is_served_encrypted(tmp_path):
    authority = Authority(tmp_path, "ours")
    cert, key = authority.issue("server")
    with served(tmp_path / "labeler", tls=ServerAccess(cert, key)) as running:
        assert running.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=authority.ca)
        anna = Page(running.url, verify=trusting)
        said = anna.post("/api/session", json={"invite": running.access.invite("annotator"), "name": "anna"})
        assert "Secure" in said.headers["set-cookie"]
        assert said.headers["strict-transport-security"]
        assert anna.load().do("lease", n=1)["questions"] == []


def test_invites_are_made_from_the_command_line(running, tmp_path, capsys, monkeypatch):
    def command(*words):
        monkeypatch.setattr(sys, "argv", ["tutelage", "labeler", "invite", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code, said.out.strip(), said.err.strip()

    folder = str(running.labeling.folder)
    code, link, _ = command("--folder", folder, "--name", "cli-anna", "--url", running.url)
    assert code == 0
    anna = Page(running.url).come_in(link.rpartition("/invite/")[2])
    assert anna.get("/api/me").json()["annotator"] == "cli-anna"
    code, token, _ = command("--folder", folder, "--role", "trainer", "--name", "learner")
    assert (code, running.access.machine(token)) == (0, Person("learner", "trainer", machine=True))
    assert command("--folder", folder, "--role", "trainer")[2] == "error: a token needs --name: whose it is"
    code, _, said = command("--folder", str(tmp_path / "none"))
    assert (code, said.startswith(f"error: {tmp_path / 'none'} is no labeler's folder")) == (2, True)
    (tmp_path / "secret").write_bytes(b"x" * 32)
    (tmp_path / "store").mkdir()
    assert "no labeler is served of" in command("--folder", str(tmp_path))[2]


def test_clips_are_webm_where_that_is_asked_for(tmp_path):
    with served(tmp_path, video="webm") as running:
        assert running.labeling.clips._suffix == ".webm"  # type: ignore[attr-defined]
