"""The routes of operators: what goes on, and what can be done about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, Field

from services.labeler import export
from services.labeler.access import Person, Refused, Role
from services.labeler.gate import Labeler, Operator, Service
from services.labeler.people import Name, event_stream, may_stay
from services.run_directory import RunDirectory, is_run

router = APIRouter(prefix="/api/operator")
STATISTICS_S = 2.0


class Done(BaseModel):
    done: bool  # False: there was nothing to do


class Figures(BaseModel):
    queue: dict[str, int | bool]
    depth: dict[str, int]  # open questions by kind
    oldest_wait_s: float
    answers_per_minute: float
    annotators: list[dict[str, Any]]
    alpha: dict[str, dict[str, float | int | None]]  # agreement by kind
    alerts: list[str]
    dead: list[dict[str, str]]


class Banning(BaseModel):
    annotator: Name
    banned: bool = True


class Requeueing(BaseModel):
    question: Name


class Inviting(BaseModel):
    role: Role = "annotator"
    uses: int = Field(1, ge=1, le=10_000)
    name: Name = ""


class Invited(BaseModel):
    url: str  # a path of this service
    token: str = ""


class Minting(BaseModel):
    role: Literal["annotator", "trainer"] = "annotator"
    name: Annotated[str, Field(min_length=1, max_length=200)]


class Minted(BaseModel):
    token: str  # shown once


class Revoking(BaseModel):
    name: Name = ""
    invite: Name = ""


class Point(BaseModel):
    env_steps: int
    return_mean: float
    low: float | None
    high: float | None
    labels: int | None


class Run(BaseModel):
    known: bool  # False: this labeler is not that of a run
    curve: list[Point]
    video: str | None


# Looking


@router.get("/statistics")
async def statistics(_: Operator, labeler: Labeler) -> Figures:
    """The queue, the annotators, how far they agree, and what wants looking after."""
    return Figures(**await labeler.do(_report, labeler))


def _report(labeler: Service) -> dict[str, Any]:
    report = labeler.statistics.report()
    if fault := labeler.labeling.fault:
        report["alerts"].insert(0, f"the service tries again what it cannot do: {fault}")
    if ended := nobody_trains(labeler.run):
        report["alerts"].append(ended)
    if waiting := labeler.labeling.waiting():
        report["queue"]["waiting"] = waiting
    return report


def nobody_trains(run: Path | None) -> str:
    """What to know of a run that has ended; empty: it goes on, or there is none."""
    if run is None or not is_run(run):
        return ""
    why = RunDirectory.open(run).read_summary().get("stopped_because")
    return f"the run has ended ({why}): answers are kept, and read once it is resumed" if why else ""


@router.get("/events", response_class=StreamingResponse)
async def events(person: Operator, request: Request, labeler: Labeler) -> StreamingResponse:
    """Server-sent events `statistics`: the same, whenever it changes."""
    return event_stream(_statistics(person, request, labeler))


def _statistics(person: Person, request: Request, labeler: Service) -> AsyncIterator[bytes]:
    async def now() -> dict[str, Any] | None:
        return await labeler.do(_report, labeler) if await may_stay(person, request, labeler) else None

    return labeler.news.stream("statistics", now, every_s=STATISTICS_S)


@router.get("/audit")
async def audit(_: Operator, labeler: Labeler) -> list[dict[str, Any]]:
    """Who did what, the newest first."""
    return await labeler.do(labeler.access.audit.last)


@router.get("/run")
async def run(_: Operator, labeler: Labeler) -> Run:
    """How the run that asks goes: its learning curve, and its newest video."""
    curve = await labeler.do(curve_of, labeler.run)
    video = await labeler.do(_video, labeler)
    return Run(
        known=labeler.run is not None,
        curve=curve,
        video=f"/api/operator/policy.mp4?of={quote(video.name)}" if video else None,
    )


def curve_of(run: Path | None) -> list[Point]:
    """The validations of a run, or of none."""
    if run is None or not is_run(run):
        return []
    return [
        Point(
            env_steps=line.get("env_steps", line["step"]),
            return_mean=line["validation_mean"],
            low=line.get("validation_lo"),
            high=line.get("validation_hi"),
            labels=line.get("expert_labels") or line.get("comparisons"),
        )
        for line in RunDirectory.open(run).metrics()
        if line.get("validation_mean") is not None
    ]


def _video(labeler: Service) -> Path | None:
    return labeler.newest.video() if labeler.newest is not None else None


@router.get("/policy.mp4", response_class=FileResponse)
async def policy(_: Operator, labeler: Labeler) -> FileResponse:
    """The newest video of the policy."""
    path = await labeler.do(_video, labeler)
    if path is None:
        raise Refused(404, "policy.mp4: the run has no video yet")
    return FileResponse(path, headers={"Cache-Control": "no-cache"})


# Doing


async def _note(labeler: Service, person: Person, did: str, **what: Any) -> None:
    await labeler.do(labeler.access.audit.note, did, by=person.name, **what)


@router.post("/pause")
async def pause(person: Operator, labeler: Labeler) -> Done:
    """Show nobody anything; who has questions keeps them, and answers are still taken."""
    await labeler.do(labeler.labeling.queue.pause)
    await _note(labeler, person, "paused")
    return await _looked(labeler)


@router.post("/resume")
async def resume(person: Operator, labeler: Labeler) -> Done:
    """Ask again."""
    await labeler.do(labeler.labeling.queue.pause, False)
    await _note(labeler, person, "resumed")
    return await _looked(labeler)


@router.post("/drain")
async def drain(person: Operator, labeler: Labeler) -> Done:
    """Ask nobody anything new; who has questions may finish them."""
    await labeler.do(labeler.labeling.queue.pause, drain=True)
    await _note(labeler, person, "drained")
    return await _looked(labeler)


async def _looked(labeler: Service) -> Done:
    await labeler.do(labeler.news.look)
    return Done(done=True)


@router.post("/requeue")
async def requeue(said: Requeueing, person: Operator, labeler: Labeler) -> Done:
    """Ask a dead question again."""
    done = await labeler.do(labeler.labeling.queue.requeue, said.question)
    await _note(labeler, person, "requeued", question=said.question, done=done)
    return Done(done=done)


@router.post("/ban")
async def ban(said: Banning, person: Operator, labeler: Labeler) -> Done:
    """Ask an annotator nothing any more, or again."""
    await labeler.do(labeler.labeling.queue.ban, said.annotator, said.banned)
    await _note(labeler, person, "banned" if said.banned else "unbanned", name=said.annotator)
    return Done(done=True)


@router.post("/invite")
async def invite(said: Inviting, person: Operator, labeler: Labeler) -> Invited:
    """A link that lets somebody in."""
    if said.role == "trainer":
        raise Refused(422, "role: trainers are machines; make a token for one")
    token = await labeler.do(labeler.access.invite, said.role, uses=said.uses, name=said.name, by=person.name)
    return Invited(url=f"/invite/{token}", token=token)


@router.post("/token")
async def token(said: Minting, person: Operator, labeler: Labeler) -> Minted:
    """A token for a machine."""
    made = await labeler.do(labeler.access.token, said.role, said.name, by=person.name)
    return Minted(token=made)


@router.post("/revoke")
async def revoke(said: Revoking, person: Operator, labeler: Labeler) -> Done:
    """End all sessions and tokens of somebody, or an invite: who came in by it stays."""
    if bool(said.name) == bool(said.invite):
        raise Refused(422, "name: give one, or an invite")
    if said.invite:
        return Done(done=await labeler.do(labeler.access.uninvite, said.invite, by=person.name))
    return Done(done=await labeler.do(labeler.access.revoke, said.name, by=person.name) > 0)


# Taking away


@router.get("/export.{form}", response_class=StreamingResponse)
async def exported(
    form: Literal["jsonl", "parquet"], person: Operator, labeler: Labeler, request: Request
) -> StreamingResponse:
    """All answers that count, as JSON lines or Parquet."""
    parts = export.FORMS[form](labeler.labeling)
    first = await asyncio.to_thread(next, parts)  # what cannot be read breaks off no download
    await _note(labeler, person, "exported", form=form)
    name = f"answers-{time.strftime('%Y%m%d-%H%M%S')}.{form}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(_in_a_thread(first, parts), media_type=export.MEDIA[form], headers=headers)


async def _in_a_thread(first: bytes, parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Each further part is made in a thread, when the one before has been sent."""
    yield first
    while (part := await asyncio.to_thread(next, parts, None)) is not None:
        yield part
