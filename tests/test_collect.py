"""Collecting: columns, episodes over several rollouts, seeds, the mixture, labels, evaluation."""

import gymnasium as gym
import numpy as np
import pytest
import tree

from actors.collect import Collector, CutShort, episode_seed, label, with_logp
from actors.environments import make_env, rows
from actors.evaluation import evaluate
from actors.forward import random_actor
from actors.pictures import decoded
from actors.replay import cut, replay
from tutelage.errors import OracleError
from tutelage.policy import distribution_of, log_prob
from tutelage.types import EnvRecipe

CARTPOLE = EnvRecipe("CartPole-v1")
COUNTING = "tests.environments_for_tests:Counting-v0"


def collector(recipe=CARTPOLE, num_envs=3, **settings):
    return Collector(recipe, num_envs, **{"reproducible": True, **settings})


def randomly(collector, seed=0):
    return random_actor(collector.envs.action_space, seed)


class Ones:
    """An expert that always answers 1, and remembers what it was asked."""

    def __init__(self, fail_at=-1):
        self.asked, self.fail_at = [], fail_at

    def act(self, obs):
        self.asked.append(tree.map_structure(np.copy, obs))
        if len(self.asked) - 1 == self.fail_at:
            raise OracleError("gone")
        return np.ones(len(tree.flatten(obs)[0]), np.int64)


def zeros(obs):
    return np.zeros(len(tree.flatten(obs)[0]), np.int64)


def test_columns_are_contiguous_and_of_the_right_types():
    c = collector(EnvRecipe("Hopper-v5"))
    rollout = c.collect(randomly(c), 20, version=7, round=2)
    assert rollout.shape == (20, 3)
    assert rollout.obs.shape == (21, 3, 11)
    assert rollout.env_steps() == 60
    assert {a.dtype for a in (rollout.obs, rollout.actions, rollout.rewards)} == {np.dtype(np.float32)}
    assert all(a.flags.c_contiguous for a in (rollout.obs, rollout.actions, rollout.rewards))
    assert (rollout.provenance.version, rollout.provenance.round, rollout.provenance.runner) == (7, 2, 0)
    assert "mujoco" in rollout.provenance.recipe.versions
    assert rollout.expert_actions is rollout.by_expert is rollout.valid is None


def test_rollouts_do_not_share_memory():
    c = collector()
    first = c.collect(randomly(c), 10)
    before = first.obs.copy()
    second = c.collect(randomly(c), 10)
    np.testing.assert_array_equal(first.obs, before)
    np.testing.assert_array_equal(first.obs[-1], second.obs[0])
    assert not np.shares_memory(first.obs, second.obs)


def test_every_episode_is_exactly_what_a_fresh_environment_shows():
    c = collector(num_envs=4)
    rollouts = [c.collect(randomly(c, i), 30, round=i) for i in range(4)]
    compared = 0
    for i, rollout in enumerate(rollouts):
        for entry in np.flatnonzero(rollout.episodes.done):
            whole = cut(rollouts, i, int(entry))
            again = replay(CARTPOLE, whole.seed, whole.actions)
            np.testing.assert_array_equal(again.obs, whole.obs)
            np.testing.assert_array_equal(again.rewards, whole.rewards)
            assert again.terminated is whole.terminated is True
            assert len(whole.rewards) == rollout.episodes.length[entry]
            assert rollout.episodes.returns[entry] == whole.rewards.sum()
            compared += 1
    assert compared > 10


def test_the_successor_of_an_end_is_in_final_obs_and_the_next_row_begins_anew():
    c = collector(EnvRecipe(COUNTING, kwargs={"length": 4}), num_envs=2)
    rollout = c.collect(zeros, 6)
    np.testing.assert_array_equal(rollout.obs["steps"][:, 0, 0], [0, 1, 2, 3, 0, 1, 2])
    np.testing.assert_array_equal(rollout.obs["image"][3, 1], 3)
    np.testing.assert_array_equal(rollout.final_t, [3, 3])
    np.testing.assert_array_equal(rollout.final_b, [0, 1])
    np.testing.assert_array_equal(rollout.final_obs["steps"][:, 0], 4)
    np.testing.assert_array_equal(rollout.final_obs["phase"][0], 4)
    assert rollout.terminated.sum() == 2
    assert not rollout.truncated.any()


def test_cuts_are_not_ends():
    c = collector(EnvRecipe(COUNTING, kwargs={"length": 4, "cut": True}), num_envs=2)
    rollout = c.collect(zeros, 6)
    assert rollout.truncated.sum() == 2
    assert not rollout.terminated.any()


def test_the_table_carries_episodes_over_rollouts():
    c = collector(EnvRecipe(COUNTING, kwargs={"length": 5}), num_envs=1)
    first, second, third = (c.collect(lambda obs: np.array([2]), 4) for _ in range(3))
    for rollout, start, end, offset, done, returns in (
        (first, [0], [4], [0], [False], [8]),
        (second, [0, 1], [1, 4], [4, 0], [True, False], [10, 6]),
        (third, [0, 2], [2, 4], [3, 0], [True, False], [10, 4]),
    ):
        np.testing.assert_array_equal(rollout.episodes.start, start)
        np.testing.assert_array_equal(rollout.episodes.end, end)
        np.testing.assert_array_equal(rollout.episodes.offset, offset)
        np.testing.assert_array_equal(rollout.episodes.done, done)
        np.testing.assert_array_equal(rollout.episodes.returns, returns)
    assert first.episodes.seed[0] == second.episodes.seed[0] != second.episodes.seed[1]
    assert second.episodes.seed[1] == third.episodes.seed[0]


def test_an_episode_that_ends_with_the_rollout_leaves_nothing_behind():
    c = collector(EnvRecipe(COUNTING, kwargs={"length": 3}), num_envs=2)
    first, second = c.collect(zeros, 3), c.collect(zeros, 3)
    for rollout in (first, second):
        np.testing.assert_array_equal(rollout.episodes.done, [True, True])
        np.testing.assert_array_equal(rollout.episodes.offset, 0)
        np.testing.assert_array_equal(rollout.episodes.length, 3)
    assert not set(first.episodes.seed) & set(second.episodes.seed)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_tables_cover_every_row_once(steps):
    c = collector(num_envs=5)
    for i in range(40 // steps):
        rollout = c.collect(randomly(c, i), steps)
        covered = np.zeros(rollout.shape, int)
        for slot, start, end in zip(
            rollout.episodes.slot, rollout.episodes.start, rollout.episodes.end, strict=True
        ):
            covered[start:end, slot] += 1
        assert (covered == 1).all()


def test_a_forced_reset_begins_new_episodes():
    c = collector(EnvRecipe(COUNTING, kwargs={"length": 50}))
    first = c.collect(zeros, 4)
    second = c.collect(zeros, 4, force_reset=True)
    np.testing.assert_array_equal(second.obs["steps"][0, :, 0], 0)
    np.testing.assert_array_equal(second.episodes.offset, 0)
    assert not set(first.episodes.seed) & set(second.episodes.seed)


def test_seeds_are_stable_and_all_different():
    assert episode_seed(0, 0, 0, 0, 0) == episode_seed(0, 0, 0, 0, 0) == 1801442398
    seeds = {
        episode_seed(run, i, runner, slot, k)
        for run in range(3)
        for i in range(5)
        for runner in range(4)
        for slot in range(8)
        for k in range(20)
    }
    assert len(seeds) >= 3 * 5 * 4 * 8 * 20 - 1  # two of 9600 in 2^31 are equal once in fifty times
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_runs_repeat_exactly_and_rounds_do_not():
    first, again, later = collector(run_seed=1), collector(run_seed=1), collector(run_seed=1)
    a, b = first.collect(zeros, 30), again.collect(zeros, 30)
    np.testing.assert_array_equal(a.obs, b.obs)
    assert not set(a.episodes.seed) & set(later.collect(zeros, 30, round=1).episodes.seed)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_the_mixture_acts_as_it_says(beta):
    c, oracle = collector(EnvRecipe(COUNTING, kwargs={"length": 9}), num_envs=50), Ones()
    rollout = c.collect(zeros, 40, beta=beta, oracle=oracle)
    assert len(oracle.asked) == 40
    assert rollout.by_expert is not None
    assert rollout.expert_actions is not None
    assert rollout.by_expert.mean() == pytest.approx(beta, abs=0.05)
    np.testing.assert_array_equal(rollout.actions, rollout.by_expert)
    np.testing.assert_array_equal(rollout.rewards, rollout.by_expert)
    np.testing.assert_array_equal(rollout.expert_actions, 1)
    assert rollout.labels() == rollout.env_steps()
    tree.map_structure(np.testing.assert_array_equal, oracle.asked[5], rows(rollout.obs, 5))


def test_per_episode_the_expert_keeps_its_turn_over_rollouts():
    c = collector(EnvRecipe(COUNTING, kwargs={"length": 6}), num_envs=40, mixture_per="episode")
    parts = [c.collect(zeros, 4, beta=0.5, oracle=Ones()).by_expert for _ in range(3)]
    turns = np.array(parts).reshape(2, 6, 40)
    np.testing.assert_array_equal(turns, turns[:, :1].repeat(6, axis=1))
    assert (turns[0, 0] != turns[1, 0]).any()


def test_after_an_oracle_fails_new_episodes_begin():
    c, oracle = collector(EnvRecipe(COUNTING, kwargs={"length": 50})), Ones(fail_at=3)
    with pytest.raises(OracleError, match="gone"):
        c.collect(zeros, 10, beta=0.5, oracle=oracle)
    rollout = c.collect(zeros, 10, beta=0.5, oracle=oracle)
    np.testing.assert_array_equal(rollout.obs["steps"][:, 0, 0], range(11))


def test_a_mixture_without_an_expert_is_refused():
    with pytest.raises(ValueError, match="needs an oracle"):
        collector().collect(zeros, 2, beta=0.5)


def test_box_actions_are_kept_as_chosen_and_sent_clipped():
    kwargs = {"action_space": gym.spaces.Box(-1, 1, (2,), np.float64)}
    c = collector(EnvRecipe("tests.environments_for_tests:Spaces-v0", kwargs=kwargs))
    rollout = c.collect(lambda obs: np.full((3, 2), 5.0, np.float32), 4)
    np.testing.assert_array_equal(rollout.actions, 5)
    np.testing.assert_array_equal(rollout.rewards, 2)
    labelled = label(rollout, Fives(), kwargs["action_space"])
    np.testing.assert_array_equal(labelled.expert_actions, 1)


class Fives:
    def act(self, obs):
        return np.full((len(obs), 2), 5.0)


@pytest.mark.parametrize("space", [gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(3)])
def test_actions_of_several_parts(space):
    recipe = EnvRecipe("tests.environments_for_tests:Spaces-v0", kwargs={"action_space": space})
    c = collector(recipe)
    rollout = c.collect(randomly(c), 5)
    assert rollout.actions.shape == (5, 3, *space.shape)
    np.testing.assert_allclose(rollout.rewards, rollout.actions.sum(-1))


def test_labels_are_asked_in_batches_and_land_where_they_belong():
    class Feet:
        """Answers 1 where the cart is left of the middle."""

        batches = ()

        def act(self, obs):
            self.batches += (len(obs),)
            return (obs[:, 0] < 0).astype(np.int64)

    c, oracle = collector(num_envs=7), Feet()
    rollout = label(c.collect(randomly(c), 10), oracle, c.envs.action_space, batch=32)
    assert oracle.batches == (32, 32, 6)
    np.testing.assert_array_equal(rollout.expert_actions, rollout.obs[:10, :, 0] < 0)
    assert label(rollout, oracle, c.envs.action_space) is rollout


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_log_probabilities_land_where_they_belong(env_id):
    c, asked = collector(EnvRecipe(env_id), num_envs=3), []

    def forward(obs):
        asked.append(len(obs))
        return obs[:, :2]

    rollout = c.collect(randomly(c), 5)
    logp = with_logp(rollout, forward, c.envs.action_space, batch=8).logp
    assert logp is not None
    assert asked == [8, 7]
    distribution = distribution_of(c.envs.action_space)[0]
    for t in range(5):
        expected = log_prob(rollout.obs[t, :, :2], rollout.actions[t], distribution)
        np.testing.assert_allclose(logp[t], expected, rtol=1e-6)


def test_labels_of_nested_observations():
    c, oracle = collector(EnvRecipe(COUNTING), num_envs=2), Ones()
    rollout = label(c.collect(zeros, 5), oracle, c.envs.action_space)
    assert oracle.asked[0]["image"].shape == (10, 4, 4, 3)
    assert rollout.labels() == 10


def test_vectorised_environments_mark_the_rows_of_their_resets():
    c, oracle = (
        collector(EnvRecipe("CartPole-v1", backend="vector_entry_point"), num_envs=6, reproducible=None),
        Ones(),
    )
    act = randomly(c)
    rollouts = [c.collect(act, 25) for _ in range(4)]
    valid = np.concatenate([rollout.valid for rollout in rollouts])  # type: ignore[misc]
    ends = np.concatenate([rollout.terminated | rollout.truncated for rollout in rollouts])
    rewards = np.concatenate([rollout.rewards for rollout in rollouts])
    np.testing.assert_array_equal(valid[1:], ~ends[:-1])
    np.testing.assert_array_equal(rewards, valid)
    assert valid[0].all()
    assert not valid.all()
    assert not rollouts[0].episodes.reproducible
    for i, rollout in enumerate(rollouts):
        assert rollout.env_steps() == rollout.valid.sum()  # type: ignore[union-attr]
        assert rollout.episodes.length[rollout.episodes.done].min() > 5
        np.testing.assert_array_equal(rollout.episodes.returns, rollout.episodes.length)
        np.testing.assert_array_equal(rollout.final_obs, rollout.obs[rollout.final_t + 1, rollout.final_b])
        for entry in np.flatnonzero(rollout.episodes.done):
            assert len(cut(rollouts, i, int(entry)).rewards) == rollout.episodes.length[entry]
    labelled = label(rollouts[-1], oracle, c.envs.action_space)
    assert sum(map(len, oracle.asked)) == labelled.labels() < 25 * 6
    np.testing.assert_array_equal(labelled.expert_actions, labelled.valid)


def alone(recipe, act, seed):
    """Return and length of one episode, stepped by hand."""
    env = make_env(recipe)
    obs, total, steps, over = env.reset(seed=seed)[0], 0.0, 0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(act(obs[None].astype(np.float32))[0])
        total, steps, over = total + float(reward), steps + 1, terminated or truncated
    return total, steps


@pytest.mark.parametrize("num_envs", [1, 4, 50])
def test_evaluation_plays_each_seed_once_and_in_full(num_envs):
    def act(obs):
        return (obs[:, 2] + obs[:, 3] * obs[:, 0] > 0).astype(np.int64)

    seeds = [5, 3, 11, 8, 100, 7, 6, 1, 2]
    returns, lengths = evaluate(act, CARTPOLE, seeds, num_envs)
    expected = [alone(CARTPOLE, act, seed) for seed in seeds]
    np.testing.assert_array_equal(np.column_stack([returns, lengths]), expected)
    assert len(set(lengths)) > 3


def test_evaluation_of_nested_observations_and_of_no_seed():
    returns, lengths = evaluate(Ones().act, EnvRecipe(COUNTING, kwargs={"length": 6}), range(5), 2)
    np.testing.assert_array_equal(returns, [6] * 5)
    np.testing.assert_array_equal(lengths, [6] * 5)
    assert evaluate(zeros, CARTPOLE, [])[0].shape == (0,)


RESTLESS = "tests.environments_for_tests:Restless-v0"


def shown(pictures):
    """The numbers that pictures of `Restless` show."""
    return np.array([decoded(one).mean() / 255 for one in pictures.ravel()]).reshape(pictures.shape)


@pytest.mark.parametrize(
    ("backend", "in_halves"),
    [("sync", False), ("sync", True), ("async", False)],
    ids=["sync", "halves", "async"],
)
def test_where_nothing_is_replayed_each_state_of_the_first_environments_is_drawn(backend, in_halves):
    c = Collector(EnvRecipe(RESTLESS, backend=backend), 4, drawn=3, in_halves=in_halves)
    settings = {"beta": 0.5, "oracle": Ones()} if in_halves else {}
    last = None
    for _ in range(2):
        rollout = c.collect(zeros, 50, **settings)
        assert rollout.pictures is not None
        assert rollout.pictures.obs.shape == (51, 3)
        np.testing.assert_allclose(shown(rollout.pictures.obs), rollout.obs[:, :3, 0], atol=0.01)
        drawn = rollout.final_b < 3
        assert 3 <= drawn.sum() < len(drawn)
        final = shown(rollout.pictures.final_obs[drawn])
        np.testing.assert_allclose(final, rollout.final_obs[drawn][:, 0], atol=0.01)
        assert set(rollout.pictures.final_obs[~drawn]) == {b""}
        assert last is None or (last == rollout.pictures.obs[0]).all()
        last = rollout.pictures.obs[-1]
    c.close()


def test_where_episodes_are_replayed_nothing_is_drawn():
    c = Collector(CARTPOLE, 2, drawn=2)
    assert c.collect(zeros, 5).pictures is None
    assert c.envs.pictures == []
    restless = Collector(EnvRecipe(RESTLESS), 2)
    assert restless.collect(zeros, 5).pictures is None


def test_an_expert_that_fails_leaves_the_pictures_of_the_steps_that_were_made():
    c = Collector(EnvRecipe(RESTLESS), 2, drawn=1)
    with pytest.raises(CutShort) as error:
        c.collect(zeros, 90, beta=1.0, oracle=Ones(fail_at=60))
    rollout = error.value.rollout
    assert rollout.shape == (60, 2)
    assert rollout.pictures is not None
    assert len(rollout.pictures.final_obs) == len(rollout.final_t) > 0
    np.testing.assert_allclose(shown(rollout.pictures.obs)[:, 0], rollout.obs[:, 0, 0], atol=0.01)
