"""What a person did is stored once and whole, whatever breaks off the episode."""

import shutil
from typing import Any, cast

import pytest

from expert_oracle.checkpoint import SHIPPED
from learner.demonstrations import load_demonstrations
from services.labeler.acting import Driving
from services.labeler.scene import Line
from services.run_directory import RunDirectory
from tutelage.errors import ConfigError


class Script(Line):
    """A line over which somebody takes over at once and pushes right, for some steps, and then says more."""

    def __init__(self, steps, *then):
        self._steps, self._then = steps, then

    def show(self, jpeg):
        assert jpeg

    def tell(self, **news):
        assert news["state"]

    def ticks(self, period_s, goes_on, hear):
        hear({"take_over": True})
        hear({"action": 1})
        for _ in range(self._steps):
            assert goes_on()
            yield
        for said in self._then:
            hear(said)


@pytest.fixture
def told(tmp_path):
    """What `Driving` is told about a run with a checkpoint."""
    with RunDirectory.create(tmp_path / "run", {"environment": {"env": "CartPole-v1"}}) as run:
        with run.new_checkpoint(1) as folder:
            shutil.copy(SHIPPED / "cartpole.safetensors", folder / "policy.safetensors")
        yield {"run": str(run.path), "folder": str(tmp_path / "corrections"), "annotator": "anna"}


def test_a_step_that_fails_is_none(told, tmp_path):
    driving = Driving(cast(Any, Script(4)), told)
    step, made = driving._scene.act, []

    def act(action):
        if len(made) == 3:
            raise OSError("the simulator has gone")
        made.append(action)
        return step(action)

    driving._scene.act = act
    with pytest.raises(OSError, match="has gone"):
        driving.run()
    assert load_demonstrations(tmp_path / "corrections").actions.tolist() == [1, 1, 1]


def test_an_episode_is_stored_once_though_the_next_cannot_begin(told, tmp_path):
    driving = Driving(cast(Any, Script(3, {"restart": True})), told)
    begin = driving._begin

    def once():
        begin()
        shutil.rmtree(tmp_path / "run" / "checkpoints")

    driving._begin = once
    with pytest.raises(ConfigError, match="no checkpoint"):
        driving.run()
    assert len(list((tmp_path / "corrections").iterdir())) == 1
