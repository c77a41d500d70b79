"""Modules that RLlib wrote act as they do there; RLlib is not imported for it."""

import shutil
import subprocess
import sys

import msgpack
import msgpack_numpy
import numpy as np
import pytest
import torch
from gymnasium import spaces
from ray.rllib.algorithms.dqn.dqn_catalog import DQNCatalog
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.algorithms.sac.sac_catalog import SACCatalog
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.utils.spaces.space_utils import unsquash_action

from expert_oracle.loading import OracleSpec
from expert_oracle.pickled import read_pickle
from tutelage.errors import ConfigError, OracleError

OBS = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
BOX = spaces.Box(np.array([-1, -2, 3], np.float32), np.array([1, 5, 4], np.float32))


def module(cls, action_space, catalog=None, config=None):
    """A module with weights that say something."""
    made = cls(
        observation_space=spaces.Box(-5, 5, (5,)),
        action_space=action_space,
        inference_only=False,
        model_config=config,
        **({"catalog_class": catalog} if catalog else {}),
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return made


def stretched(means, space=BOX):
    return np.clip(space.low + (means + 1) * (space.high - space.low) / 2, space.low, space.high)


def parameters(made):
    return made.forward_inference({"obs": torch.as_tensor(OBS)})["action_dist_inputs"].detach().numpy()


@pytest.mark.parametrize(
    "config",
    [
        DefaultModelConfig(fcnet_hiddens=[16, 8]),
        DefaultModelConfig(fcnet_hiddens=[8], fcnet_activation="relu", vf_share_layers=False),
        DefaultModelConfig(
            fcnet_hiddens=[8], head_fcnet_hiddens=[8], fcnet_activation="relu", head_fcnet_activation="relu"
        ),
        DefaultModelConfig(free_log_std=True),
        {"fcnet_hiddens": [16], "fcnet_activation": "relu"},
    ],
    ids=["shared", "separate", "head", "free_log_std", "dict"],
)
def test_ppo_of_a_box(tmp_path, config):
    made = module(DefaultPPOTorchRLModule, BOX, config=config)
    made.save_to_path(tmp_path / "module")
    means = parameters(made)[:, :3]
    expert = OracleSpec(f"rllib:{tmp_path / 'module'}").build()
    np.testing.assert_allclose(expert.act(OBS), stretched(means), atol=1e-5)
    raw = OracleSpec(f"rllib:{tmp_path / 'module'}", {"normalize_actions": False}).build()
    np.testing.assert_allclose(raw.act(OBS), np.clip(means, BOX.low, BOX.high), atol=1e-5)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (3,)),
        spaces.Box(np.array([-1, -np.inf, 3], np.float32), np.array([1, 5, np.inf], np.float32)),
    ],
    ids=["open", "partly"],
)
def test_actions_of_an_open_box_stay_as_they_are(tmp_path, space):
    made = module(DefaultPPOTorchRLModule, space, config=DefaultModelConfig())
    made.save_to_path(tmp_path / "module")
    actions = OracleSpec(f"rllib:{tmp_path / 'module'}").build().act(OBS)
    expected = np.asarray(unsquash_action(parameters(made)[:, :3], space))
    np.testing.assert_allclose(actions, np.clip(expected, space.low, space.high), atol=1e-5)


def test_ppo_of_integers(tmp_path):
    for name, space in (("discrete", spaces.Discrete(4)), ("multi", spaces.MultiDiscrete([3, 2]))):
        made = module(DefaultPPOTorchRLModule, space, config=DefaultModelConfig())
        made.save_to_path(tmp_path / name)
        actions = OracleSpec(f"rllib:{tmp_path / name}").build().act(OBS)
        logits = parameters(made)
        parts = [logits] if name == "discrete" else [logits[:, :3], logits[:, 3:]]
        expected = np.stack([part.argmax(1) for part in parts], axis=1).reshape(actions.shape)
        np.testing.assert_array_equal(actions, expected)


def test_sac_and_dqn(tmp_path):
    sac = module(DefaultSACTorchRLModule, BOX, SACCatalog, {"twin_q": True})
    sac.save_to_path(tmp_path / "sac")
    expert = OracleSpec(f"rllib:{tmp_path / 'sac'}").build()
    np.testing.assert_allclose(expert.act(OBS), stretched(np.tanh(parameters(sac)[:, :3])), atol=1e-5)

    config = {"double_q": True, "dueling": True, "num_atoms": 1, "std_init": 0.5, "epsilon": [(0, 1.0)]}
    dqn = module(DefaultDQNTorchRLModule, spaces.Discrete(4), DQNCatalog, config)
    dqn.save_to_path(tmp_path / "dqn")
    expected = dqn.forward_inference({"obs": torch.as_tensor(OBS)})["actions"].numpy()
    np.testing.assert_array_equal(OracleSpec(f"rllib:{tmp_path / 'dqn'}").build().act(OBS), expected)


def test_state_in_msgpack(tmp_path):
    made = module(DefaultPPOTorchRLModule, BOX, config=DefaultModelConfig())
    made.save_to_path(tmp_path / "module")
    state = {name: tensor.detach().numpy() for name, tensor in made.state_dict().items()}
    expected = OracleSpec(f"rllib:{tmp_path / 'module'}").build().act(OBS)
    (tmp_path / "module" / "module_state.pkl").unlink()
    (tmp_path / "module" / "module_state.msgpack").write_bytes(
        msgpack.packb(state, default=msgpack_numpy.encode)
    )
    np.testing.assert_array_equal(OracleSpec(f"rllib:{tmp_path / 'module'}").build().act(OBS), expected)


def test_rllib_is_not_imported(tmp_path):
    module(DefaultPPOTorchRLModule, BOX, config=DefaultModelConfig()).save_to_path(tmp_path / "module")
    code = (
        "import sys; from expert_oracle.loading import OracleSpec; "
        f"OracleSpec('rllib:{tmp_path / 'module'}').build(); print({{'ray', 'torch'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


TRAIN = """
import sys
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
config = PPOConfig().environment("Pendulum-v1").rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[16]))
config.env_runners(
    num_env_runners=0,
    rollout_fragment_length=64,
    env_to_module_connector=lambda env, spaces, device: MeanStdFilter(clip_by_value=2.0),
)
algorithm = config.training(train_batch_size=64, minibatch_size=32, num_epochs=1).build_algo()
algorithm.train()
algorithm.save_to_path(sys.argv[1])
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a small PPO run with filtered observations."""
    folder = tmp_path_factory.mktemp("rllib") / "checkpoint"
    subprocess.run([sys.executable, "-c", TRAIN, str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_an_algorithm_with_a_filter_acts_as_in_rllib(trained):
    from ray.rllib.connectors.env_to_module import MeanStdFilter
    from ray.rllib.core.rl_module.rl_module import RLModule

    made = RLModule.from_checkpoint(trained / "learner_group/learner/rl_module/default_policy")
    space = spaces.Box(-2, 2, (1,))
    seen = MeanStdFilter(clip_by_value=2.0)
    seen.input_observation_space = spaces.Box(-8, 8, (3,))
    seen._init_new_filters()
    seen.set_state(read_of_filter(trained))
    obs = 3 * OBS[:, :3]
    (kept,) = (seen._filters or {}).values()
    filtered = np.stack([np.asarray(kept(row, update=False)) for row in obs])
    means = (
        made.forward_inference({"obs": torch.as_tensor(filtered)})["action_dist_inputs"]
        .detach()
        .numpy()[:, :1]
    )
    expert = OracleSpec(f"rllib:{trained}").build()
    np.testing.assert_allclose(expert.act(obs), stretched(means, space), atol=1e-5)


def read_of_filter(checkpoint):
    return read_pickle(checkpoint / "env_runner/env_to_module_connector/MeanStdFilter/state.pkl")


@pytest.mark.slow
def test_what_stands_between_environment_and_module_is_known(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    pipeline = tmp_path / "copy/env_runner/env_to_module_connector/class_and_ctor_args.pkl"
    pipeline.write_bytes(pipeline.read_bytes().replace(b"NumpyToTensor", b"MyOwnStacking"))
    with pytest.raises(OracleError, match="the connector MyOwnStacking changes its observations"):
        OracleSpec(f"rllib:{tmp_path / 'copy'}").build()
    with pytest.raises(
        ConfigError, match=r"no module 'default'; did you mean 'default_policy'\?; set module=NAME"
    ):
        OracleSpec(f"rllib:{trained}", {"module": "default"}).build()


def test_what_cannot_be_read_is_one_line(tmp_path):
    mixed = DefaultModelConfig(fcnet_hiddens=[8], head_fcnet_hiddens=[8])
    silu = DefaultModelConfig(fcnet_activation="silu")
    for config, line in (
        (mixed, "it has tanh in the encoder and relu in the head"),
        (silu, "its activation 'silu'"),
    ):
        made = module(DefaultPPOTorchRLModule, BOX, config=config)
        made.save_to_path(tmp_path / "module")
        with pytest.raises(OracleError, match=line) as info:
            OracleSpec(f"rllib:{tmp_path / 'module'}").build()
        assert "\n" not in str(info.value)
    (tmp_path / "empty").mkdir()
    for path, line in (
        (tmp_path / "empty", "no checkpoint of RLlib's new API stack"),
        ("/gone", "no such folder: /gone"),
    ):
        with pytest.raises(ConfigError, match=line):
            OracleSpec(f"rllib:{path}").build()
