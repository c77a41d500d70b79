"""Who may do what at the labeler: invites, sessions, roles, tokens, and every route against every role."""

import json
import re
import time

import httpx
import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.routing import Mount
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from services.labeler.access import Access, Audit, Limiter, Person, Refused, secret_of
from services.labeler.app import create_app
from services.labeler.gate import COOKIE
from services.labeler.serve import queue_name
from tests.labelers import Page, page, served
from tutelage.errors import ConfigError

OPEN = {"", "annotator", "operator", "trainer"}
SIGNED_IN = OPEN - {""}
ANNOTATING = {"annotator", "operator"}
OPERATING = {"operator"}
WHO_MAY = {
    "GET /": OPEN,
    "GET /operator": OPEN,
    "GET /live": OPEN,
    "GET /invite/{token}": OPEN,
    "GET /health": OPEN,
    "MOUNT /assets": OPEN,
    "GET /api/invite/{invite}": OPEN,
    "POST /api/session": OPEN,  # who has an invite
    "DELETE /api/session": SIGNED_IN,
    "GET /api/me": SIGNED_IN,
    "POST /api/lease": ANNOTATING,
    "POST /api/answer": ANNOTATING,
    "POST /api/undo": ANNOTATING,
    "POST /api/beat": ANNOTATING,
    "POST /api/give_back": ANNOTATING,
    "GET /clips/{name}": ANNOTATING,
    "GET /api/events": ANNOTATING,
    "GET /api/operator/statistics": OPERATING,
    "GET /api/operator/events": OPERATING,
    "GET /api/operator/audit": OPERATING,
    "GET /api/operator/run": OPERATING,
    "GET /api/operator/policy.mp4": OPERATING,
    "POST /api/operator/pause": OPERATING,
    "POST /api/operator/resume": OPERATING,
    "POST /api/operator/drain": OPERATING,
    "POST /api/operator/requeue": OPERATING,
    "POST /api/operator/ban": OPERATING,
    "POST /api/operator/invite": OPERATING,
    "POST /api/operator/token": OPERATING,
    "POST /api/operator/revoke": OPERATING,
    "GET /api/operator/export.{form}": OPERATING,
    "GET /api/openapi.json": OPERATING,
    "WS /api/play/{question}": ANNOTATING,
    "WS /api/live": ANNOTATING,
}
"""Roles that reach a route; "" is nobody's."""
BODIES = {
    "/api/session": {"invite": "x"},
    "/api/lease": {"n": 1},
    "/api/answer": {"question": "x"},
    "/api/undo": {"question": "x"},
    "/api/beat": {"questions": []},
    "/api/give_back": {"question": "x", "broken": ""},
    "/api/operator/requeue": {"question": "x"},
    "/api/operator/ban": {"annotator": "nobody"},
    "/api/operator/invite": {"role": "annotator"},
    "/api/operator/token": {"name": "robot"},
    "/api/operator/revoke": {"name": "nobody"},
}


@pytest.fixture(autouse=True)
def _closed_pages():
    yield
    Page.close_all()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with served(tmp_path_factory.mktemp("labeler")) as labeler:
        yield labeler


@pytest.fixture
def access(running):
    """The access of the labeler, as another process of its folder has it."""
    return running.access


def routes(router):
    for route in router.routes:
        if isinstance(route, Mount):
            yield f"MOUNT {route.path}"
        elif hasattr(route, "original_router"):  # included, with all of its own
            yield from routes(route.original_router)
        elif isinstance(route, APIWebSocketRoute):
            yield f"WS {route.path}"
        else:
            assert isinstance(route, APIRoute), f"{route} is of no kind that this test knows"
            yield from (f"{method} {route.path}" for method in sorted(set(route.methods or ()) - {"HEAD"}))


def test_every_route_is_for_the_roles_that_the_table_says(running):
    app = create_app(running.labeling, running.access)
    assert sorted(routes(app)) == sorted(WHO_MAY), "a route without an entry in WHO_MAY, or the reverse"
    people = {
        "": Page(running.url),
        "annotator": page(running, "table-anna"),
        "operator": page(running, "table-boss", "operator"),
        "trainer": Page(
            running.url,
            headers={"Authorization": f"Bearer {running.access.token('trainer', 'table-robot')}"},
        ),
    }
    for route, allowed in WHO_MAY.items():
        method, path = route.split()
        if method == "MOUNT" or route == "DELETE /api/session":
            continue
        for role, client in people.items():
            status = status_of(client, method, path)
            reached = status not in (401, 403) or (
                path in ("/api/session", "/api/invite/{invite}") and status == 403
            )
            assert reached == (role in allowed), f"{route} as {role or 'nobody'}: {status}"
    for role, client in people.items():
        assert (status_of(client, "DELETE", "/api/session") != 401) == bool(role)
    assert people["annotator"].get("/api/me").status_code == 401


def status_of(client, method, path):
    concrete = re.sub("{[a-z]+}", "x", path.replace("{form}", "jsonl"))
    if method == "WS":
        return status_of_socket(client, concrete)
    with client.stream(method, concrete, json=BODIES.get(path)) as response:
        return response.status_code


def status_of_socket(client, path):
    url = str(client.base_url).rstrip("/")
    headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items())}
    if "Authorization" in client.headers:
        headers["Authorization"] = client.headers["Authorization"]
    try:
        with connect(url.replace("http", "ws", 1) + path, origin=Origin(url), additional_headers=headers):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


def test_an_invite_lets_in_as_many_as_it_says_and_only_whom_it_is_for(running, access):
    invite = access.invite("annotator", uses=2)
    seen = Page(running.url).get(f"/api/invite/{invite}")
    assert seen.json() == {"role": "annotator", "name": ""}
    Page(running.url).come_in(invite, "  two   words ")
    assert Page(running.url).post("/api/session", json={"invite": invite, "name": "two words"}).json() == {
        "detail": "name: two words is taken; choose another, or ask for an invite of your own"
    }
    assert Page(running.url).post("/api/session", json={"invite": invite, "name": ""}).status_code == 422
    Page(running.url).come_in(invite, "somebody else")
    spent = Page(running.url).post("/api/session", json={"invite": invite, "name": "a third"})
    assert (spent.status_code, "was used already" in spent.json()["detail"]) == (403, True)
    spent = Page(running.url).get(f"/api/invite/{invite}")
    assert (spent.status_code, "was used already" in spent.json()["detail"]) == (403, True)
    named = access.invite("annotator", name="two words")
    assert Page(running.url).get(f"/api/invite/{named}").json()["name"] == "two words"
    again = Page(running.url).come_in(named, "ignored")
    assert again.get("/api/me").json()["annotator"] == "two words"


def test_what_opens_doors_is_nowhere_on_disk(running, access):
    invite, token = access.invite("annotator"), access.token("annotator", "disk-robot")
    anna = Page(running.url).come_in(invite, "disk-anna")
    session = anna.cookies[cookie(running)]
    files = [path for path in running.labeling.folder.rglob("*") if path.is_file()]
    assert any(path.name.endswith(".aof") for path in files)
    for path in files:
        data = path.read_bytes()
        for what in (invite, token, session):
            assert what.encode() not in data, path
    for name in ("secret", "audit.jsonl", "store/password"):
        assert (running.labeling.folder / name).stat().st_mode & 0o077 == 0, name


def test_a_session_is_a_cookie_that_scripts_and_other_sites_cannot_use(running, access):
    invite = access.invite("annotator")
    entered = Page(running.url).post("/api/session", json={"invite": invite, "name": "cookie-anna"})
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie
    assert invite not in cookie
    proxied = {"X-Forwarded-Proto": "https"}
    said = {"invite": access.invite("annotator"), "name": "cookie-bert"}
    behind = Page(running.url).post("/api/session", json=said, headers=proxied)
    assert "Secure" in behind.headers["set-cookie"]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Tutelage-CSRF": ""},
        {"X-Tutelage-CSRF": "0" * 64},
        {"X-Tutelage-CSRF": "é"},
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": ""},
    ],
)
def test_another_site_can_have_nothing_done(running, headers):
    anna = page(running, f"csrf-anna-{abs(hash(str(headers)))}")
    coded = {name: value.encode() for name, value in headers.items()}
    refused = anna.post("/api/lease", json={"n": 1}, headers=coded)
    assert refused.status_code == 403
    assert refused.json()["detail"].startswith(next(iter(headers)))
    assert anna.do("lease", n=1)["questions"] == []


def test_signing_in_from_another_site_is_refused(running, access):
    elsewhere = httpx.post(
        f"{running.url}/api/session",
        json={"invite": access.invite("annotator"), "name": "x"},
        headers={"Origin": "http://elsewhere.example"},
    )
    assert elsewhere.status_code == 403


def test_machines_have_tokens_and_need_no_more(running, access, tmp_path):
    token = access.token("annotator", "robot-1")
    robot = Page(running.url, headers={"Authorization": f"Bearer {token}"})
    assert robot.get("/api/me").json()["annotator"] == "robot-1"
    assert robot.post("/api/lease", json={"n": 1}).status_code == 200
    assert access.machine(token) == Person("robot-1", "annotator", machine=True)
    for wrong in ("Bearer x", "Bearer", "Basic eDp5", f"Bearer {token}x"):
        assert httpx.get(f"{running.url}/api/me", headers={"Authorization": wrong}).status_code == 401
    anna = page(running, "token-anna")
    session = {"Authorization": f"Bearer {anna.cookies[cookie(running)]}"}
    assert httpx.get(f"{running.url}/api/me", headers=session).status_code == 401
    as_cookie = httpx.get(f"{running.url}/api/me", cookies={cookie(running): token})
    assert as_cookie.status_code == 401
    access.revoke("robot-1")
    assert robot.get("/api/me").status_code == 401


def test_nobody_comes_in_under_the_name_of_a_machine(running, access):
    access.token("annotator", "robot-2")
    invite = access.invite("annotator")
    refused = Page(running.url).post("/api/session", json={"invite": invite, "name": "robot-2"})
    assert (refused.status_code, "robot-2 is taken" in refused.json()["detail"]) == (409, True)
    Page(running.url).come_in(invite, "robot-3")


def test_machines_of_a_file(running, tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# machines\nsesame trainer the learner  # the cluster's\n\nother annotator robot\n")
    made = other_access(running, token_file=str(path))
    assert made.machine("sesame") == Person("the learner", "trainer", machine=True)
    assert made.machine("other") == Person("robot", "annotator", machine=True)
    assert made.machine("") is made.machine("# machines") is None
    with pytest.raises(Refused, match="the learner is taken"):
        made.enter(made.invite("annotator"), "the learner", address="here")
    path.write_text("sesame king anna\n")
    with pytest.raises(ConfigError, match=r"tokens, line 1 is not of the form TOKEN ROLE NAME"):
        other_access(running, token_file=str(path))
    with pytest.raises(ConfigError, match="--token-file: cannot read"):
        other_access(running, token_file=str(tmp_path / "none"))


def other_access(running, **settings):
    folder = running.labeling.folder
    secret = secret_of(folder)
    store = running.labeling.queue._store
    return Access(
        store, queue_name(folder, secret), secret=secret, audit=Audit(folder / "other.jsonl"), **settings
    )


def test_an_invite_of_another_process_opens_the_door(running):
    invite = other_access(running).invite("operator", name="from-outside")
    assert Page(running.url).come_in(invite).get("/api/operator/audit").status_code == 200


def test_who_tries_invites_is_slowed_down_by_address_and_others_are_not(running):
    tried = other_access(running, failures_per_minute=5)
    for _ in range(5):
        with pytest.raises(Refused, match="is not known"):
            tried.enter("guess", "mallory", address="10.0.0.9")
    with pytest.raises(Refused) as refused:
        tried.enter(tried.invite("annotator"), "mallory", address="10.0.0.9")
    assert refused.value.status == 429
    assert tried.enter(tried.invite("annotator"), "early bird", address="10.0.0.7")[1].name == "early bird"


def test_who_asks_too_often_is_told_so_and_others_are_not(tmp_path):
    now = 0.0
    limiter = Limiter(2.0, 4.0, clock=lambda: now)
    assert [limiter.take("anna") for _ in range(5)] == [True] * 4 + [False]
    assert limiter.take("bert")
    now = 1.0
    assert [limiter.take("anna") for _ in range(3)] == [True, True, False]


def test_with_access_off_everybody_on_this_machine_is_in_and_nobody_else(tmp_path):
    with served(tmp_path, access=False) as running:
        you = Page(running.url).load()
        assert you.get("/api/me").json() | {"csrf": "", "kinds": []} == {
            "annotator": "you",
            "role": "operator",
            "csrf": "",
            "labeler": running.access.mark,
            "run": tmp_path.name,
            "kinds": [],
            "answered": 0,
            "open": 0,
            "paused": False,
            "draining": False,
            "access": False,
        }
        assert you.do("lease", n=1)["questions"] == []
        assert you.post("/api/lease", json={}, headers={"X-Tutelage-CSRF": ""}).status_code == 403
        named = httpx.get(f"{running.url}/api/me", headers={"Host": "rebound.example"})
        assert named.status_code == 403
        assert named.json()["detail"].startswith("Host: ")
        assert httpx.post(f"{running.url}/api/lease", json={}).status_code == 401
        assert httpx.get(f"{running.url}/clips/x", cookies={cookie(running): "x.y"}).status_code == 401
        store = running.labeling.queue._store
        assert list(store.scan_iter("*session*")) == []  # however often somebody comes


def cookie(running) -> str:
    """The name of the session's cookie."""
    return f"{COOKIE}_{httpx.URL(running.url).port}"


def test_a_session_is_of_one_port_so_that_two_labelers_share_a_browser(running, access):
    anna = page(running, "port-anna")
    anna.cookies.set(f"{COOKIE}_1", "of another labeler")
    assert anna.get("/api/me").json()["annotator"] == "port-anna"
    anna.delete("/api/session")
    assert f"{COOKIE}_1" in anna.cookies
    assert cookie(running) not in anna.cookies


def test_who_did_what_is_on_record(running, access):
    anna = page(running, "audit-anna")
    anna.get("/api/operator/audit")
    Page(running.url).post("/api/session", json={"invite": "guess", "name": "audit-mallory"})
    anna.delete("/api/session")
    lines = [json.loads(line) for line in access.audit.path.read_text().splitlines()]
    assert all(abs(line["at"] - time.time()) < 600 for line in lines)
    mine = [line["did"] for line in lines if "audit-anna" in (line.get("by"), line.get("name"))]
    assert mine == ["invited", "signed in", "refused", "signed out"]
    assert any(re.search("not known", line.get("why", "")) for line in lines if line["did"] == "refused")
    assert access.audit.last(1) == [lines[-1]]


def test_an_audit_log_that_cannot_be_written_stops_nobody(tmp_path, caplog):
    audit = Audit(tmp_path / "no such folder" / "audit.jsonl")
    audit.note("signed in", by="anna")
    assert "cannot be written" in caplog.text
    assert audit.last() == []
