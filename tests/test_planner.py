"""The planner: its simulators are the environments, its plans reach the goal, and a policy learns them."""

import time

import gymnasium
import numpy as np
import pytest

from expert_oracle.loading import OracleSpec, checked
from expert_oracle.lookahead import EQUATIONS, Simulated, make_model
from expert_oracle.planner import CEM
from tutelage.errors import ConfigError, OracleError
from tutelage.types import EnvRecipe

HERE = __file__
POSED = [
    "CartPole-v1",
    "Pendulum-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Hopper-v5",
    "HalfCheetah-v5",
    "Walker2d-v5",
    "Ant-v5",
    "Swimmer-v5",
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Reacher-v5",
]


def no_pose(env, obs):
    """Leaves the environment where it is."""


def swapped(env, obs):
    """A pose of one's own for Pendulum, of which the angle is wrong."""
    env.state = np.array([np.arctan2(obs[0], obs[1]), obs[2]])


def minus_speed(obs):
    return -1e6 * np.abs(obs[..., 2])


@pytest.mark.parametrize("env_id", EQUATIONS)
def test_equations_are_the_environment_step_for_step(env_id):
    env = gymnasium.make(env_id)
    rng, seen = np.random.default_rng(0), 0
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        plan = np.stack([env.action_space.sample() for _ in range(1 + int(rng.integers(40)))])
        returns, last, going_on = EQUATIONS[env_id].look_ahead(obs[None], plan[None, None])
        total, ended, following = 0.0, False, obs
        for action in plan:
            following, reward, ended, _, _ = env.step(action)
            total += float(reward)
            if ended:
                break
        seen += ended
        assert (returns[0, 0], going_on[0, 0]) == (pytest.approx(total, rel=1e-5), not ended)
        np.testing.assert_allclose(last[0, 0], following, atol=1e-4)
    assert seen == 0 or seen > 2, "CartPole fell in some, Pendulum never ends"


def test_equations_and_simulation_agree_on_many_plans():
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=0)
    obs = np.random.default_rng(0).uniform(-0.15, 0.15, (3, 4))
    plans = np.random.default_rng(1).integers(0, 2, (3, 5, 30))
    model = make_model(env, f"{HERE}:posed_cartpole")
    assert isinstance(model, Simulated)
    for fast, plain in zip(
        EQUATIONS["CartPole-v1"].look_ahead(obs, plans), model.look_ahead(obs, plans), strict=True
    ):
        np.testing.assert_allclose(fast, plain, atol=1e-4)


def posed_cartpole(env, obs):
    env.state, env.steps_beyond_terminated = obs.astype(np.float64), None


@pytest.mark.parametrize("env_id", POSED)
def test_planning_begins_in_the_observed_state(env_id):
    """Making it checks that a step from there is the real one."""
    planner = CEM(env_id, horizon=2, candidates=4, elites=2, iterations=1)
    env = gymnasium.make(env_id)
    obs, _ = env.reset(seed=3)
    action = checked(planner, env.observation_space, env.action_space, "planner").act(obs[None])[0]
    assert env.action_space.contains(action if action.shape else action[()])


def test_the_same_state_gets_the_same_action_in_any_batch():
    for env_id in ("Pendulum-v1", "CartPole-v1"):
        planner = CEM(env_id, horizon=5, candidates=200, elites=10, iterations=2)
        obs = np.random.default_rng(0).uniform(-0.2, 0.2, (100, 3 if "Pend" in env_id else 4))
        together = planner.act(obs)
        np.testing.assert_array_equal(together[::7], planner.act(obs[::7]))
        np.testing.assert_array_equal(
            together[:1], CEM(env_id, horizon=5, candidates=200, elites=10, iterations=2).act(obs[:1])
        )
        assert planner.act(obs[:0]).shape == together[:0].shape


def returns(act, env_id, seeds, steps=None):
    """Undiscounted returns of one episode for each seed."""
    envs = gymnasium.make_vec(env_id, len(seeds), vectorization_mode="sync")
    obs, _ = envs.reset(seed=list(seeds))  # type: ignore[arg-type]
    totals, going_on = np.zeros(len(seeds)), np.ones(len(seeds), bool)
    while going_on.any() and steps != 0:
        obs, rewards, terminated, truncated, _ = envs.step(act(obs))
        totals += rewards * going_on
        going_on &= ~(terminated | truncated)
        steps = None if steps is None else steps - 1
    envs.close()
    return totals


def test_pendulum_is_swung_up_and_held():
    assert returns(CEM("Pendulum-v1", hold=4).act, "Pendulum-v1", range(4)).mean() > -200


def test_the_pole_is_kept_up_from_falling_states():
    planner = CEM("CartPole-v1")
    assert returns(planner.act, "CartPole-v1", range(4), steps=100).min() == 100


def test_a_value_judges_what_lies_beyond_the_horizon():
    still = CEM("Pendulum-v1", value=f"{HERE}:minus_speed", horizon=1, candidates=200)
    assert still.act(np.array([[0.0, 1.0, 1.0], [1.0, 0.0, -0.2]])).ravel() == pytest.approx(
        [-2, 4 / 3], abs=0.05
    )


@pytest.mark.parametrize(
    ("error", "word", "arguments", "line"),
    [
        (
            ConfigError,
            "planner:mpc",
            {"env": "Pendulum-v1"},
            "there is no such planner; known: planner:cem",
        ),
        (ConfigError, "planner:cem", {}, "env"),
        (ConfigError, "planner:cem", {"env": "Pendulum-v1", "horizn": 3}, "'horizn'"),
        (ConfigError, "planner:cem", {"env": "Pendulums-v1"}, "planner: env=Pendulums-v1: .*doesn't exist"),
        (
            ConfigError,
            "planner:cem",
            {"env": "Pendulum-v1", "elites": 64},
            "elites=64 between 1 and candidates=64",
        ),
        (ConfigError, "planner:cem", {"env": "LunarLander-v3"}, "LunarLander-v3 .*give pose=module:attr"),
        (
            ConfigError,
            "planner:cem",
            {"env": "Pendulum-v1", "pose": "nowhere:f"},
            "no module named 'nowhere'",
        ),
        (
            OracleError,
            "planner:cem",
            {"env": "Pendulum-v1", "pose": f"{HERE}:no_pose"},
            r"pose\(env, obs\) is wrong",
        ),
        (
            OracleError,
            "planner:cem",
            {"env": "Pendulum-v1", "pose": f"{HERE}:swapped"},
            "not the one from the state",
        ),
    ],
)
def test_what_is_wrong_is_one_line(error, word, arguments, line):
    with pytest.raises(error, match=line) as info:
        OracleSpec(word, arguments).build()
    assert "\n" not in str(info.value)


def test_states_of_another_environment_are_refused():
    with pytest.raises(OracleError, match=r"planner for Pendulum-v1 takes observations \(3,\), got \(4,\)"):
        CEM("Pendulum-v1").act(np.zeros((2, 4)))


@pytest.mark.slow
def test_a_policy_learns_the_planner_and_is_a_hundred_times_faster(tmp_path):
    """DAgger reaches 95 % of the planner's return on other seeds: R - 0.05 |R|, as returns are negative."""
    from services.commands import train_command
    from services.overrides import load_config

    train_command("dagger-pendulum-planner", ["seed=1"], tmp_path / "run", quiet=True)
    policy = OracleSpec(f"checkpoint:{tmp_path / 'run'}").build()
    spec = OracleSpec(**load_config("dagger-pendulum-planner")["expert"])
    planner = spec.build(EnvRecipe("Pendulum-v1"))
    seeds = range(5000, 5100)
    learnt, planned = (returns(expert.act, "Pendulum-v1", seeds).mean() for expert in (policy, planner))
    print(f"returns on {len(seeds)} seeds: planner {planned:.1f}, policy {learnt:.1f}")
    assert learnt >= planned - 0.05 * abs(planned)
    for N in (1, 256):
        slow, fast = (seconds_per_action(expert.act, N) for expert in (planner, policy))
        print(
            f"batch {N}: planner {slow * 1e6:.1f} µs an action, policy {fast * 1e6:.2f}, {slow / fast:.0f}x"
        )
        assert slow >= 100 * fast


def seconds_per_action(act, N, repeats=20):
    """The median time of a call, divided by its states."""
    obs = gymnasium.make("Pendulum-v1").reset(seed=0)[0][None].repeat(N, axis=0)
    act(obs)
    durations = []
    for _ in range(repeats):
        start = time.perf_counter()
        act(obs)
        durations.append(time.perf_counter() - start)
    return float(np.median(durations)) / N
