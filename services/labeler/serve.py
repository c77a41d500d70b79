"""`tutelage labeler serve`: store, clips, labeling, the page and gRPC in one process, until it has to stop.

SIGTERM and Ctrl-C let requests that are being answered finish, end the streams, write the last answers to the
ledger and stop the store, in this order. A store that dies is started again; meanwhile pages are told to
try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import redis
import uvicorn

from expert_oracle.access import ServerAccess, is_loopback
from services.labeler.access import Access, Audit, Role, secret_of
from services.labeler.app import create_app
from services.labeler.clips import Clips
from services.labeler.labeling import Labeling
from services.labeler.ledger import Ledger
from services.labeler.live import LONGEST_MESSAGE
from services.labeler.operator import nobody_trains
from services.labeler.queue import Queue
from services.labeler.valkey import ANSWER_S, Embedded
from services.run_directory import RunDirectory, is_run, take_lock
from tutelage.errors import ConfigError, ServiceError

LOG = logging.getLogger(__name__)
GRACE_S = 10  # for requests that are being answered when it is told to stop
HANG_UP_S = 1.0  # for clients, once they have been answered
KEEP_S = 75  # a connection without requests: people take their time
LOOK_S = 0.5  # how often it is seen to that the store lives
BACKLOG = 1024
URL = "url"  # a file of the folder: where the page is


@dataclass(frozen=True)
class Settings:
    """What `tutelage labeler serve` is told."""

    folder: Path
    run: Path | None = None  # the run that asks, whose curve operators see
    address: str = "127.0.0.1:8080"
    grpc_address: str = ""  # empty: no gRPC
    store: str = ""  # URL of a Redis or Valkey; empty: one of our own
    access: bool = True
    token_file: str = ""  # machines, one a line: TOKEN ROLE NAME
    tls: ServerAccess = field(default_factory=ServerAccess)
    repeats: float = 0.05
    overlap: float = 0.1
    gold: float = 0.05
    lease_s: float = 90.0
    video: Literal["mp4", "webm"] = "mp4"  # of clips
    requests_per_s: float = 50.0  # of one person

    def __post_init__(self) -> None:
        for option, address in (("--address", self.address), ("--grpc-address", self.grpc_address)):
            host, _, port = address.rpartition(":")
            if (address or option == "--address") and not (host and port.isdigit() and int(port) < 2**16):
                raise ConfigError(f"{option}: {address!r} is not of the form HOST:PORT")
            if address and not self.access and not is_loopback(host):
                raise ConfigError(
                    f"{option}: {address} can be reached from other machines, and --access off lets "
                    "everybody in; leave that out, or listen on 127.0.0.1"
                )
        for option, share in (
            ("--repeats", self.repeats),
            ("--overlap", self.overlap),
            ("--gold", self.gold),
        ):
            if not 0 <= share <= 1:
                raise ConfigError(f"{option}: {share} is not from 0 to 1")

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def scheme(self) -> str:
        return "https" if self.tls.tls_cert else "http"


def folder_of(folder: Path | None, run: Path | None) -> Path:
    """A labeler's folder: of the run that asks, or one that is given, or `labeler`."""
    if folder is not None and run is not None:
        raise ConfigError("--folder and --run: a run has its own folder for the labeler; give one of them")
    return RunDirectory.open(run).path / "labeler" if run is not None else folder or Path("labeler")


def queue_name(folder: Path, secret: bytes) -> str:
    """What the keys of a labeler begin with: its own also where several share a store."""
    mark = hmac.new(secret, b"queue", hashlib.sha256).hexdigest()[:8]
    return f"{folder.resolve().name}-{mark}"


@dataclass(frozen=True)
class Running:
    """A labeler that serves."""

    labeling: Labeling
    access: Access
    url: str
    grpc_address: str  # host:port, with the port that it is; empty: none

    def link(self, role: Role, *, uses: int = 1) -> str:
        """A new invite's."""
        return f"{self.url}/invite/{self.access.invite(role, uses=uses, by='the console')}"

    def is_new(self) -> bool:
        """Nobody has ever come in."""
        return not self.access.has_people()


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Running]:
    """A labeler from its first request to its last. Raises ConfigError, ServiceError where it cannot be."""
    listener = _listen(settings)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        stack.callback(_hold(settings.folder).close)
        secret = secret_of(settings.folder)
        server, client = await asyncio.to_thread(_store, settings, stack)
        name = queue_name(settings.folder, secret)
        queue = Queue(client, name, lease_s=settings.lease_s)
        clips = Clips(settings.folder / "clips", secret=secret, codec=settings.video)
        stack.callback(clips.close)
        labeling = Labeling(
            queue,
            Ledger(settings.folder / "answers.jsonl"),
            clips,
            settings.folder,
            secret=secret,
            repeats=settings.repeats,
            overlap=settings.overlap,
            gold=settings.gold,
        )
        access = Access(
            client,
            name,
            secret=secret,
            audit=Audit(settings.folder / "audit.jsonl"),
            off=not settings.access,
            token_file=settings.token_file,
            requests_per_s=settings.requests_per_s,
        )
        await asyncio.to_thread(labeling.restore)
        labeling.start()
        try:
            async with (
                _http(settings, labeling, access, listener) as url,
                _grpc(settings, labeling, access) as grpc_address,
            ):
                over = asyncio.Event()
                watch = asyncio.create_task(_watch(server, over))
                (settings.folder / URL).write_text(url)
                try:
                    yield Running(labeling, access, url, grpc_address)
                finally:
                    over.set()
                    await watch
        finally:
            await asyncio.to_thread(labeling.stop)
            await asyncio.to_thread(stack.close)


def _hold(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return take_lock(folder, used="in use", advice="stop it, or choose another --folder")


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sends at once for TCP
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ServiceError(
            f"--address: cannot listen on {settings.address}: {error.strerror or error}; choose another, "
            "e.g. 127.0.0.1:0 for any free port"
        ) from None
    return listener


def _store(settings: Settings, stack: contextlib.ExitStack) -> tuple[Embedded | None, redis.Redis]:
    if settings.store:
        return None, client_of(settings.store)
    server = stack.enter_context(Embedded(settings.folder / "store"))
    return server, server.client()


def client_of(url: str) -> redis.Redis:
    """Of a store of somebody else's. Raises ConfigError for what is no URL."""
    try:
        return redis.Redis.from_url(url, socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S)
    except ValueError as error:
        raise ConfigError(f"--store: {url}: {error}") from None


async def _watch(server: Embedded | None, over: asyncio.Event) -> None:
    """Start the store again when it dies."""
    while server is not None and not over.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), LOOK_S)
        try:
            if await asyncio.to_thread(server.restart_if_dead):
                LOG.warning("the store in %s had died and was started again; nothing is lost", server.folder)
        except (ServiceError, OSError) as error:  # tried again
            LOG.error("the store in %s: %s", server.folder, error)


class _Server(uvicorn.Server):
    """Signals are for the service as a whole."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def _http(
    settings: Settings, labeling: Labeling, access: Access, listener: socket.socket
) -> AsyncIterator[str]:
    run = settings.run or settings.folder
    app = create_app(
        labeling, access, name=run.resolve().name, run=settings.run, secure=bool(settings.tls.tls_cert)
    )
    host, port = settings.host, listener.getsockname()[1]
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ssl_certfile=settings.tls.tls_cert or None,
            ssl_keyfile=settings.tls.tls_key or None,
            timeout_graceful_shutdown=GRACE_S,
            timeout_keep_alive=KEEP_S,
            ws_max_size=LONGEST_MESSAGE,
            ws_per_message_deflate=False,  # of pictures that are JPEGs it makes no less
        )
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        yield f"{settings.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        await app.state.service.news.end()  # else it would wait for the streams
        await app.state.service.stages.left()  # likewise for what is played, which ends with the news
        server.should_exit = True
        await _left(server, task)


async def _left(server: uvicorn.Server, task: asyncio.Task[None]) -> None:
    """The server has ended. Who is answered and does not hang up, as over TLS, is not waited for."""
    while not task.done():
        await asyncio.wait({task}, timeout=HANG_UP_S)
        if not server.server_state.tasks:
            for connection in list(server.server_state.connections):
                connection.transport.abort()  # type: ignore[union-attr]
    await task


@contextlib.asynccontextmanager
async def _grpc(settings: Settings, labeling: Labeling, access: Access) -> AsyncIterator[str]:
    if not settings.grpc_address:
        yield ""
        return
    from services.labeler import rpc

    running = await rpc.start(
        labeling, settings.grpc_address, access if settings.access else None, tls=settings.tls
    )
    try:
        yield running.address
    finally:
        await running.stop(GRACE_S)


def serve_command(settings: Settings, *, invite: bool, demo: bool) -> None:
    """`tutelage labeler serve`."""
    if not settings.tls.tls_cert and not is_loopback(settings.host):
        LOG.warning(
            "%s can be reached from other machines and is not encrypted: give --tls-cert and --tls-key, or "
            "put it behind a proxy that does",
            settings.address,
        )
    asyncio.run(_serve(settings, invite=invite, demo=demo))


async def _serve(settings: Settings, *, invite: bool, demo: bool) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with serving(settings) as running:
        for line in await asyncio.to_thread(_welcome, running, settings, invite):
            print(line, flush=True)
        if demo:
            from services.labeler.demo import fill

            print(await asyncio.to_thread(fill, running.labeling), flush=True)
        await stopped.wait()
        print("stopping", flush=True)


def invite_command(
    folder: Path, store: str, role: Role, *, uses: int, name: str, machine: bool, url: str = ""
) -> str:
    """`tutelage labeler invite`: a new link, or a machine's token, of the labeler of a folder.

    url: what people reach it by; empty: where it listens. Raises ServiceError where none is served there.
    """
    start = f"tutelage labeler serve{_option_for(folder)}"
    if not (folder / "secret").exists() or not (store or (folder / "store").exists()):
        raise ServiceError(f"{folder} is no labeler's folder; start one: {start}")
    if machine and not name:
        raise ConfigError("a token needs --name: whose it is")
    if url and not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url: {url!r} does not begin with https:// or http://")
    secret = secret_of(folder)
    client = client_of(store) if store else Embedded(folder / "store").client()
    access = Access(client, queue_name(folder, secret), secret=secret, audit=Audit(folder / "audit.jsonl"))
    try:
        if machine:
            return access.token(role, name, by="the console")
        invite = access.invite(role, uses=uses, name=name, by="the console")
    except (redis.ConnectionError, redis.TimeoutError) as error:
        if store:
            raise ServiceError(f"--store: {store} cannot be reached: {error}") from None
        raise ServiceError(f"no labeler is served of {folder}; start it: {start}") from None
    except ValueError as error:
        raise ConfigError(f"--{error}") from None
    return f"{(url or (folder / URL).read_text()).rstrip('/')}/invite/{invite}"


def _option_for(folder: Path) -> str:
    """What `serve` is given for this folder."""
    if folder == Path("labeler"):
        return ""
    return f" --run {folder.parent}" if is_run(folder.parent) else f" --folder {folder}"


def _welcome(running: Running, settings: Settings, invite: bool) -> Iterator[str]:
    yield f"labeler of {settings.folder}: {running.url}"
    if not settings.access:
        yield f"everybody on this machine is let in: open {running.url}"
    elif invite or running.is_new():
        yield f"to answer, open      {running.link('annotator', uses=100)}   (for 100 people)"
        yield f"to look after it     {running.link('operator')}   (once)"
    if running.grpc_address:
        yield f"gRPC for machines    {running.grpc_address}"
    if ended := nobody_trains(settings.run):
        yield ended
    yield "Ctrl-C stops it; every answer is on the disk when a page says so"
