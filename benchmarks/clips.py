"""Clips: `python -m benchmarks.clips [--json] [CASE...]`.

A clip is 60 steps from the middle of an episode, from its recipe to the finished H.264 file: replay, drawing
and encoding. Seconds are CPU time of all processes that are at work; the sides take turns.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import psutil

from actors.clips import Filmer, headless
from actors.environments import make_env
from actors.replay import replay
from benchmarks.common import Row, row, run
from expert_oracle.feedback import Footage
from tutelage.types import EnvRecipe

ENVS = ("HalfCheetah-v5", "CartPole-v1")
START, STEPS = 100, 60  # of a clip; those before it are replayed without a picture
SIZE = 256  # pixels
TURNS = 5
PAIRS_A_SECOND = 0.3  # that a person judges without a break (Christiano et al., 2017: 3 to 5 seconds each)
FRAMES = 100


def footage(env: str) -> Footage:
    """Of the first episode that is long enough: CartPole is balanced, all else acts by chance."""
    recipe = EnvRecipe(env)
    made = make_env(recipe)
    made.action_space.seed(0)
    actions = []
    obs, _ = made.reset(seed=0)
    for _ in range(START + STEPS):
        chance = made.action_space.sample()
        actions.append(np.int64(obs[2] + obs[3] > 0) if env.startswith("CartPole") else chance)
        obs, _, terminated, truncated, _ = made.step(actions[-1])
        if terminated or truncated:
            raise RuntimeError(f"{env}: the episode is shorter than the benchmark's")
    made.close()
    played = replay(recipe, 0, np.stack(actions))
    return Footage(recipe, 0, played.actions, START, played.obs[START : START + STEPS])


def cpu_s(filmer: Filmer | None = None) -> float:
    """CPU seconds of this process, of those that have ended, and of a filmer's that still runs."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    if filmer is not None and filmer.pid is not None:
        times = psutil.Process(filmer.pid).cpu_times()
        total += times.user + times.system
    return total


def warm(env: str, folder: Path) -> tuple[float, float]:
    """CPU seconds of a clip by a process that has made others, and of one that is started for it."""
    part = footage(env)
    path = folder / "clip.mp4"

    def timed(work: Callable[[], object], filmer: Filmer | None = None) -> float:
        began = cpu_s(filmer)
        work()
        return cpu_s(filmer) - began

    def cold() -> None:
        with Filmer() as filmer:
            filmer.film(part, path, size=SIZE)

    with Filmer() as filmer:
        filmer.film(part, path, size=SIZE)
        turns = [
            (timed(lambda: filmer.film(part, path, size=SIZE), filmer), timed(cold)) for _ in range(TURNS)
        ]
    ours, theirs = (statistics.median(side) for side in zip(*turns, strict=True))
    return ours, theirs


def clip() -> Iterable[Row]:
    """CPU of a clip against a process for each, and how many people one core keeps busy."""
    with tempfile.TemporaryDirectory() as folder:
        for env in ENVS:
            ours, theirs = warm(env, Path(folder))
            yield row(
                "clips",
                f"{env}, {STEPS} steps from {START}",
                ours=1000 * ours,
                against="a process for each",
                reference=1000 * theirs,
                unit="CPU ms",
                reach=1.5,
                smaller_is_better=True,
            )
            yield row(
                "clips",
                f"{env}, clips a second of a core",
                ours=1 / ours,
                against="one person",
                reference=2 * PAIRS_A_SECOND,
                unit="clips/s",
                reach=1,
            )


def drawing() -> Iterable[Row]:
    """CPU of one of MuJoCo's pictures, against gymnasium's settings at the same size."""
    ours, theirs = [], []
    for _ in range(3):
        ours.append(_drawn("lean"))
        theirs.append(_drawn("gymnasium"))
    yield row(
        "clips",
        f"{ENVS[0]}, one picture of {SIZE} pixels",
        ours=1000 * statistics.median(ours),
        against="gymnasium's settings",
        reference=1000 * statistics.median(theirs),
        unit="CPU ms",
        reach=5,
        smaller_is_better=True,
    )


def _drawn(how: str) -> float:
    """CPU seconds of a picture, in a process of its own: OpenGL is chosen before MuJoCo is imported."""
    code = f"from benchmarks.clips import draw; print(draw({how!r}))"
    said = subprocess.run(
        [sys.executable, "-c", code], env=headless(), check=True, stdout=subprocess.PIPE, text=True
    )
    return float(said.stdout)


def draw(how: str) -> float:
    """CPU seconds of a picture here."""
    from actors.pictures import make_lean, picture

    size = {} if how == "lean" else {"width": SIZE, "height": SIZE}
    env = make_env(EnvRecipe(ENVS[0], size), render_mode="rgb_array")
    env.reset(seed=0)
    if how == "lean":
        make_lean(env.unwrapped, SIZE)
    picture(env)  # shaders are compiled
    began = time.process_time()
    for _ in range(FRAMES):
        picture(env)
    seconds = (time.process_time() - began) / FRAMES
    env.close()
    return seconds


if __name__ == "__main__":
    run({"clip": clip, "drawing": drawing})
