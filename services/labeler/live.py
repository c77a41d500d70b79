"""The websockets: a demonstration that is played, and a policy from which people take over.

    to the service     {"action": VALUE or null}, {"take_over": true or false}, {"restart": true}, {"end": true}
    from the service   a picture (JPEG, binary), or {"state": "ready" | "playing" | "policy" | "you" | "ended",
                       "step": n, ...}; of a demonstration that was stored also "kept": true

Access is as everywhere: a session's cookie and an Origin of this service, or a machine's token. Whoever may
not stay is told why as the connection's last word.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import redis
from fastapi import APIRouter
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from services.labeler.access import Limiter, Person, Refused
from services.labeler.corrections import FOLDER
from services.labeler.gate import COOKIE, Service, let_in
from services.labeler.stage import Stage
from tutelage.errors import TutelageError

router = APIRouter()
LONGEST_MESSAGE = 16 * 2**10  # bytes
MESSAGES_PER_S = 500.0
IDLE_S = 60.0
"""Who plays and does nothing for so long is not there."""
WATCHING_S = 900.0
"""Likewise of who watches a policy: to do nothing is what they are there for."""
BEAT_S = 10.0  # between signs of life for the question
SENDING_S = 20.0  # for one message, to who does not read
GONE, REFUSED, STOPPING = 1000, 1008, 1012  # why a websocket is closed
SWITCHES = ("take_over", "restart", "end")


class Over(Exception):
    """The connection ends, and why; for the person to read."""

    def __init__(self, why: str = "", code: int = REFUSED) -> None:
        super().__init__(why)
        self.code = code


@router.websocket("/api/play/{question}")
async def play(websocket: WebSocket, question: str) -> None:
    """Play the demonstration that a question asks for; it is the answer when it has ended."""
    await _meet(websocket, lambda labeler, person: _play(websocket, labeler, person, question))


@router.websocket("/api/live")
async def live(websocket: WebSocket) -> None:
    """Watch the newest policy of the run, and take over."""
    await _meet(websocket, lambda labeler, person: _live(websocket, labeler, person))


async def _play(websocket: WebSocket, labeler: Service, person: Person, question: str) -> None:
    began_at = time.time()
    if question not in await labeler.do(labeler.labeling.beat, person.name, [question]):
        raise Over("this question is not yours, or no longer; load the page again")
    kind, body = await labeler.do(labeler.labeling.queue.look_up, question) or ("", None)
    if kind != "demonstration" or body is None:
        raise Over(f"question: a {kind} is not played")

    async def still_there() -> None:
        if question not in await labeler.do(labeler.labeling.beat, person.name, [question]):
            raise Over("the question is no longer yours: it went to somebody else")

    async def played(said: Mapping[str, Any]) -> None:
        more = {"steps": len(said["played"]), "ended": said["ended"], "versions": said["versions"]}
        outcome, event = await labeler.do(
            labeler.labeling.answer,
            question,
            person.name,
            said["played"],
            started_at=began_at,
            extra=more,
        )
        if outcome not in ("accepted", "duplicate"):
            raise Over("it could not be kept: the question is no longer yours")
        if outcome == "accepted":
            labeler.statistics.expect(person.name, question, event)
        await websocket.send_json({"state": "ended", "step": more["steps"], "kept": True})
        raise Over(code=GONE)

    async with labeler.stages.open(person.name, {"play": body}) as stage:
        await _perform(websocket, labeler, stage, still_there, played, idle_s=IDLE_S)


async def _live(websocket: WebSocket, labeler: Service, person: Person) -> None:
    if labeler.run is None:
        raise Over("there is no policy: this labeler was not started with --run RUN")
    folder = labeler.labeling.folder / FOLDER
    about = {
        "run": str(labeler.run.resolve()),
        "folder": str(folder.resolve()),
        "annotator": person.name,
    }
    session = websocket.cookies.get(COOKIE, "")

    async def still_there() -> None:
        if not person.machine and await labeler.do(labeler.access.person, session) is None:
            raise Over("you are signed out")

    labeler.access.audit.note("watched live", by=person.name)
    async with labeler.stages.open(person.name, {"live": about}) as stage:
        await _perform(websocket, labeler, stage, still_there, _nothing_else, idle_s=WATCHING_S)


async def _nothing_else(said: Mapping[str, Any]) -> None:
    raise AssertionError(f"the stage said {said}")


# Coming in, and the end


async def _meet(websocket: WebSocket, perform: Callable[[Service, Person], Awaitable[None]]) -> None:
    """Let in who may, and tell them why it is over when it is."""
    labeler: Service = websocket.app.state.service
    try:
        person = await let_in(websocket, "annotator")
    except Refused as refused:
        return await websocket.send_denial_response(
            JSONResponse({"detail": str(refused)}, refused.status)
        )
    except redis.RedisError:
        return await websocket.send_denial_response(
            JSONResponse({"detail": "the labeler's store cannot be reached; try again"}, 503)
        )
    await websocket.accept()
    over = Over()
    try:
        await perform(labeler, person)
    except Over as why:
        over = why
    except Refused as refused:
        over = Over(str(refused))
    except WebSocketDisconnect:
        return
    except (redis.RedisError, TutelageError, OSError) as error:
        logging.getLogger(__name__).warning("%s: %s", websocket.url.path, error)
        over = Over("the labeler's store cannot be reached; try again")
    with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):  # it has gone by itself
        await asyncio.wait_for(websocket.close(over.code, _short(str(over))), SENDING_S)


def _short(words: str) -> str:
    """What a last word has room for."""
    return words.encode()[:120].decode(errors="ignore")


# While it goes on


async def _perform(
    websocket: WebSocket,
    labeler: Service,
    stage: Stage,
    still_there: Callable[[], Awaitable[None]],
    played: Callable[[Mapping[str, Any]], Awaitable[None]],
    *,
    idle_s: float,
) -> None:
    """Until one of it ends: the person's messages, the stage's, the right to be there."""
    heard_at = time.monotonic()

    async def listen() -> None:
        nonlocal heard_at
        rate = Limiter(MESSAGES_PER_S, 2 * MESSAGES_PER_S)
        while True:
            said = _checked(await websocket.receive())
            heard_at = time.monotonic()
            if not rate.take(""):
                raise Over("too many messages")
            stage.tell(said)

    async def show() -> None:
        async for news in stage.news():
            await asyncio.wait_for(_pass_on(websocket, news, played), SENDING_S)
        raise Over("the episode broke off; begin again")

    async def look_after() -> None:
        looked_at = time.monotonic()
        while True:
            await labeler.news.pause(min(1.0, BEAT_S))
            if labeler.news.ended:
                raise Over("the labeler is being stopped", STOPPING)
            if time.monotonic() > heard_at + idle_s:
                raise Over(f"nothing came from you for {idle_s:.0f} s", GONE)
            if time.monotonic() > looked_at + BEAT_S:
                looked_at = time.monotonic()
                with contextlib.suppress(redis.RedisError):  # it is started again
                    await still_there()

    tasks = [asyncio.ensure_future(part()) for part in (listen, show, look_after)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    error = next(iter(done)).exception()
    raise Over("you are too slow to be shown anything") if isinstance(error, TimeoutError) else error or Over()


async def _pass_on(
    websocket: WebSocket,
    news: bytes | dict[str, Any],
    played: Callable[[Mapping[str, Any]], Awaitable[None]],
) -> None:
    if isinstance(news, bytes):
        await websocket.send_bytes(news)
    elif "refused" in news:
        raise Over(news["refused"])
    elif "played" in news:
        await played(news)
    else:
        await websocket.send_json(news)


def _checked(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a page says. Raises Over, saying what is wrong with it, for what no page does."""
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", GONE))
    try:
        said = json.loads(message.get("text") or "")
    except (ValueError, RecursionError):
        raise Over("message: it is not JSON") from None
    if not isinstance(said, dict) or len(said) != 1:
        raise Over('message: expected one of {"action": ...}, {"take_over": ...}, {"restart": true}, {"end": true}')
    ((name, value),) = said.items()
    if name not in (*SWITCHES, "action"):
        raise Over(f"message: {name[:20]!r} is none of action, {', '.join(SWITCHES)}")
    if name in SWITCHES and not isinstance(value, bool):
        raise Over(f"{name}: expected true or false")
    if name == "action" and not (value is None or all(map(_is_number, _listed(value)))):
        raise Over("action: expected a number, a list of numbers, or null")
    return said


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_number(value: Any) -> bool:
    """A finite one that floats can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
