from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import tree
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from learner.nets import LOG_STD_RANGE, ObservationNorm, PolicyModule, joined, load_policy, save_module
from tutelage.errors import ConfigError

FLAT = Box(-np.inf, np.inf, (5,), np.float64)
IMAGE = Box(0, 255, (64, 64, 3), np.uint8)
ACTIONS = [Box(-1, 1, (3,), np.float32), Discrete(4), MultiDiscrete([3, 2]), MultiBinary(4)]
OUTPUTS = [6, 4, 5, 4]


def make(observation_space, action_space, **model_config) -> PolicyModule:
    torch.manual_seed(0)
    return PolicyModule(
        observation_space=observation_space, action_space=action_space, model_config=model_config
    )


def observations(space: gym.Space, n: int = 7) -> Any:
    samples = [space.sample() for _ in range(n)]
    batch = tree.map_structure(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *samples)
    return tree.map_structure(
        lambda x: torch.as_tensor(x.astype(np.float32) if x.dtype == np.float64 else x), batch
    )


@pytest.mark.parametrize(("action_space", "outputs"), list(zip(ACTIONS, OUTPUTS, strict=True)))
def test_parameters_and_values_have_their_shapes(action_space, outputs):
    module = make(FLAT, action_space)
    obs = torch.randn(7, 5)
    assert joined(module.policy(obs)).shape == (7, outputs)
    assert module.value(obs).shape == (7,)
    assert module._forward({"obs": obs})["action_dist_inputs"].shape == (7, outputs)


@pytest.mark.parametrize(
    "space",
    [
        IMAGE,
        Dict({"camera": IMAGE, "joints": FLAT, "gripper": Discrete(3)}),
        Tuple([FLAT, MultiDiscrete([2, 3])]),
        Dict({"pose": Dict({"position": FLAT, "contacts": MultiBinary(3)})}),
    ],
    ids=["image", "mixed", "tuple", "nested"],
)
def test_other_observations_get_an_encoder_per_leaf(space):
    module = make(space, Discrete(4))
    obs = observations(space)
    params = joined(module.policy(obs))
    assert params.shape == (7, 4)
    assert module.policy_arrays() is None
    assert not torch.allclose(params[0], params[1])
    assert module.value(obs).shape == (7,)
    both = module.policy_and_value(obs)
    torch.testing.assert_close(both, (module.policy(obs), module.value(obs)))


@pytest.mark.parametrize("action_space", ACTIONS)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_numpy_policy_equals_the_module(action_space, activation):
    module = make(FLAT, action_space, fcnet_activation=activation, fcnet_hiddens=[32, 16], log_std_init=-0.5)
    for _, norms in module.norms():
        norms[0].merge(torch.randn(100, 5) * 3 + 1)
    obs = torch.randn(9, 5) * 5
    arrays = module.policy_arrays()
    assert arrays is not None
    params = module._forward({"obs": obs})["action_dist_inputs"]
    np.testing.assert_allclose(arrays(obs.numpy()), params.detach().numpy(), atol=1e-5)
    torch.testing.assert_close(module.policy_and_value(obs), (module.policy(obs), module.value(obs)))


def test_runners_get_no_value_function():
    module = make(FLAT, Discrete(2))
    light = PolicyModule(
        observation_space=FLAT, action_space=Discrete(2), model_config={}, inference_only=True
    )
    state = module.get_state(inference_only=True)
    assert not any(key.startswith("vf") for key in state)
    light.set_state(state)
    obs = torch.randn(3, 5)
    torch.testing.assert_close(light.policy(obs), module.policy(obs))
    assert not hasattr(light, "vf")


def test_running_moments_are_those_of_all_data_and_travel_with_the_weights():
    rng = np.random.default_rng(0)
    parts = [rng.normal(3, 2, (n, 4)).astype(np.float32) for n in (1, 10, 1000)]
    norm = ObservationNorm(4)
    for part in parts:
        norm.merge(torch.from_numpy(part))
    whole = np.concatenate(parts)
    np.testing.assert_allclose(norm.mean.numpy(), whole.mean(0), rtol=1e-4)
    np.testing.assert_allclose(norm.std.numpy(), whole.std(0), rtol=1e-3)
    assert set(norm.state_dict()) == {"mean", "var", "std", "count"}


def test_a_constant_feature_is_not_blown_up():
    norm = ObservationNorm(1)
    norm.merge(torch.full((10, 1), 7.0))
    assert norm(torch.tensor([[7.0], [7.5]])).flatten().tolist() == [0.0, 0.5]


def test_the_variance_of_a_feature_that_hardly_varies_is_not_lost():
    x = torch.tensor([[0.0], [1e-5]]).repeat(500, 1)
    norm = ObservationNorm(1)
    for part in x.split(100):
        norm.merge(part)
    assert norm.var.item() == pytest.approx(x.double().var(unbiased=False).item(), rel=1e-3)
    assert norm.std.item() == 1
    norm.merge(torch.tensor([[-1.0], [1.0]]).repeat(500, 1))
    assert norm.std.item() == pytest.approx(0.5**0.5, rel=1e-3)


def test_log_std_stays_in_its_range():
    module = make(FLAT, ACTIONS[0], log_std_init=-50)
    mean, log_std = module.policy(torch.randn(1, 5))
    assert mean.shape == (1, 3)
    assert log_std.tolist() == [LOG_STD_RANGE[0]] * 3


def test_unknown_setting_is_named():
    with pytest.raises(ConfigError, match=r"fcnet_hidden is unknown; did you mean 'fcnet_hiddens'"):
        make(FLAT, Discrete(2), fcnet_hidden=[3])


def test_a_policy_for_images_is_saved_and_acts_alike(tmp_path):
    module = make(IMAGE, Discrete(4))
    save_module(module, tmp_path, {"env": "x"})
    obs = observations(IMAGE)
    expected = joined(module.policy(obs)).argmax(-1).numpy()
    np.testing.assert_array_equal(load_policy(tmp_path).act(obs.numpy()), expected)
