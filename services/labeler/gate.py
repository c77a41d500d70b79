"""What the routes stand on, and the check that each makes of who calls it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from services.labeler.access import Access, Person, Refused, Role
from services.labeler.stage import Stages

if TYPE_CHECKING:
    from services.labeler.labeling import Labeling
    from services.labeler.newest import Newest
    from services.labeler.news import News
    from services.labeler.statistics import Statistics

T = TypeVar("T")
COOKIE = "tutelage_session"
CSRF = "X-Tutelage-CSRF"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
THREADS = 12
"""Calls that wait for the store at once; what they write shares its syncs to disk."""
FILM_THREADS = 4
"""Calls that wait for a clip that is filmed again: apart, since nothing else shall wait for that."""


@dataclass(frozen=True)
class Service:
    """The labeler behind the routes."""

    labeling: Labeling
    access: Access
    statistics: Statistics
    news: News
    name: str  # of the run, for people to read
    run: Path | None = None  # its folder
    newest: Newest | None = None  # videos of its policy
    secure: bool = False  # served over https: cookies are for that only
    stages: Stages = field(default_factory=Stages)
    threads: ThreadPoolExecutor = field(
        default_factory=partial(ThreadPoolExecutor, THREADS, thread_name_prefix="labeler")
    )
    film_threads: ThreadPoolExecutor = field(
        default_factory=partial(ThreadPoolExecutor, FILM_THREADS, thread_name_prefix="clip")
    )

    async def do(self, call: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """The result of something that waits for the store or the disk."""
        return await asyncio.get_running_loop().run_in_executor(
            self.threads, partial(call, *arguments, **named)
        )

    async def clip(self, name: str) -> Path | None:
        """As `Clips.path`."""
        return await asyncio.get_running_loop().run_in_executor(
            self.film_threads, self.labeling.clips.path, name
        )


async def service(request: Request) -> Service:
    return request.app.state.service


Labeler = Annotated[Service, Depends(service)]


def needs(role: Role | None) -> Callable[[Request], Awaitable[Person]]:
    """The dependency that lets in who may do what `role` does; None: everybody who has a role.

    It raises Refused for others: without a session, with one whose request did not come from our page, or
    too often.
    """

    async def person(request: Request) -> Person:
        return await let_in(request, role)

    person.role = role  # type: ignore[attr-defined]
    return person


async def let_in(connection: HTTPConnection, role: Role | None) -> Person:
    """Who may do what `role` does. Raises Refused for others, as `needs` says."""
    labeler: Service = connection.app.state.service
    caller = await _caller(labeler, connection)
    if role is not None and not caller.may(role):
        labeler.access.audit.note("refused", by=caller.name, why=f"{connection.url.path} is for {role}s")
        raise Refused(403, f"this is for {role}s, and you are here as {caller.role}")
    labeler.access.check_rate(caller)
    return caller


def cookie(request: HTTPConnection) -> str:
    """The name of the session's cookie. Browsers send a host's cookies to all its ports: each has its own."""
    port = request.url.port
    return COOKIE if port is None else f"{COOKIE}_{port}"


def session_of(request: HTTPConnection) -> str:
    """The session that a request comes with; empty: none."""
    return request.cookies.get(cookie(request), "")


async def _caller(labeler: Service, request: HTTPConnection) -> Person:
    access, bearer = labeler.access, request.headers.get("authorization", "")
    if bearer:
        kind, _, token = bearer.partition(" ")
        machine = await labeler.do(access.machine, token.strip()) if kind.lower() == "bearer" else None
        if machine is None or not machine.machine:
            access.audit.note("refused", address=address(request), why="a token that is not known")
            raise Refused(401, "authorization: the token is not known to this labeler")
        return machine
    session = session_of(request)
    caller = access.trusted(session) or (session and await labeler.do(access.person, session)) or None
    if caller is None or caller.machine:
        raise Refused(401, "you are not signed in; open the link of your invite")
    if request.scope["type"] == "websocket":  # pages can send no header of their own along with it
        check_origin(request)
    elif request.scope["method"] not in SAFE:
        check_origin(request)
        if not access.is_csrf(session, request.headers.get(CSRF, "")):
            raise Refused(403, f"{CSRF}: it is not that of your session; load the page again")
    return caller


def check_origin(request: HTTPConnection) -> None:
    """Raises Refused unless the request says that it comes from a page of this service."""
    origin = request.headers.get("origin", "")
    if not origin or urlsplit(origin).netloc != request.headers.get("host", ""):
        raise Refused(403, f"Origin: {origin or 'none'} is not this service; open its own page")


def address(request: HTTPConnection) -> str:
    """Where a request comes from."""
    return request.client.host if request.client else ""


Someone = Annotated[Person, Depends(needs(None))]
Annotator = Annotated[Person, Depends(needs("annotator"))]
Operator = Annotated[Person, Depends(needs("operator"))]
