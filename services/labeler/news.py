"""What pages are told as it happens: server-sent events, and how they end.

One task looks at the store for all pages. A stream ends when the service does: a server that waits for its
connections to close would otherwise never leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import redis

from services.labeler.queue import Queue

EVERY_S = 1.0
ALIVE_S = 15.0
"""A comment is sent after so long without news, so that neither side takes the other for gone."""


class News:
    """The queue's figures, as new as EVERY_S; `begin` and `end` belong to the loop that serves.

    queue: {"open", "leased", "dead", "submitted", ..., "paused", "draining"}; empty until the first look
    """

    def __init__(self, queue: Queue, refresh: Callable[[], object] = lambda: None) -> None:
        self.queue: dict[str, Any] = {}
        self._queue, self._refresh = queue, refresh
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def look(self) -> dict[str, Any]:
        """The figures now. Blocks."""
        paused, draining = self._queue.paused(), self._queue.draining()
        self.queue = {**self._queue.counts(), "paused": paused, "draining": draining}
        return self.queue

    async def begin(self) -> None:
        self._task = asyncio.create_task(self._keep_looking())

    async def end(self) -> None:
        """Also every stream of these news."""
        self._ended.set()
        if self._task is not None:
            await self._task

    async def _keep_looking(self) -> None:
        while not self._ended.is_set():
            try:
                await asyncio.to_thread(self._look_at_all)
            except (redis.RedisError, OSError) as error:
                logging.getLogger(__name__).warning("the store cannot be reached: %s", error)
            await self.pause(EVERY_S)

    def _look_at_all(self) -> None:
        self.look()
        self._refresh()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    async def pause(self, seconds: float) -> None:
        """Sleep, or until the end."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)

    async def stream(
        self, event: str, now: Callable[[], Awaitable[Any]], *, every_s: float = EVERY_S
    ) -> AsyncIterator[bytes]:
        """An event whenever `await now()` differs, looked at every so often; `await now()` None ends it."""
        sent, silent_s = b"", 0.0
        while not self._ended.is_set():
            value = await now()
            if value is None:
                return
            message = f"event: {event}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n".encode()
            silent_s += every_s
            if message != sent:
                yield message
                sent, silent_s = message, 0.0
            elif silent_s >= ALIVE_S:
                yield b": still here\n\n"
                silent_s = 0.0
            await self.pause(every_s)
