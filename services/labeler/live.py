"""The websockets: a demonstration that is played, and a policy from which people take over.

    to it     {"action": VALUE or null}, {"take_over": true or false}, {"restart": true}, {"end": true}
    from it   a picture (JPEG, binary), or {"state": "ready" | "playing" | "waiting" | "held" | "policy" |
              "you" | "keeping" | "ended", "step": n, ...}; of a demonstration that was stored also
              "kept": true

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
from dataclasses import dataclass, field
from typing import Any

import redis
from fastapi import APIRouter
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from services.labeler.access import Limiter, Person, Refused
from services.labeler.corrections import FOLDER
from services.labeler.gate import Service, let_in
from services.labeler.labeling import PLAYED
from services.labeler.people import may_stay
from services.labeler.stage import Stage
from tutelage.errors import ServiceError

router = APIRouter()
LONGEST_MESSAGE = 16 * 2**10  # bytes
MESSAGES_PER_S = 500.0
IDLE_S = 60.0
"""Who plays and does nothing for so long is not there."""
WATCHING_S = 900.0
"""Likewise of who watches a policy: to do nothing is what they are there for."""
BEAT_S = 10.0  # between signs of life for the question
AGAIN_S = 0.5  # between tries to store a demonstration while the store is away
SENDING_S, PARTING_S = 20.0, 2.0  # for one message, and the last one, to who does not read
GONE, REFUSED, FAULT, STOPPING = 1000, 1008, 1011, 1012  # why a websocket is closed
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
    """Watch the newest policy of the run, and take over; with `?held=1` each episode waits to be begun."""
    await _meet(websocket, lambda labeler, person: _live(websocket, labeler, person))


async def _play(websocket: WebSocket, labeler: Service, person: Person, question: str) -> None:
    began_at = time.time()
    if question not in await labeler.do(labeler.labeling.beat, person.name, [question]):
        raise Over("this question is not yours, or no longer; load the page again")
    known = await labeler.do(labeler.labeling.queue.look_up, question)
    if known is None or known.kind not in PLAYED or known.body is None:
        raise Over(f"question: a {known.kind if known else 'lost one'} is not played")

    async def still_there() -> None:
        await _check_stay(websocket, labeler, person)
        if question not in await labeler.do(labeler.labeling.beat, person.name, [question]):
            raise Over("the question is no longer yours: it went to somebody else")

    async with labeler.stages.open(person.name, {"play": known.body}) as stage:
        said = await _Performance(websocket, labeler, stage, still_there, IDLE_S).run()
        if said is not None:
            await _keep(websocket, labeler, person, question, began_at, said)


async def _keep(
    websocket: WebSocket,
    labeler: Service,
    person: Person,
    question: str,
    began_at: float,
    said: Mapping[str, Any],
) -> None:
    """Store what was played, also for who has gone since; tried again while the store is away."""
    steps, ends = len(said["played"]), time.monotonic() + labeler.labeling.queue.lease_s
    more = {"steps": steps, "ended": said["ended"], "versions": said["versions"]}
    while True:
        try:
            await _check_stay(websocket, labeler, person)
            outcome, event = await labeler.do(
                labeler.labeling.answer,
                question,
                person.name,
                said["played"],
                started_at=began_at,
                extra=more,
                played=True,
            )
            break
        except redis.RedisError:
            if labeler.news.ended or time.monotonic() > ends:
                raise
            await _say(websocket, state="keeping", step=steps)
            await labeler.news.pause(AGAIN_S)
    if outcome not in ("accepted", "duplicate"):
        raise Over("it could not be kept: the question is no longer yours")
    if outcome == "accepted":
        labeler.statistics.expect(person.name, question, event)
    await _say(websocket, state="ended", step=steps, kept=True)
    raise Over(code=GONE)


async def _say(websocket: WebSocket, **news: Any) -> None:
    """To who may have gone."""
    with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
        await asyncio.wait_for(websocket.send_json(news), SENDING_S)


async def _live(websocket: WebSocket, labeler: Service, person: Person) -> None:
    if labeler.run is None:
        raise Over("there is no policy: this labeler was not started with --run RUN")
    folder = labeler.labeling.folder / FOLDER
    about = {
        "run": str(labeler.run.resolve()),
        "folder": str(folder.resolve()),
        "annotator": person.name,
        "held": websocket.query_params.get("held") == "1",
    }

    async def still_there() -> None:
        await _check_stay(websocket, labeler, person)

    labeler.access.audit.note("watched live", by=person.name)
    async with labeler.stages.open(person.name, {"live": about}) as stage:
        await _Performance(websocket, labeler, stage, still_there, WATCHING_S).run()


# Coming in, and the end


async def _meet(websocket: WebSocket, perform: Callable[[Service, Person], Awaitable[None]]) -> None:
    """Let in who may, and tell them why it is over when it is."""
    labeler: Service = websocket.app.state.service
    try:
        person = await let_in(websocket, "annotator")
    except Refused as refused:
        return await websocket.send_denial_response(JSONResponse({"detail": str(refused)}, refused.status))
    except redis.RedisError:
        return await websocket.send_denial_response(
            JSONResponse({"detail": "the labeler's store cannot be reached; try again"}, 503)
        )
    await websocket.accept()
    try:
        await perform(labeler, person)
    except Exception as error:
        await _part(websocket, error)


async def _check_stay(websocket: WebSocket, labeler: Service, person: Person) -> None:
    if not await may_stay(person, websocket, labeler):
        raise Over("your access has ended; ask who runs this labeler")


async def _part(websocket: WebSocket, error: BaseException | None) -> None:
    """Say why it is over, to who is still there. Raises what no one foresaw."""
    if isinstance(error, WebSocketDisconnect):
        return
    if isinstance(error, TimeoutError):
        over = Over("your line is too slow for the pictures")
    elif isinstance(error, Refused):
        over = Over(str(error))
    elif isinstance(error, redis.RedisError | ServiceError | OSError):
        logging.getLogger(__name__).warning("%s: %s", websocket.url.path, error)
        over = Over("the labeler's store cannot be reached; try again")
    elif isinstance(error, Over):
        over = error
    else:
        over = Over("the service is at fault; its log says how", FAULT)
    with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):  # it has gone by itself
        await asyncio.wait_for(websocket.close(over.code, _short(str(over))), PARTING_S)
    if error is not None and over.code == FAULT:
        raise error


def _short(words: str) -> str:
    """What a last word has room for."""
    return words.encode()[:120].decode(errors="ignore")


# While it goes on


@dataclass
class _Performance:
    """Until one of it ends: what the person says, what the stage shows, the right to be there."""

    websocket: WebSocket
    labeler: Service
    stage: Stage
    still_there: Callable[[], Awaitable[None]]  # raises Over
    idle_s: float
    heard_at: float = field(default_factory=time.monotonic)

    async def run(self) -> Mapping[str, Any] | None:
        """The demonstration that was played to its end; None where it ended otherwise, and who was there has
        been told why.
        """
        show = asyncio.ensure_future(self._show())
        tasks = [show, *map(asyncio.ensure_future, (self._listen(), self._look_after()))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if show in done and show.exception() is None:
            return show.result()
        await _part(self.websocket, next(iter(done)).exception())
        return None

    async def _listen(self) -> None:
        rate = Limiter(MESSAGES_PER_S, 2 * MESSAGES_PER_S)
        while True:
            said = _checked(await self.websocket.receive())
            self.heard_at = time.monotonic()
            if not rate.take(""):
                raise Over("too many messages")
            self.stage.tell(said)

    async def _show(self) -> Mapping[str, Any]:
        async for news in self.stage.news():
            if isinstance(news, dict) and "played" in news:
                return news
            await asyncio.wait_for(_pass_on(self.websocket, news), SENDING_S)
        raise Over("the episode broke off; begin again")

    async def _look_after(self) -> None:
        looked_at = time.monotonic()
        while True:
            await self.labeler.news.pause(min(1.0, BEAT_S))
            if self.labeler.news.ended:
                raise Over("the labeler is being stopped", STOPPING)
            if time.monotonic() > self.heard_at + self.idle_s:
                raise Over(f"nothing came from you for {self.idle_s:.0f} s", GONE)
            if time.monotonic() > looked_at + BEAT_S:
                looked_at = time.monotonic()
                with contextlib.suppress(redis.RedisError):  # it is started again
                    await self.still_there()


async def _pass_on(websocket: WebSocket, news: bytes | dict[str, Any]) -> None:
    if isinstance(news, bytes):
        await websocket.send_bytes(news)
    elif "refused" in news:
        raise Over(news["refused"])
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
        raise Over(
            'message: expected one of {"action": ...}, {"take_over": ...}, {"restart": true}, {"end": true}'
        )
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
