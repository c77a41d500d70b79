"""Whatever is sent to the labeler, it is never at a loss: requests by its own description, and beside it."""

import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from services.labeler.app import create_app
from tests.labelers import Page, page, served, texts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports
    import schemathesis
    from schemathesis.checks import not_a_server_error

SLOW_TO_MAKE = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
ENDLESS = {"/api/events", "/api/operator/events"}
ENDS_THE_SESSION = {"delete /api/session"}


@pytest.fixture(scope="module")
def labeler(tmp_path_factory):
    with served(tmp_path_factory.mktemp("labeler"), requests_per_s=1e6) as running:
        running.labeling.submit(texts(50))
        running.labeling.run_once()
        yield running
    Page.close_all()


# They come in before anything else: invites that do not work are tried until no more are taken.


@pytest.fixture(scope="module", autouse=True)
def boss(labeler):
    return page(labeler, "boss", "operator")


@pytest.fixture(scope="module", autouse=True)
def anna(labeler):
    return page(labeler)


def unharmed(labeler, boss, examples):
    """Every operation, that many times, by somebody who may do everything; those that did something."""
    document = create_app(labeler.labeling, labeler.access).openapi()
    reached = set()
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]
        if operation.path in ENDLESS or f"{operation.method} {operation.path}".lower() in ENDS_THE_SESSION:
            continue
        if {200, 404} & try_it(operation, boss, examples):
            reached.add(f"{operation.method} {operation.path}")
    assert boss.get("/api/me").status_code == 200
    return reached


def try_it(operation, boss, examples):
    """What it answered."""
    statuses = set()

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=SLOW_TO_MAKE)
    @given(case=operation.as_strategy())
    def holds(case):
        sent = case.as_transport_kwargs(base_url=str(boss.base_url))
        headers = {**dict(boss.headers), **dict(sent["headers"] or {}), "origin": boss.headers["origin"]}
        response = case.call(base_url=str(boss.base_url), headers=headers, cookies=dict(boss.cookies))
        case.validate_response(response, checks=[not_a_server_error])
        statuses.add(response.status_code)
        if response.status_code >= 400:
            assert "\n" not in response.json()["detail"], response.text

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        holds()
    return statuses


def test_no_request_of_its_own_description_is_too_much_for_it(labeler, boss):
    assert len(unharmed(labeler, boss, examples=12)) >= 20


@pytest.mark.slow
def test_no_request_of_its_own_description_is_too_much_for_it_at_length(labeler, boss):
    unharmed(labeler, boss, examples=300)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'{"question": null}',
        b'{"question": "\\ud800", "value": [1, 0]}',
        b'{"question": "q0", "value": NaN}',
        b'{"question": "q0", "value": [1e999, 0]}',
        b'{"question": "q0", "value": {"a": {"b": []}}}',
        b'{"question": "q0", "value": [1, 0], "shown_at": 1e400}',
        b'{"question": "q0\\u0000", "value": [1, 0]}',
        b'{"question": "' + b"x" * 5000 + b'"}',
        b'{"question": "q0", "value": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"question": "q0", "value": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
    ],
)
def test_bodies_that_are_none(anna, body):
    for path in ("answer", "undo", "beat", "give_back", "lease", "operator/ban"):
        said = anna.post(f"/api/{path}", content=body, headers={"Content-Type": "application/json"})
        assert said.status_code < 500, (path, said.text)
        if said.status_code >= 400:
            assert "\n" not in said.json()["detail"]
