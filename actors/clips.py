"""Clips: a stretch of an episode as a video, rendered without a GPU or a screen in a process of its own.

    with Filmer() as filmer:
        filmer.film(footage, "clip.mp4")

Only the recipe, seed and actions of an episode go to that process, which plays it again: an OpenGL backend
has to be chosen before MuJoCo is imported, and two MuJoCo viewers in one process turn each other's pictures
black. It keeps its environment warm from one clip to the next of the same recipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import av
import gymnasium as gym
import numpy as np
import tree
from av.video.reformatter import VideoReformatter

from actors.environments import Act, columns, make_env, put, rows, to_env
from actors.pictures import decoded, make_lean, picture, scaled, try_gl
from expert_oracle.feedback import Footage
from expert_oracle.lookahead import pose_for
from tutelage.disk import is_full
from tutelage.errors import ConfigError, Killed, NoRoom, TutelageError
from tutelage.types import Array, EnvRecipe, Tree

CODECS: dict[str, tuple[str, dict[str, str]]] = {
    ".mp4": ("libx264", {"preset": "veryfast", "crf": "23", "movflags": "+faststart"}),
    ".webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "33", "b": "0"}),
}
GL_LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}
LONGEST_S = 300.0  # for one clip
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Film:
    """What became of footage. Made by: Filmer. Eaten by: the labeler's clips."""

    frames: int
    fps: float
    width: int
    height: int


def record(
    act: Act, recipe: EnvRecipe, seed: int, path: str | Path, *, size: int = 256, max_steps: int = 1000
) -> None:
    """Play one episode with `act` and write it to `path`, a .mp4 (H.264) or .webm (VP9) file.

    `size` is the longer side of the pictures in pixels. Raises TutelageError where nothing can be rendered.
    """
    render(recipe, seed, episode(act, recipe, seed, max_steps), path, size=size)


@dataclass(frozen=True)
class Played:
    """One episode. Made by: played. Eaten by: videos, the report about a reward."""

    obs: Tree  # [L, ...] before each action
    actions: Array  # [L, ...]
    rewards: Array  # [L]


def played(act: Act, recipe: EnvRecipe, seed: int, max_steps: int = 1000) -> Played:
    """Play one episode."""
    env = make_env(recipe)
    obs = columns(env.observation_space, max_steps + 1)
    put(obs, 0, env.reset(seed=seed)[0])
    actions, rewards = list[Array](), list[float]()
    for t in range(max_steps):
        actions.append(act(rows(obs, slice(t, t + 1)))[0])
        observation, reward, terminated, truncated, _ = env.step(to_env(env.action_space, actions[-1]))
        rewards.append(float(reward))
        put(obs, t + 1, observation)
        if terminated or truncated:
            break
    env.close()
    return Played(rows(obs, slice(len(actions))), np.array(actions), np.array(rewards))


def episode(act: Act, recipe: EnvRecipe, seed: int, max_steps: int) -> Array:
    """The actions [L, ...] of one episode."""
    return played(act, recipe, seed, max_steps).actions


def render(
    recipe: EnvRecipe, seed: int, actions: Array, path: str | Path, *, start: int = 0, size: int = 256
) -> None:
    """Write the video of an episode from step `start` on, given its actions [L, ...]."""
    with Filmer() as filmer:
        filmer.film(Footage(recipe, seed, np.asarray(actions), start), path, size=size)


class Filmer:
    """A process that films, one clip after the other; another takes its place where it died.

    Used by one thread at a time.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._closing = threading.Lock()
        self._closed = False

    def __enter__(self) -> Filmer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def film(self, footage: Footage, path: str | Path, *, size: int = 256) -> Film:
        """Write the video to `path`, which appears when it is whole.

        Raises ConfigError for a suffix that is none, NoRoom on a full disk, Killed where its process was,
        TutelageError where the footage cannot be filmed.
        """
        path = Path(path)
        if path.suffix not in CODECS:
            raise ConfigError(f"{path}: videos end in {' or '.join(CODECS)}, got {path.suffix!r}")
        job = pickle.dumps((footage, str(path.resolve()), size))
        said, died = dict[str, Any](), False
        while not said:
            try:
                said = self._ask(job)
            except OSError as error:  # the process died, of this clip or by chance
                if self._closed or died:
                    kind = Killed if isinstance(error, ChildProcessError) else TutelageError
                    raise kind(f"cannot render {footage.recipe.id}: {error}") from None
                died = True
        if "error" in said:
            kind = NoRoom if said["full"] else TutelageError
            raise kind(f"cannot render {footage.recipe.id}: {said['error']}")
        return Film(**said)

    def close(self) -> None:
        """May be called by another thread: what is being filmed then fails."""
        with self._closing:
            self._closed = True
            self._end()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def _ask(self, job: bytes) -> dict[str, Any]:
        """What the process answers. Raises OSError, saying why, where it did not live to."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(LENGTH.pack(len(job)) + job)
            process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                if not selector.select(LONGEST_S):
                    raise OSError(f"it took longer than {LONGEST_S:g} s")
            line = process.stdout.readline()
            if not line.endswith(b"\n"):
                raise self._last_words()
        except (OSError, ValueError) as error:  # ValueError: closed by another thread
            self._end()
            raise error if isinstance(error, OSError) else OSError("no longer wanted") from None
        return json.loads(line)

    def _started(self) -> subprocess.Popen[bytes]:
        with self._closing:
            if self._closed:
                raise OSError("no longer wanted")
            if self._process is None:
                self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed in _end
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "actors.clips"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    env=headless(),
                    start_new_session=True,  # Ctrl-C is for us
                )
            return self._process

    def _last_words(self) -> OSError:
        """Why the process ended; ChildProcessError: by a signal."""
        assert self._process is not None
        assert self._errors is not None
        status = self._process.wait()
        if status < 0:  # what it said last has nothing to do with it
            return ChildProcessError(f"the rendering process was killed by {signal.Signals(-status).name}")
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return OSError(lines[-1] if lines else f"the rendering process ended with {status}")

    def _end(self) -> None:
        process, errors = self._process, self._errors
        self._process = self._errors = None
        if process is None or errors is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, errors):
            with contextlib.suppress(OSError):  # what was not written yet
                stream.close()  # type: ignore[union-attr]


def headless() -> dict[str, str]:
    """The environment of a process that renders without a screen."""
    chosen = {
        "SDL_VIDEODRIVER": "dummy",
        "SDL_AUDIODRIVER": "dummy",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path])),
    }
    if backend := gl_backend():
        chosen |= {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    return {**os.environ, **chosen}


def gl_backend() -> str | None:
    """What MuJoCo can render with here: $MUJOCO_GL, else "egl" or "osmesa" if its library is there."""
    if given := os.environ.get("MUJOCO_GL"):
        return given
    return next((name for name, library in GL_LIBRARIES.items() if loadable(library)), None)


def loadable(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


# In the rendering process


def main() -> None:
    """Film the jobs that come on the standard input, until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    studio = Studio()
    while header := sys.stdin.buffer.read(LENGTH.size):
        footage, path, size = pickle.loads(sys.stdin.buffer.read(*LENGTH.unpack(header)))
        try:
            film = studio.film(footage, Path(path), size)
            said: dict[str, Any] = vars(film)
        except TutelageError as error:
            said = {"error": str(error), "full": False}
        except Exception as error:  # of the environment, by what is wrong with it
            said = {"error": f"{type(error).__name__}: {error}", "full": is_full(error)}
        print(json.dumps(said), file=answers, flush=True)


class NotReplayedError(TutelageError):
    """An episode went another way than it did when it was recorded."""


class Studio:
    """One environment, as long as it is the one that is wanted."""

    def __init__(self) -> None:
        self._env: gym.Env | None = None
        self._made: tuple[EnvRecipe, int] | None = None

    def film(self, footage: Footage, path: Path, size: int) -> Film:
        warm = self._env is not None and self._made == (footage.recipe, size)
        try:
            return self._film(footage, path, size)
        except NotReplayedError:
            if not warm:
                raise
        self._close()  # there are environments that remember the episode before
        return self._film(footage, path, size)

    def _film(self, footage: Footage, path: Path, size: int) -> Film:
        env = self._environment(footage.recipe, size)
        fps = Fraction(env.metadata.get("render_fps") or 30).limit_denominator(1000)
        return write(_pictures(env, footage), path, fps=fps, size=size)

    def _close(self) -> None:
        if self._env is not None:
            self._env.close()
        self._env = self._made = None

    def _environment(self, recipe: EnvRecipe, size: int) -> gym.Env:
        if self._env is not None and self._made == (recipe, size):
            return self._env
        self._close()
        env = make_env(recipe, render_mode="rgb_array")
        if hasattr(env.unwrapped, "mujoco_renderer"):
            make_lean(env.unwrapped, size)
            try_gl(env)
        self._env, self._made = env, (recipe, size)
        return env


def _pictures(env: gym.Env, footage: Footage) -> Iterator[Array]:
    """The pictures [height, width, 3] of footage."""
    if footage.frames is not None:
        kept = (decoded(one) if isinstance(one, bytes) else one for one in footage.frames)
        return _held(kept, footage.held)
    if footage.posed:
        return iter([_posed(env, footage.obs)])
    return _held(frames(env, footage.seed, footage.actions, footage.start, footage.obs), footage.held)


def _held(pictures: Iterator[Array], more: int) -> Iterator[Array]:
    """Pictures, and the last one so often again."""
    last = None
    for last in pictures:
        yield last
    if last is not None:
        yield from itertools.repeat(last, more)


def _posed(env: gym.Env, obs: Tree) -> Array:
    """The environment in an observed state [1, D]."""
    env.reset(seed=0)
    pose_for(env)(env.unwrapped, np.asarray(rows(obs, 0)))
    return picture(env)


def frames(
    env: gym.Env, seed: int, actions: Array, start: int, recorded: Tree | None = None
) -> Iterator[Array]:
    """Pictures [height, width, 3] of an episode: before each of its actions from `start` on, and the last.

    Raises NotReplayedError where the episode goes another way than it did: it ends sooner, or is not
    `recorded` [T - start, ...], what was observed from `start` on.
    """
    seen = columns(env.observation_space, 1)
    put(seen, 0, env.reset(seed=seed)[0])
    for t, action in enumerate(to_env(env.action_space, actions)):
        if t >= start:
            _check_replayed(seen, recorded, t - start, t)
            yield picture(env)
        observation, _, terminated, truncated, _ = env.step(action)
        put(seen, 0, observation)
        if (terminated or truncated) and t < len(actions) - 1:
            raise NotReplayedError(
                f"the episode is not replayed: it ends after {t + 1} of {len(actions)} steps"
            )
    _check_replayed(seen, recorded, len(actions) - start, len(actions))
    yield picture(env)


def _check_replayed(seen: Tree, recorded: Tree | None, row: int, step: int) -> None:
    """What is seen now [1, ...] has to be row `row` of what was, where there is one."""
    if recorded is None or row >= len(tree.flatten(recorded)[0]):
        return
    same = tree.map_structure(
        lambda a, b: np.array_equal(a[0], b[row], equal_nan=a.dtype.kind == "f"), seen, recorded
    )
    if not all(tree.flatten(same)):
        raise NotReplayedError(
            f"the episode is not replayed: its observation at step {step} is another than was recorded; "
            "such episodes need the pictures that were kept when they were played"
        )


def write(pictures: Iterator[Array], path: Path, *, fps: Fraction, size: int) -> Film:
    """Encode pictures, scaled to `size` pixels on the longer side; the file appears when it is whole."""
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        film = _encode(pictures, unfinished, CODECS[path.suffix], fps, size)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return film


def _encode(
    pictures: Iterator[Array], path: Path, codec: tuple[str, dict[str, str]], fps: Fraction, size: int
) -> Film:
    height = width = count = 0
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec[0], rate=fps, options=codec[1])
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        reformatter = VideoReformatter()  # one of its own for each picture would cost as much as the encoder
        for frame in pictures:
            if count == 0:
                height, width = stream.height, stream.width = scaled(*frame.shape[:2], size)  # type: ignore[call-arg]
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(reformatter.reformat(image, width, height, "yuv420p")))
            count += 1
        container.mux(stream.encode())
    return Film(count, float(fps), width, height)


if __name__ == "__main__":
    main()
