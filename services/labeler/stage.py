"""An episode in a process of its own, and how many of them there may be.

    async with stages.open("anna", {"play": body}) as stage:
        stage.tell({"action": 1})                      # whenever the person does something
        async for said in stage.news(): ...            # a picture (JPEG, bytes), or news (a mapping)

The process has nothing to do with the store, and nothing is unpickled: lines of JSON go in, JPEGs and JSON
come out. When its standard input ends, however that comes, so does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

from actors.clips import headless
from services.labeler.access import Refused

MOST, MOST_EACH = 4, 2  # stages of a labeler, and of one person's
WRITING_S = 5.0  # that it has at its end, to store what there is
HEADER_BYTES, PICTURE = 5, b"P"  # as in scene.py, which is not imported here: it brings the environments
UNSAID = 256 * 2**10  # bytes of what was said to it and not read


class Stages:
    """Those of one service. For its loop only."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def open(self, person: str, about: Mapping[str, Any]) -> AsyncIterator[Stage]:
        """Raises Refused where there are too many."""
        if self._held[person] >= MOST_EACH:
            raise Refused(429, "you play in other windows already; close one of them")
        if self._held.total() >= MOST:
            raise Refused(429, f"{MOST} people play already; try again in a while")
        self._held[person] += 1
        try:
            stage = await Stage.begin(about)
            try:
                yield stage
            finally:
                await stage.close()
        finally:
            self._held[person] -= 1
            async with self._changed:
                self._changed.notify_all()

    async def left(self) -> None:
        """All are closed, for which they have been told to end; or they had their time to."""
        with contextlib.suppress(TimeoutError):
            async with self._changed, asyncio.timeout(2 * WRITING_S):
                await self._changed.wait_for(lambda: not self._held.total())


class Stage:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._into, self._out = process, process.stdin, process.stdout

    @classmethod
    async def begin(cls, about: Mapping[str, Any]) -> Stage:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.labeler.acting"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=headless(),
            start_new_session=True,  # Ctrl-C is for us
        )
        stage = cls(process)
        stage.tell(about)
        return stage

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, said: Mapping[str, Any]) -> None:
        """Raises Refused where it has stopped reading."""
        if self._into.transport.get_write_buffer_size() > UNSAID:
            raise Refused(429, "the episode does not keep up with what you send")
        self._into.write(json.dumps(said).encode() + b"\n")

    async def news(self) -> AsyncIterator[bytes | dict[str, Any]]:
        """Until its process ends."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                header = await self._out.readexactly(HEADER_BYTES)
                data = await self._out.readexactly(int.from_bytes(header[1:], "little"))
                yield data if header[:1] == PICTURE else json.loads(data)

    async def close(self) -> None:
        """It may store what there is, but not for long."""
        self._into.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._last(), WRITING_S)
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _last(self) -> None:
        while await self._out.read(2**16):
            pass
        await self._process.wait()
