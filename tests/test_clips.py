"""Videos of episodes. Those of MuJoCo need an OpenGL that draws without a screen."""

from fractions import Fraction

import av
import numpy as np
import pytest

from actors.clips import episode, record, render
from actors.environments import make_env
from actors.evaluation import play
from actors.forward import random_actor
from actors.pictures import scaled
from tutelage.errors import ConfigError, TutelageError
from tutelage.types import EnvRecipe

CARTPOLE = EnvRecipe("CartPole-v1")


def decoded(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        kind = (stream.codec_context.name, stream.average_rate)  # gone with the container
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], kind


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "h264"), (".webm", "vp9")])
def test_a_clip_shows_the_whole_episode(tmp_path, suffix, codec):
    act = random_actor(make_env(CARTPOLE).action_space, 0)
    path = tmp_path / "clips" / f"cartpole{suffix}"
    record(act, CARTPOLE, 3, path, size=200)
    pictures, kind = decoded(path)
    env = make_env(CARTPOLE)
    _, (length,) = play(random_actor(env.action_space, 0), [env], [3])
    assert len(pictures) == length + 1
    assert pictures[0].shape == (134, 200, 3)
    assert kind == (codec, Fraction(50))
    assert np.std(pictures[0]) > 5
    assert np.abs(pictures[0].astype(int) - pictures[-1]).max() > 50
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_mujoco_is_drawn_without_a_screen(tmp_path, offscreen_gl):
    recipe = EnvRecipe("Hopper-v5")
    act = random_actor(make_env(recipe).action_space, 0)
    record(act, recipe, 1, tmp_path / "hopper.mp4", size=128, max_steps=10)
    pictures, _ = decoded(tmp_path / "hopper.mp4")
    assert len(pictures) == 11
    assert pictures[0].shape == (128, 128, 3)
    assert all(np.std(picture) > 10 for picture in pictures)
    assert np.abs(pictures[0].astype(int) - pictures[-1]).max() > 50


def test_a_clip_can_begin_late(tmp_path):
    actions = episode(lambda obs: (obs[:, 2] > 0).astype(np.int64), CARTPOLE, 0, 20)
    render(CARTPOLE, 0, actions, tmp_path / "end.mp4", start=len(actions) - 5)
    assert len(decoded(tmp_path / "end.mp4")[0]) == 6


def test_an_episode_that_does_not_repeat_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(TutelageError, match=r"not replayed: it ends after \d+ of 200 steps"):
        render(CARTPOLE, 0, np.ones(200, np.int64), tmp_path / "long.mp4")
    assert not (tmp_path / "long.mp4").exists()


def test_without_a_gl_library_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("actors.clips.GL_LIBRARIES", {"egl": "libnothing.so", "osmesa": "libnothing.so"})
    with pytest.raises(TutelageError, match="libosmesa6"):
        render(EnvRecipe("Hopper-v5"), 0, np.zeros((2, 3)), tmp_path / "hopper.mp4")


def test_a_gl_that_cannot_draw_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(TutelageError, match=r"MUJOCO_GL=glfw.*libosmesa6"):
        render(EnvRecipe("Hopper-v5"), 0, np.zeros((2, 3)), tmp_path / "hopper.mp4")


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"\.mp4 or \.webm, got '\.gif'"):
        render(CARTPOLE, 0, np.ones(2, np.int64), tmp_path / "clip.gif")


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [(400, 600, 256, (170, 256)), (480, 480, 256, (256, 256)), (210, 160, 101, (100, 76))],
)
def test_pictures_are_scaled_to_even_sides(height, width, size, expected):
    assert scaled(height, width, size) == expected
