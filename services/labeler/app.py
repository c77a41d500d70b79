"""The labeler over HTTP: the page, what it asks for, and what operators see.

    app = create_app(labeling, access, name="hopper")

Every route but the page's own files makes sure of a role (`gate.needs`); every error is one line in `detail`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import redis
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from services.labeler import live, operator, people
from services.labeler.access import Access, Refused
from services.labeler.gate import Operator, Service
from services.labeler.labeling import Labeling
from services.labeler.newest import Newest
from services.labeler.news import News
from services.labeler.shield import Shield
from services.labeler.statistics import Statistics
from tutelage import __version__
from tutelage.errors import ServiceError

STATIC = Path(str(resources.files("services.labeler").joinpath("static")))
PAGES = ("/", "/operator", "/live", "/invite/{token}")


class Fault(BaseModel):
    """Every error."""

    detail: str  # one line that names the field


class Health(BaseModel):
    status: str


def create_app(
    labeling: Labeling,
    access: Access,
    *,
    name: str = "",
    run: Path | None = None,
    secure: bool = False,
    static: Path = STATIC,
) -> FastAPI:
    """The ASGI app. Its lifespan begins and ends what it does by itself, but not `labeling`.

    name: of the run, for people; run: its folder; secure: it is served over https
    """
    statistics = Statistics(labeling.queue)
    news = News(labeling.queue, statistics.follow)
    newest = Newest(run) if run is not None else None
    service = Service(labeling, access, statistics, news, name, run, newest, secure)
    app = FastAPI(
        title="Tutelage labeler",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # else each request looks for them
        lifespan=_lifespan,
        responses={code: {"model": Fault} for code in (401, 403, 404, 409, 413, 422, 429, 503)},
    )
    app.state.service = service
    app.include_router(people.router)
    app.include_router(operator.router)
    app.include_router(live.router)
    _add_pages(app, static)
    _add_errors(app)
    app.add_middleware(Shield, only_loopback=access.off, https=secure)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    await service.news.begin()
    yield
    await service.news.end()
    service.threads.shutdown()
    service.film_threads.shutdown(wait=False, cancel_futures=True)  # what is filmed ends with the clips
    if service.newest is not None:
        await asyncio.to_thread(service.newest.close)


# The page


class Bundle(StaticFiles):
    """Files whose names change with their contents."""

    def file_response(self, *arguments: Any, **named: Any) -> Any:
        response = super().file_response(*arguments, **named)
        response.headers.setdefault("Cache-Control", "public, max-age=31536000, immutable")
        return response


def _add_pages(app: FastAPI, static: Path) -> None:
    async def page() -> FileResponse:
        if not (static / "index.html").is_file():
            raise Refused(404, "the page is not in this installation: services/labeler/static is missing")
        return FileResponse(static / "index.html", headers={"Cache-Control": "no-cache"})

    async def health() -> Health:
        """Whether it is up."""
        return Health(status="ok")

    async def openapi(_: Operator) -> dict[str, Any]:
        """This description."""
        return app.openapi()

    for path in PAGES:
        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/api/openapi.json", openapi, methods=["GET"], include_in_schema=False)
    app.mount("/assets", Bundle(directory=static / "assets", check_dir=False), name="assets")


# Errors


def _add_errors(app: FastAPI) -> None:
    app.add_exception_handler(Refused, _refused)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    for kind, status in ((ValueError, 422), (ServiceError, 503), (redis.RedisError, 503)):
        app.add_exception_handler(kind, partial(_failed, status))


def _fault(status: int, words: str, headers: Any = None) -> JSONResponse:
    """In one line, whatever of what was sent is in it."""
    plain = " ".join(words.encode("utf-8", "backslashreplace").decode().split())
    return JSONResponse({"detail": plain}, status, headers=headers)


async def _refused(_: Request, error: Refused) -> JSONResponse:
    return _fault(error.status, str(error), {"Retry-After": "5"} if error.status == 429 else None)


async def _http(_: Request, error: HTTPException) -> JSONResponse:
    return _fault(error.status_code, str(error.detail), error.headers)


async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _fault(422, "body: it is not JSON")
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return _fault(422, f"{where or 'body'}: {first['msg']}")


async def _failed(status: int, request: Request, error: Exception) -> JSONResponse:
    words = " ".join(str(error).split()) or type(error).__name__
    if status == 503:
        logging.getLogger(__name__).warning("%s: %s", request.url.path, words)
        words = f"the labeler's store: {words}; try again" if isinstance(error, redis.RedisError) else words
    return _fault(status, words)
