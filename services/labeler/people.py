"""The routes of annotators: come in, be asked, answer, take it back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection

from expert_oracle import feedback
from services.labeler.access import SESSION_S, Person, Refused, Role
from services.labeler.gate import (
    Annotator,
    Labeler,
    Service,
    Someone,
    address,
    check_origin,
    cookie,
    needs,
    session_of,
)
from services.labeler.queue import Banned, Outcome
from tutelage.errors import TutelageError

router = APIRouter()
MOST_LEASED = 16
BANNED = "you are banned; ask who runs this labeler"
Name = Annotated[str, Field(max_length=200)]


class Entering(BaseModel):
    invite: Name
    name: Name = ""


class Entered(BaseModel):
    annotator: str
    role: Role


class Invited(BaseModel):
    role: Role
    name: str  # whom it is for; empty: whoever comes


class Me(Entered):
    csrf: str  # to be sent as X-Tutelage-CSRF with everything that changes something; empty for machines
    labeler: str  # tells it from others that had the same address
    run: str
    kinds: list[str]
    answered: int
    open: int
    paused: bool
    draining: bool  # in a pause: what one has may be finished
    access: bool  # False: everybody on this machine is let in


class Leasing(BaseModel):
    n: int = Field(1, ge=1, le=MOST_LEASED)
    kinds: list[Name] = Field([], max_length=32)


class Asked(BaseModel):
    id: str
    kind: str
    view: dict[str, Any]
    ends_at: float  # seconds since the epoch
    began_at: float


class Leased(BaseModel):
    questions: list[Asked]
    lease_s: float  # for which they are kept
    paused: bool
    draining: bool
    open: int
    answered: int


Moment = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
"""Seconds since the epoch, by the clock of who says it, which `sent_at` sets right."""
MOMENTS = ("shown_at", "answered_at", "first_played_at", "first_key_at")


class Answering(BaseModel):
    question: Name
    value: Any = None
    cannot_tell: bool = False
    shown_at: Moment | None = None
    answered_at: Moment | None = None
    sent_at: Moment | None = None
    first_played_at: Moment | None = None
    first_key_at: Moment | None = None


class Answered(BaseModel):
    outcome: Outcome
    answered: int


class One(BaseModel):
    question: Name


class Undone(BaseModel):
    undone: bool
    late: bool  # it counts, and can no longer be taken back


class Beating(BaseModel):
    questions: list[Name] = Field(max_length=64)


class Kept(BaseModel):
    kept: list[str]
    lease_s: float  # for which they are


class GivingBack(One):
    broken: Annotated[str, Field(max_length=500)] = ""


class GivenBack(BaseModel):
    given_back: bool


# Coming and going


@router.get("/api/invite/{invite}")
async def invited(invite: Name, request: Request, labeler: Labeler) -> Invited:
    """What a link is good for, before a name is asked for."""
    role, name = await labeler.do(labeler.access.look_at, invite, address=address(request))
    return Invited(role=role, name=name)


@router.post("/api/session")
async def enter(said: Entering, request: Request, response: Response, labeler: Labeler) -> Entered:
    """Sign in by an invite; the session is a cookie."""
    check_origin(request)
    session, person = await labeler.do(labeler.access.enter, said.invite, said.name, address=address(request))
    _set_cookie(request, response, session, labeler)
    return Entered(annotator=person.name, role=person.role)


def _set_cookie(request: Request, response: Response, session: str, labeler: Service) -> None:
    https = labeler.secure or request.url.scheme == "https"  # as a proxy on this machine says
    response.set_cookie(
        cookie(request), session, max_age=SESSION_S, httponly=True, samesite="strict", secure=https
    )


@router.delete("/api/session")
async def leave(person: Someone, request: Request, response: Response, labeler: Labeler) -> Entered:
    """Sign out."""
    if not person.machine:
        await labeler.do(labeler.access.leave, session_of(request))
        response.delete_cookie(cookie(request))
    return Entered(annotator=person.name, role=person.role)


async def me_or_you(request: Request, response: Response, labeler: Labeler) -> Me:
    """Who is asking; where access is off, whoever comes is let in."""
    try:
        person = await needs(None)(request)
        session = session_of(request)
    except Refused as refused:
        if not (labeler.access.off and refused.status == 401):
            raise
        session, person = labeler.access.enter_as_you()
        _set_cookie(request, response, session, labeler)
    queue = labeler.news.queue or await labeler.do(labeler.news.look)
    return Me(
        annotator=person.name,
        role=person.role,
        csrf="" if person.machine else labeler.access.csrf(session),
        labeler=labeler.access.mark,
        run=labeler.name,
        kinds=list(feedback.kinds()),
        answered=await labeler.do(labeler.statistics.answered, person.name),
        open=queue["open"],
        paused=queue["paused"],
        draining=queue["draining"],
        access=not labeler.access.off,
    )


router.add_api_route("/api/me", me_or_you, methods=["GET"])


# Being asked, and answering


@router.post("/api/lease")
async def lease(said: Leasing, person: Annotator, labeler: Labeler) -> Leased:
    """Questions to answer: those that the annotator has, and new ones, at most `n` in all."""
    try:
        assigned = await labeler.do(labeler.labeling.assign, person.name, said.n, said.kinds)
    except Banned:
        raise Refused(403, BANNED) from None
    queue = await labeler.do(labeler.news.look)  # without those that were just leased
    return Leased(
        questions=[
            Asked(id=one.id, kind=one.kind, view=one.view, ends_at=one.ends_at, began_at=one.began_at)
            for one in assigned
        ],
        lease_s=labeler.labeling.queue.lease_s,
        paused=queue["paused"],
        draining=queue["draining"],
        open=queue["open"],
        answered=labeler.statistics.known(person.name),
    )


@router.post("/api/answer")
async def answer(said: Answering, person: Annotator, labeler: Labeler) -> Answered:
    """An answer to a question; sent twice it counts once."""
    outcome, answered = await labeler.do(_answer, said, person, labeler)
    return Answered(outcome=outcome, answered=answered)


def _answer(said: Answering, person: Person, labeler: Service) -> tuple[Outcome, int]:
    now = time.time()
    fast = said.sent_at - now if said.sent_at is not None else 0.0  # the clock of who says it
    moments = {name: at - fast for name in MOMENTS if (at := getattr(said, name)) is not None}
    outcome, event = labeler.labeling.answer(
        said.question,
        person.name,
        said.value,
        cannot_tell=said.cannot_tell,
        started_at=moments.pop("shown_at", now),
        answered_at=moments.pop("answered_at", now),
        moments=moments,
    )
    if outcome == "accepted":
        labeler.statistics.expect(person.name, said.question, event)
    elif outcome == "lost" and person.name in labeler.labeling.queue.banned():
        raise Refused(403, BANNED)
    return outcome, labeler.statistics.known(person.name)


@router.post("/api/undo")
async def undo(said: One, person: Annotator, labeler: Labeler) -> Undone:
    """Take an answer back; the question is leased to the annotator again."""
    became = await labeler.do(labeler.labeling.undo, said.question, person.name)
    return Undone(undone=became == "undone", late=became == "late")


@router.post("/api/beat")
async def beat(said: Beating, person: Annotator, labeler: Labeler) -> Kept:
    """Keep questions a while longer."""
    kept = await labeler.do(labeler.labeling.beat, person.name, said.questions)
    if said.questions and not kept and person.name in await labeler.do(labeler.labeling.queue.banned):
        raise Refused(403, BANNED)
    return Kept(kept=kept, lease_s=labeler.labeling.queue.lease_s)


@router.post("/api/give_back")
async def give_back(said: GivingBack, person: Annotator, labeler: Labeler) -> GivenBack:
    """Not this one; what is broken about it, if it is."""
    back = labeler.labeling.give_back
    return GivenBack(given_back=await labeler.do(back, said.question, person.name, said.broken))


@router.get("/clips/{name}", response_class=FileResponse)
async def clip(name: Name, _: Annotator, labeler: Labeler) -> FileResponse:
    """A video; ranges of it too. Its name is known to who was asked about it."""
    try:
        path = await labeler.clip(name)  # it may have to be filmed again
    except TutelageError as error:
        raise Refused(404, f"clip: {name} is gone: {error}") from None
    if path is None:
        raise Refused(404, f"clip: there is no {name}")
    return FileResponse(path, headers={"Cache-Control": "private, max-age=31536000, immutable"})


@router.get("/api/events", response_class=StreamingResponse)
async def events(person: Annotator, request: Request, labeler: Labeler) -> StreamingResponse:
    """Server-sent events `state`: {open, answered, paused, draining}."""
    return event_stream(_states(person, request, labeler))


def _states(person: Person, request: Request, labeler: Service) -> AsyncIterator[bytes]:
    async def now() -> dict[str, Any] | None:
        if not await may_stay(person, request, labeler):
            return None
        queue = labeler.news.queue
        return {
            "open": queue.get("open", 0),
            "answered": labeler.statistics.known(person.name),
            "paused": queue.get("paused", False),
            "draining": queue.get("draining", False),
        }

    return labeler.news.stream("state", now)


async def may_stay(person: Person, request: HTTPConnection, labeler: Service) -> bool:
    """Whether the session or token that a stream or a websocket was begun with is still good."""
    access = labeler.access
    if person.machine:
        token = request.headers.get("authorization", "").partition(" ")[2].strip()
        return await labeler.do(access.machine, token) is not None
    session = session_of(request)
    return access.trusted(session) is not None or await labeler.do(access.person, session) is not None


def event_stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """The response that events are sent in."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)
