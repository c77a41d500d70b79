"""Who acts: the rules by which an expert takes over, what they label, and the methods that go by them."""

import threading
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import tree
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from actors.collect import Collector, CutShort, label
from actors.forward import Judge, forward_of
from actors.mixture import Turn
from actors.takeover import RULES, controller_of
from expert_oracle.loading import FunctionOracle, OracleSpec, checked
from learner.columns import rows_of_rollout
from learner.dataset import Dataset
from learner.methods import make_method
from learner.methods.safe_dagger import fractions
from learner.nets import PolicyModule
from learner.recent import Recent, transitions
from services.overrides import load_config
from services.settings import preflight
from services.trainer import result_seeds
from tests.test_collect import COUNTING, Ones, zeros
from tests.test_nets import observations
from tests.test_trainer import built, cartpole  # noqa: F401
from tutelage.errors import ConfigError, OracleError
from tutelage.policy import difference, unit_of
from tutelage.types import EnvRecipe, TakeoverRule

METHODS = ["safe_dagger", "ensemble_dagger", "thrifty_dagger", "hg_dagger"]
SPACES = [Box(-2, 2, (3,), np.float32), Discrete(4), MultiDiscrete([3, 2]), MultiBinary(4)]


class Module:
    """A novice whose thoughts are functions of the number of steps that an episode has lasted."""

    def __init__(self, bounds, **thoughts):
        self.bounds = bounds
        for name, thought in thoughts.items():
            setattr(self, name, lambda obs, *_, thought=thought: thought(obs["steps"][:, 0]))

    def limits(self):
        return self.bounds


LIMITS = {"doubt": 0.5, "risk": 0.5, "difference": 0.5, "calm": 0.5}
FREELY = {"budget": 1.0}


def collected(
    rule,
    steps=12,
    *,
    length=30,
    envs=3,
    oracle: Any = None,
    act=zeros,
    settings=None,
    limits=LIMITS,
    **thoughts,
):
    c = Collector(EnvRecipe(COUNTING, kwargs={"length": length}), envs, reproducible=True)
    oracle = oracle or Ones()
    judge = Judge(Module(limits, **thoughts))
    return c.collect(act, steps, rule=TakeoverRule(rule, settings or {}), oracle=oracle, judge=judge)


def between(low, high):
    return lambda step: ((step >= low) & (step < high)).float()


def test_the_safe_rule_asks_only_where_it_expects_an_error():
    oracle = Ones()
    rollout = collected("safe", oracle=oracle, danger=between(4, 7))
    assert rollout.by_expert is not None
    assert rollout.by_expert[:, 0].nonzero()[0].tolist() == [4, 5, 6]
    np.testing.assert_array_equal(rollout.asked, rollout.by_expert)
    np.testing.assert_array_equal(rollout.actions, rollout.by_expert)
    assert len(oracle.asked) == 3
    assert (rollout.labels(), rollout.attended_steps(), rollout.takeovers()) == (9, 9, 3)
    assert rows_of_rollout(rollout)["obs"]["steps"][:, 0].tolist() == [4] * 3 + [5] * 3 + [6] * 3


def test_the_ensemble_rule_labels_all_and_stops_a_novice_that_doubts_or_differs():
    def act(obs):
        return (obs["steps"][:, 0] < 8).astype(np.int64)  # as the expert says, until step 8

    settings = {"discrepancy": 0.5, "doubt": 0.5}
    rollout = collected("doubtful", settings=settings, doubt=between(2, 4), act=act)
    assert rollout.by_expert is not None
    assert rollout.by_expert[:, 1].nonzero()[0].tolist() == [2, 3, 8, 9, 10, 11]
    assert rollout.asked is None
    assert rollout.labels() == rollout.env_steps() == 36


def test_the_thrifty_rule_holds_on_until_the_novice_agrees_and_is_calm():
    def act(obs):
        return (obs["steps"][:, 0] >= 6).astype(np.int64)  # as the expert says, from step 6 on

    rollout = collected("thrifty", doubt=between(3, 4), risk=between(5, 8), act=act, settings=FREELY)
    assert rollout.by_expert is not None
    assert rollout.by_expert[:, 0].nonzero()[0].tolist() == [3, 4, 5, 6, 7, 8]  # in 8 it sees that it may go
    np.testing.assert_array_equal(rollout.labelled(), rollout.by_expert)


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("envs", [1, 8])
def test_the_thrifty_rule_keeps_the_budget_but_for_calls_under_way(envs, budget):
    """Everything is novel; the novice, wrong in every third step, is let go after two or three."""

    def act(obs):
        return (obs["steps"][:, 0] % 3 > 0).astype(np.int64)

    settings = {"budget": budget}
    rollout = collected(
        "thrifty", 300, envs=envs,
        doubt=between(0, 99), risk=between(0, 0), act=act, settings=settings,
    )  # fmt: skip
    assert rollout.by_expert is not None
    so_far = rollout.by_expert.sum(1).cumsum() - budget * envs * np.arange(1, 301)
    assert so_far.max() <= 3 * envs
    if budget < 1:
        assert so_far[-1] > -1  # and it is used
    else:
        assert rollout.by_expert.all()


def test_the_riskiest_are_heard_where_more_call_than_the_budget_allows():
    def thrifty(risk):
        turn = Turn(
            obs=np.zeros((4, 1)), novice=np.zeros(4), began=np.zeros(4, bool), rng=np.random.default_rng(0),
            ask=lambda mask: np.ones(4), oracle=Ones(),
            judge=Judge(SimpleNamespace(
                limits=lambda: LIMITS, doubt=lambda obs: torch.zeros(4), risk=lambda *_: torch.tensor(risk)
            )),
        )  # fmt: skip
        return controller_of(TakeoverRule("thrifty", {"budget": 0.25}), Discrete(2))(turn)

    assert thrifty([0.6, 0.9, 0.4, 0.7]).tolist() == [False, True, False, False]
    assert thrifty([0.1, 0.2, 0.4, 0.3]).tolist() == [False] * 4


def test_a_novice_that_is_always_right_is_let_go_at_once():
    limits = {"doubt": 0.5, "risk": 0.5, "difference": 0.0, "calm": 0.5}
    rollout = collected(
        "thrifty",
        doubt=between(3, 4), risk=between(50, 60), act=Ones().act, limits=limits, settings=FREELY,
    )  # fmt: skip
    assert rollout.by_expert is not None
    assert rollout.by_expert[:, 0].nonzero()[0].tolist() == [3, 4]


def test_rules_compare_what_would_be_executed():
    kwargs = {"action_space": Box(-1, 1, (2,), np.float32)}
    c = Collector(EnvRecipe("tests.environments_for_tests:Spaces-v0", kwargs=kwargs), 3, reproducible=True)
    rollout = c.collect(
        lambda obs: np.full((3, 2), 1.5, np.float32), 5,
        rule=TakeoverRule("doubtful", {"discrepancy": 0.1, "doubt": 0.5}),
        oracle=FunctionOracle(lambda obs: np.ones((len(obs), 2), np.float32)),
        judge=Judge(Bold()),
    )  # fmt: skip
    assert rollout.by_expert is not None
    assert not rollout.by_expert.any()
    np.testing.assert_array_equal(rollout.actions, 1.5)


class Bold:
    def doubt(self, obs):
        return torch.zeros(len(obs))


@pytest.mark.parametrize("backend", ["sync", "vector_entry_point"])
def test_rows_that_reset_are_nobodys_turn(backend):
    class First(Ones):
        def takes_over(self, obs, actions, began):
            return began

    recipe = EnvRecipe("CartPole-v1", backend=backend)
    c = Collector(recipe, 3, reproducible=True)
    parts = [
        c.collect(zeros, 25, rule=TakeoverRule("human_gated"), oracle=(oracle := First())) for _ in range(3)
    ]
    for part in parts:
        assert part.by_expert is not None
        started = sorted(zip(part.episodes.start.tolist(), part.episodes.slot.tolist(), strict=True))
        began = [(t, b) for (t, b), offset in zip(started, sorted_offsets(part), strict=True) if not offset]
        assert sorted(zip(*map(list, np.nonzero(part.by_expert)), strict=True)) == began
        assert part.valid is None or part.valid[part.by_expert].all()
    assert sum(map(len, oracle.asked)) == parts[-1].labels()


def sorted_offsets(rollout):
    episodes = rollout.episodes
    return episodes.offset[np.lexsort((episodes.slot, episodes.start))]


@pytest.mark.parametrize("in_halves", [False, True])
def test_answers_given_before_an_expert_fails_are_kept(in_halves):
    c = Collector(EnvRecipe(COUNTING, kwargs={"length": 4}), 4, reproducible=True, in_halves=in_halves)
    with pytest.raises(CutShort, match="gone") as info:
        c.collect(zeros, 20, beta=1.0, oracle=Ones(fail_at=22 if in_halves else 11))
    cut = info.value.rollout
    assert cut.shape in {(10, 4), (11, 4)}
    assert cut.labels() == cut.env_steps()
    assert len(cut.final_t) == 2 * 4
    whole = Collector(EnvRecipe(COUNTING, kwargs={"length": 4}), 4, reproducible=True).collect(
        zeros, cut.shape[0], beta=1.0, oracle=Ones()
    )
    for name in ("obs", "final_obs", "expert_actions"):
        tree.map_structure(np.testing.assert_array_equal, getattr(whole, name), getattr(cut, name))
    np.testing.assert_array_equal(whole.episodes.seed, cut.episodes.seed)


def test_labels_given_before_an_expert_fails_are_kept():
    c = Collector(EnvRecipe(COUNTING), 4, reproducible=True)
    rollout = c.collect(zeros, 10)
    with pytest.raises(CutShort) as info:
        label(rollout, Ones(fail_at=2), c.envs.action_space, batch=9)
    assert info.value.rollout.labels() == 18
    assert len(rows_of_rollout(info.value.rollout)["reward"]) == 18


def test_a_new_episode_begins_with_the_novice():
    rollout = collected("thrifty", 12, length=6, doubt=between(4, 5), risk=between(9, 9), settings=FREELY)
    assert rollout.by_expert is not None
    assert rollout.by_expert[:, 0].nonzero()[0].tolist() == [4, 5, 10, 11]


def test_a_person_takes_over_and_hands_back_at_will():
    class Person(Ones):
        def takes_over(self, obs, actions, began):
            assert began.all() == (obs["steps"][0, 0] == 0)
            np.testing.assert_array_equal(actions, 0)
            return (obs["steps"][:, 0] >= 5) & (np.arange(len(began)) == 1)

    rollout = collected("human_gated", oracle=checked(Person(), None, gym.spaces.Discrete(3), "person"))
    assert rollout.labels() == 7
    assert rollout.attended_steps() == rollout.env_steps() == 36
    assert rollout.takeovers() == 1
    with pytest.raises(OracleError, match="expert other does not take over by itself; watching:other does"):
        collected("human_gated", oracle=checked(Ones(), None, gym.spaces.Discrete(3), "other"))


def test_every_rule_says_whether_it_watches():
    for name in RULES:
        settings = {"doubtful": {"discrepancy": 0.1, "doubt": 0.1}, "thrifty": FREELY}.get(name, {})
        assert controller_of(TakeoverRule(name, settings), Discrete(2)).watches == (name == "human_gated")


def test_an_expert_that_watches_waits_before_it_takes_over_and_before_it_hands_back():
    oracle: Any = OracleSpec("watching:tests/oracles.py:ones", {"tolerance": 0.5, "patience": 2}).build()
    wrong = [1, 0, 1, 0, 0, 0, 1, 0, 1, 1, 1]  # 1: as the expert says
    masks = [
        oracle.takes_over(np.zeros((1, 3)), np.array([a]), np.array([t == 0])) for t, a in enumerate(wrong)
    ]
    assert np.concatenate(masks).astype(int).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert not oracle.takes_over(np.zeros((1, 3)), np.array([0]), np.array([True]))
    with pytest.raises(ConfigError, match="patience=0 1 or more"):
        OracleSpec("watching:scripted:cartpole", {"patience": 0}).build()


def test_differences_are_in_half_ranges():
    space = Box(-2, 2, (2,), np.float32)
    a, b = np.array([[0, 2], [1, 1]], np.float32), np.array([[0, 0], [1, 1]], np.float32)
    np.testing.assert_allclose(difference(a, b, unit_of(space)), [0.5, 0])
    assert difference(np.array([1, 2]), np.array([1, 0]), unit_of(Discrete(3))).tolist() == [0, 1]
    module = made(space)
    np.testing.assert_allclose(module.difference(torch.tensor(a), torch.tensor(b)).numpy(), [0.5, 0])


# The dataset


def test_what_the_expert_was_not_asked_is_no_row_and_counts_with_the_next(tmp_path):
    dataset = Dataset(tmp_path)
    nothing = collected("safe", danger=between(50, 60))
    assert dataset.append([nothing], key="0") == dataset.append([nothing], key="0") == 0
    assert dataset.steps == Dataset(tmp_path).steps == 36
    with (tmp_path / "unlabelled.jsonl").open("a") as file:
        file.write('{"key": "torn')
    assert dataset.append([collected("safe", danger=between(4, 7))], key="1") == 9
    assert dataset.append([nothing], key="2") == 0
    again = Dataset(tmp_path)
    assert again.keys == {"0", "1", "2"}
    assert (len(again), again.labels, again.steps, again.takeovers, again.attended) == (9, 9, 108, 3, 9)


def test_recent_transitions_lead_to_where_they_led(tmp_path):
    c = Collector(EnvRecipe(COUNTING, kwargs={"length": 4}), 2, reproducible=True)
    rollout = c.collect(zeros, 6)
    rows = transitions(rollout)
    steps, following = rows["obs"]["steps"][:, 0], rows["next_obs"]["steps"][:, 0]
    np.testing.assert_array_equal(following, steps + 1)
    np.testing.assert_array_equal(rows["terminated"], following == 4)
    recent = Recent(7)
    for part in (rollout, c.collect(zeros, 1)):
        recent.add(part)
    assert len(recent) == 7
    batch = recent.sample(1000, np.random.default_rng(0))
    kept = [*zip(steps.tolist(), rows["obs"]["steps"][:, 1].tolist(), strict=True)][-5:]
    seen = {*zip(*batch["obs"]["steps"].T.tolist(), strict=True)}
    assert set(kept) < seen
    assert len(seen) == 7


# Ensembles and what a policy thinks of itself


def made(action_space, observation_space=None, **model_config) -> PolicyModule:
    torch.manual_seed(0)
    box = observation_space or Box(-np.inf, np.inf, (5,), np.float32)
    return PolicyModule(observation_space=box, action_space=action_space, model_config=model_config)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("hiddens", [[16, 16], [8], []], ids=str)
def test_the_mean_of_members_is_one_network(space, hiddens):
    module = made(space, members=3, fcnet_hiddens=hiddens)
    obs = torch.randn(9, 5)
    params, members = (x[0] if isinstance(x, tuple) else x for x in (module.policy(obs), module.members(obs)))
    np.testing.assert_allclose(members.mean(0).detach(), params.detach(), atol=1e-6)
    forward = forward_of(module)(obs.numpy())
    np.testing.assert_allclose(forward[:, : params.shape[1]], params.detach(), atol=1e-5)
    assert (module.doubt(obs) > 0).all()


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_doubt_danger_and_risk_are_of_each_state(space):
    module = made(space, members=2, danger=True, risk=True)
    obs = torch.randn(9, 5)
    actions = module.actions(obs).detach()
    assert all(space.contains(action) for action in actions.numpy().astype(space.dtype))
    for name, inputs in {"doubt": (obs,), "danger": (obs,), "risk": (obs, actions)}.items():
        thought = getattr(Judge(module), name)(*(x.numpy() for x in inputs))
        assert thought.shape == (9,)
        assert ((thought >= 0) & (thought <= 1)).all() or name == "doubt"
    assert module.limits()["doubt"] == np.inf
    module.set_limits(**{name: torch.tensor(0.25) for name in module.limits()})
    assert set(module.limits().values()) == {0.25}


def test_nested_observations_have_members_too():
    space = gym.spaces.Dict({"a": Box(-1, 1, (3,), np.float32), "b": Discrete(4)})
    module = made(Discrete(3), space, members=2, danger=True)
    obs = observations(space)
    assert module.doubt(obs).shape == module.danger(obs).shape == (7,)
    assert forward_of(module)(tree.map_structure(lambda x: x.numpy(), obs)).shape == (7, 3)


@pytest.mark.parametrize("config", [{"members": 0}, {"members": 1.5}])
def test_a_number_of_members_that_is_none_is_refused(config):
    with pytest.raises(ConfigError, match=r"rl_module\.model_config\.members"):
        made(Discrete(2), **config)


# In halves


def test_asking_in_halves_gives_the_same_rollout():
    def rollout(**settings):
        c = Collector(EnvRecipe(COUNTING, kwargs={"length": 5}), 5, reproducible=True, **settings)
        return c.collect(zeros, 9, beta=1.0, oracle=(oracle := Ones())), oracle

    (whole, once), (halves, twice) = rollout(), rollout(in_halves=True)
    for name in ("obs", "actions", "final_obs", "final_t", "final_b", "expert_actions", "by_expert"):
        tree.map_structure(np.testing.assert_array_equal, getattr(whole, name), getattr(halves, name))
    np.testing.assert_array_equal(whole.episodes.seed, halves.episodes.seed)
    assert len(once.asked) == 9
    assert len(twice.asked) == 18


def test_one_half_is_stepped_while_the_expert_thinks_about_the_other():
    """The expert answers about one half only once the other has been stepped: in turns that would hang."""
    stepped = threading.Semaphore(2)  # both first questions are answered at once
    c = Collector(EnvRecipe(COUNTING, kwargs={"length": 99}), 4, reproducible=True, in_halves=True)
    step = c.envs.step

    def noted(*arguments, **settings):
        stepped.release()
        return step(*arguments, **settings)

    def act(obs):
        assert stepped.acquire(timeout=10)
        return np.ones(len(obs["steps"]), np.int64)

    c.envs.step = noted  # type: ignore[method-assign]
    assert c.collect(zeros, 10, beta=1.0, oracle=FunctionOracle(act)).labels() == 40


def test_halves_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="in_halves needs"):
        Collector(EnvRecipe("CartPole-v1"), 1, in_halves=True)
    with pytest.raises(ConfigError, match="gym_env_vectorize_mode=sync"):
        Collector(EnvRecipe("CartPole-v1", backend="vector_entry_point"), 4, in_halves=True)


# The methods


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("method", METHODS)
def test_each_learns_cartpole_and_counts_what_it_asked(tmp_path, built, method):  # noqa: F811
    expert = "watching:scripted:cartpole" if method == "hg_dagger" else "scripted:cartpole"
    arguments: dict[str, Any] = {"patience": 2, "tolerance": 0.5} if method == "hg_dagger" else {}
    settings: dict[str, Any] = {"tau": 0.5} if method == "safe_dagger" else {}
    config = cartpole(tmp_path, method, envs=2, steps=100, **settings)
    trainer = built(config.expert(oracle=expert, arguments=arguments))
    for _ in range(10):
        trainer.train()
    figures = trainer.figures
    assert trainer.env_steps == 2000
    if method == "ensemble_dagger":
        assert figures["expert_labels"] == 2000
    else:
        assert 200 < figures["expert_labels"] < 1500
        assert figures["dataset"] == figures["expert_labels"]
    assert figures["attended_steps"] == (2000 if method == "hg_dagger" else figures["expert_labels"])
    returns, _ = trainer.measure(result_seeds(1, 20))
    assert returns.mean() >= 300  # chance gets 22; the expert 500


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("thrifty_dagger", {"budget": 3}, r"method\.budget: expected a number from 0 to 1, got 3"),
        ("safe_dagger", {"tau": -1.0}, r"method\.tau: expected a number of at least 0, got -1\.0"),
        ("hg_dagger", {"expert_rounds": 0}, r"method\.expert_rounds: expected a number of at least 1, got 0"),
        ("ensemble_dagger", {"anneal_to": 2}, r"method\.anneal_to: expected a number from 0 to 1, got 2"),
    ],
)
def test_settings_out_of_range_are_refused(method, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_method(method, settings)


def test_an_observation_is_held_out_for_ever_or_never():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 255, (2000, 8, 8, 3), np.uint8))
    for obs in (images, images.float(), torch.randn(2000, 4), torch.randint(0, 10_000, (2000,))):
        held_out = fractions({"a": obs}) < 0.1
        assert 0.05 < held_out.double().mean() < 0.15
        np.testing.assert_array_equal(held_out[5:9], fractions({"a": obs[5:9]}) < 0.1)


@pytest.mark.parametrize("low", [0.0, 10.0, -np.inf])
def test_the_critic_sees_actions_of_any_box(low):
    module = made(Box(low, low + 10 if np.isfinite(low) else np.inf, (1,), np.float64), risk=True)
    obs, actions = (
        torch.zeros(3, 5),
        torch.tensor([[low + 1], [low + 5], [low + 9]])
        if np.isfinite(low)
        else torch.tensor([[-3.0], [0.5], [4.0]]),
    )
    assert len(set(module.risk(obs, actions).tolist())) == 3
    assert module.actions(obs).dtype == torch.float32


@pytest.mark.usefixtures("ray_session")
def test_a_run_that_was_killed_fits_before_it_has_collected_again(tmp_path, built):  # noqa: F811
    first = built(cartpole(tmp_path, "thrifty_dagger", steps=25))
    for _ in range(2):
        first.train()
    again = built(cartpole(tmp_path, "thrifty_dagger", steps=25))
    assert again.behind
    assert again.catch_up()
    again.train()
    assert (again.round, again.env_steps) == (3, 300)


def test_who_cannot_take_over_is_refused_before_anything_starts(tmp_path):
    overrides = ["method.name=hg_dagger", "expert.oracle=scripted:cartpole"]
    with pytest.raises(ConfigError, match="there is watching:scripted:cartpole"):
        preflight(load_config("dagger-cartpole", overrides))
    with pytest.raises(ConfigError, match="needs an expert that acts"):
        cartpole(tmp_path, "safe_dagger", demonstrations="x.npz").expert(oracle=None).validate()
    with pytest.raises(ConfigError, match=r"in_halves is for the β-mixture"):
        cartpole(tmp_path, "safe_dagger").collection(in_halves=True).validate()
