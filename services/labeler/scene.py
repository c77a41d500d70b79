"""What a person sees and holds while an episode goes on at the environment's own rate."""

from __future__ import annotations

import io
import json
import queue
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import gymnasium as gym
import numpy as np
from PIL import Image

from actors.environments import columns, make_env, put, rows, to_env, with_versions
from actors.pictures import make_lean, picture, try_gl
from expert_oracle.feedback import Body, action
from tutelage.types import Array, EnvRecipe, Tree

HEADER = struct.Struct("<cI")  # of what a stage says: what it is, and how many bytes follow
PICTURE, NEWS = b"P", b"N"  # a JPEG; JSON
LARGEST, MUJOCO, QUALITY = 640, 320, 80  # pixels of the longer side; of MuJoCo's squares; of the JPEGs
FPS = 30.0  # where an environment says none


class Scene:
    """An environment in the middle of an episode.

    obs: [1, ...], what is seen now; step: how many were made; ended: "", "terminated" or "truncated"
    """

    def __init__(self, recipe: EnvRecipe) -> None:
        self.env = make_env(recipe, render_mode="rgb_array")
        if hasattr(self.env.unwrapped, "mujoco_renderer"):
            make_lean(self.env.unwrapped, MUJOCO)
            try_gl(self.env)
        self.recipe = with_versions(recipe, self.env)
        self.period_s = 1 / float(self.env.metadata.get("render_fps") or FPS)
        self.obs: Tree = columns(self.env.observation_space, 1)
        self.step, self.ended = 0, ""

    @property
    def space(self) -> gym.Space:
        return self.env.action_space

    def begin(self, seed: int) -> None:
        put(self.obs, 0, self.env.reset(seed=seed)[0])
        self.step, self.ended = 0, ""

    def act(self, action: Array) -> float:
        """Make a step; returns its reward."""
        observation, reward, terminated, truncated, _ = self.env.step(to_env(self.space, action[None])[0])
        put(self.obs, 0, observation)
        self.step += 1
        self.ended = "terminated" if terminated else "truncated" if truncated else ""
        return float(reward)

    def seen(self) -> Tree:
        """A copy of `obs`."""
        return rows(self.obs, np.array([0]))

    def picture(self) -> bytes:
        """A JPEG of now."""
        image = Image.fromarray(picture(self.env))
        image.thumbnail((LARGEST, LARGEST))
        image.save(data := io.BytesIO(), "JPEG", quality=QUALITY)
        return data.getvalue()


class Hand:
    """What a person does with the keys or sliders of a question's body.

    moved: something was done since that was last set to False
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._start = _sliders_at_start(body)
        self._rest = _doing_nothing(body)
        self._held: Array | None = None
        self._last = self._start
        self.moved = False

    def take(self, said: Any) -> None:
        """As the page says it; None: nothing is held. Raises ValueError for what is no action."""
        self._held = None if said is None else action.value(self._body, said)
        if self._held is not None:
            self._last = self._held
            self.moved |= self._start is None or not np.array_equal(self._held, self._start)

    def forget(self) -> None:
        """What was let go of does not go on."""
        if self._start is None:
            self._last = self._held

    def action(self) -> Array | None:
        """What is held; else to do nothing, where there is such an action; else what was held last, if
        anything was."""
        if self._held is not None:
            return self._held
        return self._last if self._rest is None else self._rest


def _sliders_at_start(body: Body) -> Array | None:
    if "sliders" not in body:
        return None
    return np.array([slider["start"] for slider in body["sliders"]], np.float32)


def _doing_nothing(body: Body) -> Array | None:
    names = [str(name).lower() for name in body.get("actions", ())]
    known = next((names.index(name) for name in ("do nothing", "noop", "no-op") if name in names), None)
    return None if known is None else np.array(body["start"] + known, np.int64)


class Line:
    """The way to the service: lines of JSON come in, pictures and news go out."""

    def __init__(self, into: IO[str], out: IO[bytes]) -> None:
        self._out = out
        self._into = into
        self._heard: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()

    def first(self) -> Mapping[str, Any]:
        """What it is about; then the rest is listened to."""
        about = json.loads(self._into.readline())
        threading.Thread(target=self._listen, daemon=True).start()
        return about

    def _listen(self) -> None:
        for line in self._into:
            self._heard.put(json.loads(line))
        self._heard.put(None)

    def show(self, jpeg: bytes) -> None:
        self._send(PICTURE, jpeg)

    def tell(self, **news: Any) -> None:
        self._send(NEWS, json.dumps(news).encode())

    def _send(self, kind: bytes, data: bytes) -> None:
        self._out.write(HEADER.pack(kind, len(data)) + data)
        self._out.flush()

    def ticks(
        self, period_s: float, goes_on: Callable[[], bool], hear: Callable[[Mapping[str, Any]], None]
    ) -> Iterator[None]:
        """Once every period while it goes on; what is said meanwhile is heard, however slow the rest is. Ends
        when nobody is there.

        Who is late, for a slow line, does not hurry afterwards.
        """
        due = time.monotonic()
        while True:
            went_on = goes_on()
            left_s = max(0.0, due - time.monotonic()) if went_on else None
            try:
                said = self._heard.get(left_s != 0.0, left_s)
            except queue.Empty:
                yield
                due = max(due + period_s, time.monotonic())
                continue
            if said is None:
                return
            hear(said)
            if not went_on:
                due = time.monotonic()


def line_of_this_process() -> Line:
    """Over the standard streams; what libraries print is no message."""
    import os

    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return Line(sys.stdin, out)
