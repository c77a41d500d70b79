"""An event loop without a thread of its own: it runs on whichever thread waits for it.

That spares each call two switches of threads. gRPC wants one loop for all channels of a process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class SharedLoop:
    """While one thread runs the loop, others hand it what they want begun; when that thread has its own
    result, the next one takes over.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._changed = threading.Condition()
        self._led = False

    def wait_for(self, begin: Callable[[], asyncio.Future[T]]) -> T:
        """The result of what `begin` returns; it is called where the loop's objects may be used."""
        if _in_event_loop():  # a notebook's, say; a thread can run only one
            with concurrent.futures.ThreadPoolExecutor(1) as thread:
                return thread.submit(self.wait_for, begin).result()
        with self._changed:
            lead, self._led = not self._led, True
        if lead:
            return self._lead(begin)
        future = asyncio.run_coroutine_threadsafe(_begun(begin), self.loop)
        future.add_done_callback(lambda _: self._notify())
        try:
            return self._follow(future)
        except BaseException:
            future.cancel()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.wait_for(lambda: asyncio.ensure_future(work, loop=self.loop))

    def _lead(self, begin: Callable[[], asyncio.Future[T]]) -> T:
        future: asyncio.Future[T] | None = None
        try:
            future = begin()
            return self.loop.run_until_complete(future)
        finally:
            if future is not None and not future.done():  # interrupted
                future.cancel()
            self._notify(led=False)

    def _notify(self, led: bool | None = None) -> None:
        with self._changed:
            if led is not None:
                self._led = led
            self._changed.notify_all()

    def _follow(self, future: concurrent.futures.Future[T]) -> T:
        with self._changed:
            while self._led and not future.done():
                self._changed.wait()
            if future.done():
                return future.result()
            self._led = True
        return self._lead(lambda: asyncio.wrap_future(future, loop=self.loop))


async def _begun(begin: Callable[[], asyncio.Future[T]]) -> T:
    return await begin()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_loops: dict[int, SharedLoop] = {}
_lock = threading.Lock()


def shared_loop() -> SharedLoop:
    """The one of this process; a fork gets its own."""
    with _lock:
        found = _loops.get(os.getpid())
        if found is None:
            found = _loops[os.getpid()] = SharedLoop()
        return found
