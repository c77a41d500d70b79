"""Models that Stable-Baselines3 wrote act as they do there."""

import copy
import json
import pickle
import zipfile

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from expert_oracle.loading import OracleSpec, checked
from expert_oracle.sb3 import load_sb3
from tutelage.errors import ConfigError, OracleError


class Anything(gymnasium.Env):
    """An environment of given spaces."""

    def __init__(self, action_space, observation_space=None):
        self.action_space = action_space
        self.observation_space = observation_space or spaces.Box(-3, 3, (5,), np.float32)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


CROOKED = spaces.Box(np.array([-1.0, -0.12345679, -7], np.float32), np.array([0.5, 30, -2], np.float32))
RELU = {"policy_kwargs": {"activation_fn": torch.nn.ReLU, "net_arch": [16, 8]}}
SMALL = {"policy_kwargs": {"net_arch": [16, 16]}}


def saved(tmp_path, algorithm, action_space, observation_space=None, policy="MlpPolicy", **kwargs):
    """A model with weights that say something, and its file."""
    env = Anything(action_space, observation_space)
    model = algorithm(policy, env, device="cpu", seed=0, **copy.deepcopy(kwargs))  # they write into theirs
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            if "log_std" not in name:
                parameter += 0.3 * torch.randn_like(parameter)
    model.save(tmp_path / "model.zip")
    return model, str(tmp_path / "model.zip")


@pytest.mark.parametrize(
    ("algorithm", "space", "kwargs"),
    [
        (PPO, CROOKED, {}),
        (PPO, CROOKED, RELU),
        (PPO, CROOKED, {"policy_kwargs": {"net_arch": []}}),
        (PPO, CROOKED, {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
        (PPO, spaces.Discrete(4), {}),
        (PPO, spaces.MultiDiscrete([2, 3, 4]), {}),
        (PPO, spaces.MultiBinary(3), {}),
        (A2C, spaces.Discrete(3), {}),
        (A2C, spaces.Box(-2, 2, (2,)), {}),
        (SAC, CROOKED, SMALL),
        (TD3, CROOKED, SMALL),
        (DDPG, CROOKED, SMALL),
        (DQN, spaces.Discrete(6), {}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_actions_are_those_of_the_library(tmp_path, algorithm, space, kwargs):
    model, path = saved(tmp_path, algorithm, space, **kwargs)
    obs = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    expert = checked(OracleSpec(f"sb3:{path}").build(), model.observation_space, space, f"sb3:{path}")
    expected, _ = model.predict(obs, deterministic=True)
    assert len(np.unique(expected)) > 1
    np.testing.assert_allclose(expert.act(obs), expected, rtol=1e-5, atol=1e-5)


def test_a_trained_model_plays(tmp_path):
    """Also after training, from a vectorised environment, at the return that the library measures."""
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=512, seed=0, device="cpu").learn(2048)
    model.save(tmp_path / "model.zip")
    expert = OracleSpec(f"sb3:{tmp_path / 'model.zip'}").build()
    env = gymnasium.make("CartPole-v1")
    for seed in range(3):
        obs, _ = env.reset(seed=seed)
        ended = False
        while not ended:
            action = int(expert.act(obs[None])[0])
            assert action == model.predict(obs, deterministic=True)[0]
            obs, _, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated


@pytest.fixture
def normalised(tmp_path):
    """A model behind VecNormalize, which has seen something, and both files."""
    venv = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]), clip_obs=1.5)
    model = PPO("MlpPolicy", venv, n_steps=64, device="cpu", seed=0).learn(128)
    model.save(tmp_path / "model.zip")
    venv.save(tmp_path / "statistics.pkl")
    return model, venv, tmp_path


def test_statistics_of_vec_normalize_are_read_without_running_them(normalised, monkeypatch):
    model, venv, folder = normalised
    obs = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    expected, _ = model.predict(venv.normalize_obs(obs), deterministic=True)
    rms = venv.obs_rms
    np.savez(folder / "statistics.npz", mean=rms.mean, var=rms.var, clip_obs=1.5)
    monkeypatch.setattr(pickle, "load", None)
    for file in ("statistics.pkl", "statistics.npz"):
        expert = OracleSpec(f"sb3:{folder / 'model.zip'}", {"normalize": str(folder / file)}).build()
        np.testing.assert_allclose(expert.act(obs), expected, atol=1e-5)


def test_what_the_file_says_can_be_overridden(tmp_path):
    _, path = saved(tmp_path, PPO, CROOKED)
    expert = load_sb3(path, activation="relu", squash=True)
    assert (expert.policy.activation, expert.scale) == ("relu", "tanh")


def test_pickles_in_the_file_stay_closed(tmp_path):
    """The model's class and spaces are pickled beside the plain values; here they would fail."""
    _, path = saved(tmp_path, PPO, CROOKED)
    rewritten(
        path,
        lambda data: [value.update({":serialized:": "!"}) for value in data.values() if "Box" in str(value)],
    )
    OracleSpec(f"sb3:{path}").build()


def rewritten(path, change):
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(files["data"])
    change(data)
    files["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


IMAGES = spaces.Box(0, 255, (36, 36, 3), np.uint8)
ELU = {"policy_kwargs": {"activation_fn": torch.nn.ELU}}


@pytest.mark.parametrize(
    ("algorithm", "arguments", "line"),
    [
        (
            PPO,
            {"observation_space": IMAGES, "policy": "CnnPolicy"},
            "only MLP policies can be read, it has .*extr",
        ),
        (PPO, {"observation_space": spaces.Discrete(4)}, "observations of a Discrete space"),
        (PPO, ELU, "its activation 'elu' is not one of tanh, relu"),
        (SAC, {"use_sde": True, **SMALL}, "use_sde=True, which is not known for SAC"),
        (
            PPO,
            {"observation_space": spaces.Dict({"a": CROOKED}), "policy": "MultiInputPolicy"},
            "observations of a Dict space",
        ),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, algorithm, arguments, line):
    _, path = saved(tmp_path, algorithm, CROOKED, **arguments)
    with pytest.raises(OracleError, match=line) as info:
        OracleSpec(f"sb3:{path}").build()
    assert "\n" not in str(info.value)
    assert path in str(info.value)


def test_wrong_files_are_said_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file: .*gone\.zip"):
        OracleSpec(f"sb3:{tmp_path / 'gone.zip'}").build()
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(OracleError, match=r"text.zip is no model of Stable-Baselines3: BadZipFile"):
        OracleSpec(f"sb3:{tmp_path / 'text.zip'}").build()
    _, path = saved(tmp_path, PPO, CROOKED)
    rewritten(path, lambda data: data.pop("action_space"))
    with pytest.raises(OracleError, match=r"no whole policy of Stable-Baselines3: it has no 'action_space'"):
        OracleSpec(f"sb3:{path}").build()


def test_wrong_statistics_are_said_in_one_line(tmp_path):
    _, path = saved(tmp_path, PPO, CROOKED)
    np.savez(tmp_path / "few.npz", mean=np.zeros(4), var=np.ones(4))
    np.savez(tmp_path / "half.npz", mean=np.zeros(5))
    for file, line in (
        ("few.npz", r"observations of \(4,\) are normalised, its first layer takes 5"),
        ("half.npz", "normalize: .*half.npz has no 'var'"),
        ("model.zip", "is no readable pickle"),
    ):
        with pytest.raises(OracleError, match=line):
            OracleSpec(f"sb3:{path}", {"normalize": str(tmp_path / file)}).build()
    with pytest.raises(
        ConfigError, match=r"unexpected keyword argument 'normalise'; did you mean 'normalize'\?"
    ):
        OracleSpec(f"sb3:{path}", {"normalise": "x"}).build()
