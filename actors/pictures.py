"""Pictures of an environment, without a GPU or a screen; small JPEGs where they are kept as it is played.

    env = Drawn(make_env(recipe, render_mode="rgb_array"))
    env.reset(seed=0)
    env.jpeg  # what is to be seen now

MuJoCo draws by the OpenGL that `MUJOCO_GL` names when it is imported.
"""

from __future__ import annotations

import io
import os
from typing import Any

import gymnasium as gym
import numpy as np

from tutelage.errors import TutelageError
from tutelage.types import Array

SIZE, QUALITY = 256, 85  # of JPEGs: pixels of the longer side, as clips have, and how true they are
JPEG = "tutelage_jpeg"  # in the info of a `Drawn`


class Drawn(gym.Wrapper):
    """An environment, made to draw arrays, of whose every state there is a JPEG: for episodes that cannot be
    played again."""

    jpeg: bytes  # of now

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        if hasattr(env.unwrapped, "mujoco_renderer"):
            make_lean(env.unwrapped, SIZE)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, self._seen(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Any]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, self._seen(info)

    def _seen(self, info: dict[str, Any]) -> dict[str, Any]:
        self.jpeg = encoded(picture(self.env))
        return {**info, JPEG: self.jpeg}


def encoded(picture: Array) -> bytes:
    """A JPEG of a picture [height, width, 3], shrunk to the size of clips."""
    from PIL import Image  # where nothing is drawn it is not needed

    height, width = picture.shape[:2]
    image = Image.fromarray(np.ascontiguousarray(picture))
    if max(height, width) > SIZE:
        height, width = scaled(height, width, SIZE)
        image = image.resize((width, height), Image.Resampling.BOX)
    image.save(data := io.BytesIO(), "JPEG", quality=QUALITY)
    return data.getvalue()


def decoded(jpeg: bytes) -> Array:
    """The picture [height, width, 3] uint8. Raises OSError where it is none."""
    from PIL import Image

    with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
        return np.asarray(image.convert("RGB"))


def picture(env: gym.Env) -> Array:
    frame = np.asarray(env.render())
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise TutelageError("it draws no pictures [height, width, 3] with render_mode='rgb_array'")
    if not frame.any() and hasattr(env.unwrapped, "mujoco_renderer"):
        raise TutelageError("the picture is all black: MuJoCo's OpenGL context was lost")
    return frame


def scaled(height: int, width: int, size: int) -> tuple[int, int]:
    """The picture's height and width with the longer side `size`; even, as codecs want them."""
    factor = size / max(height, width)
    height, width = (max(2, round(side * factor / 2) * 2) for side in (height, width))
    return height, width


def make_lean(env: Any, size: int) -> None:
    """Render small pictures without shadows and multisampling, which on a CPU cost ten times the rest.

    Reflections stay: they show what touches the ground.
    """
    env.model.light_castshadow[:] = 0
    env.model.vis.quality.offsamples = 0
    env.model.vis.global_.offwidth = env.model.vis.global_.offheight = size
    env.mujoco_renderer.width = env.mujoco_renderer.height = size


def try_gl(env: gym.Env) -> None:
    """Raise TutelageError, naming what to install, unless MuJoCo can draw."""
    install = "install the package libosmesa6, or libegl1 and libgl1-mesa-dri"
    backend = os.environ.get("MUJOCO_GL")
    if backend is None:
        raise TutelageError(f"there is no OpenGL that draws without a screen; {install}")
    env.reset()
    try:
        env.render()
    except Exception as error:  # of PyOpenGL, MuJoCo or ctypes, by what is missing
        raise TutelageError(f"MuJoCo cannot draw with MUJOCO_GL={backend} ({error}); {install}") from None
