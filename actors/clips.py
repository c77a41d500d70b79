"""Clips: an episode as a video, rendered without a GPU or a screen in a process of its own.

The episode is played here and only its recipe, seed and actions go to the rendering process, which plays
it again: an OpenGL backend has to be chosen before MuJoCo is imported, and two MuJoCo viewers in one
process turn each other's pictures black.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import gymnasium as gym
import numpy as np

from actors.environments import Act, columns, make_env, put, to_env
from tutelage.errors import ConfigError, TutelageError
from tutelage.types import Array, EnvRecipe

CODECS: dict[str, tuple[str, dict[str, str]]] = {
    ".mp4": ("libx264", {"preset": "veryfast", "crf": "23", "movflags": "+faststart"}),
    ".webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "33", "b": "0"}),
}
GL_LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}


def record(
    act: Act, recipe: EnvRecipe, seed: int, path: str | Path, *, size: int = 256, max_steps: int = 1000
) -> None:
    """Play one episode with `act` and write it to `path`, a .mp4 (H.264) or .webm (VP9) file.

    `size` is the longer side of the pictures in pixels. Raises TutelageError where nothing can be rendered.
    """
    render(recipe, seed, episode(act, recipe, seed, max_steps), path, size=size)


def episode(act: Act, recipe: EnvRecipe, seed: int, max_steps: int) -> Array:
    """The actions [L, ...] of one episode."""
    env = make_env(recipe)
    obs = columns(env.observation_space, 1)
    put(obs, 0, env.reset(seed=seed)[0])
    actions = []
    for _ in range(max_steps):
        actions.append(act(obs)[0])
        observation, _, terminated, truncated, _ = env.step(to_env(env.action_space, actions[-1]))
        put(obs, 0, observation)
        if terminated or truncated:
            break
    env.close()
    return np.array(actions)


def render(
    recipe: EnvRecipe, seed: int, actions: Array, path: str | Path, *, start: int = 0, size: int = 256
) -> None:
    """Write the video of an episode from step `start` on, given its actions [L, ...]."""
    path = Path(path)
    if path.suffix not in CODECS:
        raise ConfigError(f"{path}: videos end in {' or '.join(CODECS)}, got {path.suffix!r}")
    job = pickle.dumps((recipe, seed, np.asarray(actions), str(path.resolve()), start, size))
    done = subprocess.run(
        [sys.executable, "-m", "actors.clips"], input=job, env=headless(), capture_output=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise TutelageError(f"cannot render {recipe.id}: {lines[-1]}")


def headless() -> dict[str, str]:
    """The environment of a process that renders without a screen."""
    chosen = {
        "SDL_VIDEODRIVER": "dummy",
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
    """Render the job that is pickled on the standard input."""
    recipe, seed, actions, path, start, size = pickle.load(sys.stdin.buffer)
    env = make_env(recipe, render_mode="rgb_array")
    if hasattr(env.unwrapped, "mujoco_renderer"):
        make_lean(env.unwrapped, size)
        try_gl(env)
    fps = Fraction(env.metadata.get("render_fps") or 30).limit_denominator(1000)
    write(frames(env, seed, actions, start), Path(path), fps=fps, size=size)
    env.close()


def make_lean(env: Any, size: int) -> None:
    """Render small pictures without shadows and multisampling, which on a CPU cost ten times the rest."""
    env.model.light_castshadow[:] = 0
    env.model.vis.quality.offsamples = 0
    env.model.vis.global_.offwidth = env.model.vis.global_.offheight = size
    env.mujoco_renderer.width = env.mujoco_renderer.height = size


def try_gl(env: gym.Env) -> None:
    """Exit, naming what to install, unless MuJoCo can draw."""
    install = "install the package libosmesa6, or libegl1 and libgl1-mesa-dri"
    backend = os.environ.get("MUJOCO_GL")
    if backend is None:
        raise SystemExit(f"there is no OpenGL that draws without a screen; {install}")
    env.reset()
    try:
        env.render()
    except Exception as error:  # of PyOpenGL, MuJoCo or ctypes, by what is missing
        raise SystemExit(f"MuJoCo cannot draw with MUJOCO_GL={backend} ({error}); {install}") from None


def frames(env: gym.Env, seed: int, actions: Array, start: int) -> Iterator[Array]:
    """Pictures [height, width, 3] of an episode: before each of its actions from `start` on, and the last."""
    env.reset(seed=seed)
    for t, action in enumerate(to_env(env.action_space, actions)):
        if t >= start:
            yield picture(env)
        _, _, terminated, truncated, _ = env.step(action)
        if (terminated or truncated) and t < len(actions) - 1:
            raise SystemExit(f"the episode is not replayed: it ends after {t + 1} of {len(actions)} steps")
    yield picture(env)


def picture(env: gym.Env) -> Array:
    frame = np.asarray(env.render())
    if not frame.any():
        raise SystemExit("the picture is all black: MuJoCo's OpenGL context was lost")
    return frame


def write(pictures: Iterator[Array], path: Path, *, fps: Fraction, size: int) -> None:
    """Encode pictures, scaled to `size` pixels on the longer side; the file appears when it is whole."""
    codec, options = CODECS[path.suffix]
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(unfinished), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for n, frame in enumerate(pictures):
            if n == 0:
                stream.height, stream.width = scaled(*frame.shape[:2], size)  # type: ignore[call-arg]
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(
                stream.encode(image.reformat(width=stream.width, height=stream.height, format="yuv420p"))
            )
        container.mux(stream.encode())
    unfinished.replace(path)


def scaled(height: int, width: int, size: int) -> tuple[int, int]:
    """The picture's height and width with the longer side `size`; even, as codecs want them."""
    factor = size / max(height, width)
    height, width = (max(2, round(side * factor / 2) * 2) for side in (height, width))
    return height, width


if __name__ == "__main__":
    try:
        main()
    except TutelageError as error:
        raise SystemExit(str(error)) from None
