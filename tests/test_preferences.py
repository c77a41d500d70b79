"""Learning from comparisons as a whole: asking by a schedule, waiting for people, going on after a kill."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from actors.collect import Collector
from actors.forward import random_actor
from expert_oracle.synthetic import Teacher
from expert_oracle.tasks import upright
from learner.methods.cpl import CPL
from learner.methods.preference import Preference
from learner.pairs import WAYS, choose, looks
from learner.reward_learner import SCHEDULES, RewardLearner, predicted
from services import preferences
from services.overrides import load_config
from services.preferences import LabelerSpec, Learnt, Preferences, trouble, until_heard
from services.settings import build_config, preflight
from tutelage.errors import ConfigError, TrainingError, TutelageError
from tutelage.proto.tutelage.v1.labeler_pb2 import StatsReply
from tutelage.types import EnvRecipe

CARTPOLE = EnvRecipe("CartPole-v1")


def settings(**changes):
    given: dict[str, Any] = {
        "comparisons": 60,
        "ask_until": 1000,
        "segment_length": 10,
        "batch": 5,
        "passes": 3,
    }
    given |= {"members": 2, "reward_hiddens": (16,), **changes}
    return Preference(**given).reward_settings()


def spaces():
    env = gym.make("CartPole-v1")
    return env.observation_space, env.action_space


def reward_learner(folder, **changes):
    return RewardLearner(settings(**changes), *spaces(), folder)


def rollouts(n=3, steps=60, envs=4):
    collector = Collector(CARTPOLE, envs, reproducible=True)
    act = random_actor(collector.envs.action_space, 0)
    return [collector.collect(act, steps) for _ in range(n)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_questions_are_spread_as_the_schedule_says_and_never_too_many(tmp_path, schedule):
    reward = reward_learner(tmp_path, schedule=schedule, first_share=0.25)
    reward.observe(rollouts(10))
    teacher, asked = Teacher(reward=upright), []
    for step in range(0, 1400, 100):
        queries = reward.ask(step)
        asked.append(len(queries))
        reward.hear(teacher.label(queries))
        reward.fit()
    assert asked[0] == 15
    assert all(n == 0 or n >= 5 or sum(asked[: i + 1]) == 60 for i, n in enumerate(asked))
    assert sum(asked) <= 60
    if schedule != "accuracy":
        assert sum(asked) == 60
    early = {"constant": 23, "accuracy": 23, "hyperbolic": 33, "sqrt": 33}[schedule]
    assert sum(asked[:5]) == pytest.approx(15 + early * 0.75, abs=11)
    assert len(reward.comparisons.open()) == 0


def test_the_first_answers_are_waited_for_and_later_ones_are_not(tmp_path):
    reward = reward_learner(tmp_path)
    reward.observe(rollouts())
    teacher = Teacher(reward=upright)
    first = reward.ask(0)
    reward.hear(teacher.label(first[:-1]))
    assert "reward_loss" not in reward.fit()
    assert not reward.ready
    reward.hear(teacher.label(first[-1:]))
    assert np.isfinite(reward.fit()["reward_loss"])
    assert reward.ready
    later = reward.ask(500)
    before = reward.fit()
    reward.hear(teacher.label(later[:1]))
    assert reward.fit()["comparisons"] == before["comparisons"] + 1


@pytest.mark.parametrize("way", WAYS)
def test_only_ways_that_need_a_reward_model_wait_for_one(tmp_path, way, monkeypatch):
    ways = []

    def chosen(way, *given, **more):
        ways.append(way)
        return choose(way, *given, **more)

    monkeypatch.setattr("learner.reward_learner.choose", chosen)
    reward = reward_learner(tmp_path, pairs=way)
    reward.observe(rollouts(1))
    reward.hear(Teacher(reward=upright).label(reward.ask(0)))
    reward.fit()
    reward.ask(500)
    assert ways == ["uniform" if way in ("disagreement", "entropy") else way, way]


def test_k_centre_knows_what_was_asked_before_a_restart(tmp_path):
    def looked(**changes):
        reward = reward_learner(tmp_path, pairs="k_centre", options=3, **changes)
        reward.observe(rollouts(1))
        return reward, reward.ask(0)

    first, queries = looked(comparisons=20)
    seen = np.stack([[looks(one.obs, one.actions, axis=0) for one in query.options[:2]] for query in queries])
    np.testing.assert_allclose(first._looks(), seen)
    again, more = looked(comparisons=40)
    assert len(queries) == len(more) == 5
    np.testing.assert_allclose(again._looks()[:5], seen)


class Slowly:
    """Preferences whose answers come one a look."""

    def __init__(self, *, ready, asked, answered):
        self.ready, self.asked, self.answered = ready, asked, answered - 1
        self.waits: list[bool] = []

    def advance(self, rollouts, env_steps, *, wait=False):
        self.answered += 1
        self.waits.append(wait)
        unanswered = float(self.asked - self.answered)
        figures = {"asked": float(self.asked), "unanswered": unanswered, "first_unasked": 0.0}
        return Learnt(self.ready or self.answered >= self.asked, None, figures)

    def call(self, name):
        return {"trouble": "; the labeler: its disk is full" * (self.answered == 3)}[name]


def test_who_waits_for_people_says_for_how_many_answers(monkeypatch):
    monkeypatch.setattr(preferences, "LOOK_S", 0.0)
    said: list[str] = []
    first = Slowly(ready=False, asked=4, answered=2)
    assert until_heard(first, [], 100, lambda: False, say=said.append).ready  # type: ignore[arg-type]
    assert said == [
        "waiting for 4 answers, 2 there",
        "waiting for 4 answers, 3 there; the labeler: its disk is full",
    ]
    later = Slowly(ready=True, asked=9, answered=4)
    until_heard(later, [], 200, lambda: False, most=3, say=said.append)  # type: ignore[arg-type]
    assert later.answered == 6
    until_heard(later, [], 200, lambda: True, most=0)  # type: ignore[arg-type]
    assert later.answered == 7  # it is to stop


@pytest.mark.parametrize(("most", "waits"), [(9, [False]), (3, [False, True, True])])
def test_a_policy_that_has_a_reward_waits_for_no_fit_but_while_too_many_are_unanswered(
    monkeypatch, most, waits
):
    monkeypatch.setattr(preferences, "LOOK_S", 0.0)
    side = Slowly(ready=True, asked=9, answered=4)
    until_heard(side, [], 200, lambda: False, heard=True, most=most)  # type: ignore[arg-type]
    assert side.waits == waits


def test_a_question_with_two_answers_does_not_stand_for_one_that_waits(tmp_path):
    """A labeler asks some questions twice: its share `overlap`."""
    reward = reward_learner(tmp_path)
    reward.observe(rollouts())
    *most, last = Teacher(reward=upright).label(reward.ask(0))
    reward.hear([*most, *(replace(one, annotator="bert") for one in most)])
    figures = reward.fit()
    assert (figures["comparisons"], figures["asked"], figures["unanswered"]) == (28, 15, 1)
    assert not reward.ready
    reward.hear([last])
    assert reward.fit()["unanswered"] == 0
    assert reward.ready


class Odd:
    """A labeler that is not one."""

    def __init__(self, says="nonsense"):
        self.says = says

    def label(self, queries):
        return [self.says for _ in queries] if self.says else queries[0].nothing


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("nonsense", "feedback.labeler .*Odd: its label.. gave a str, expected tutelage.types.Answer"),
        ("", r"feedback.labeler .*Odd: AttributeError: .*nothing.* \(test_preferences.py, line \d+\)"),
    ],
)
def test_what_is_wrong_with_a_labeler_of_ones_own_is_said(tmp_path, says, words):
    spec = LabelerSpec(f"{__file__}:Odd", {"says": says})
    asking = Preferences(settings(), spaces(), tmp_path, spec, seed=0)
    with pytest.raises(TutelageError, match=words):
        asking.advance(rollouts(), 100)


def test_what_keeps_a_labeler_from_asking_is_said():
    class Served:
        def __init__(self, **said):
            self.stats = lambda: StatsReply(**said)

    assert trouble(Served(counts={"open": 3, "dead": 0})) == ""
    assert trouble(Served(counts={"dead": 2})).startswith("; 2 cannot be asked, the labeler's operator page")
    assert trouble(Served(fault="no room on the disk")) == "; the labeler: no room on the disk"


def test_by_its_own_reward_all_segments_of_cartpole_tie_and_nothing_is_learnt_of_them(tmp_path):
    reward = reward_learner(tmp_path, terminal="ignored", comparisons=40, first_share=1.0)
    reward.observe(rollouts())
    queries = reward.ask(0)
    answers = Teacher().label(queries)
    assert all(answer.value.tolist() == [0.5, 0.5] and not answer.cannot_tell for answer in answers)
    reward.hear(answers)
    figures = reward.fit()
    assert figures["comparisons"] == 40
    spread = differences(reward).std()
    other = reward_learner(tmp_path / "flips", terminal="ignored", comparisons=40, first_share=1.0)
    other.comparisons.ask(queries)
    rng = np.random.default_rng(0)
    other.hear(replace(a, value=np.eye(2, dtype=np.float32)[rng.integers(2)]) for a in answers)
    other.fit()
    assert spread < 0.5 * differences(other).std()


def differences(reward):
    """By how much the first option's return is larger, to each member."""
    compared = reward.comparisons.compared()
    columns = torch.tensor(np.array(compared.obs)), torch.tensor(np.array(compared.actions))
    returns = reward.model.returns(*columns).detach().numpy()
    return returns[..., 0] - returns[..., 1]


def test_what_an_end_is_worth_is_learnt_from_who_saw_it(tmp_path):
    reward = reward_learner(tmp_path, segment_length=20, first_share=1.0, passes=8)
    reward.observe(rollouts(10))
    reward.hear(Teacher().label(reward.ask(0)))  # a step is worth 1, one after the end 0
    reward.fit()
    assert reward.model.ends_known.all()
    rewards = predicted(reward.model, rollouts(1)[0], relative_to_end=True)
    assert (rewards > 0).mean() > 0.95


class Nobody:
    """Is asked, and says nothing."""

    def __init__(self):
        self.asked = ()

    def label(self, queries):
        self.asked += tuple(query.id for query in queries)
        return []


def test_asking_goes_on_after_a_restart_with_the_same_questions(tmp_path):
    spec = LabelerSpec(f"{__file__}:Nobody")

    def made():
        one: Any = Preferences(settings(), spaces(), tmp_path, spec, seed=0)
        return one, one.labeler

    one, nobody = made()
    assert not one.advance(rollouts(), 0).ready
    first = nobody.asked
    assert len(first) == 15
    again, nobody = made()  # killed before anybody answered
    again.advance([], 0)
    assert nobody.asked == first
    again.advance(rollouts(), 10)
    assert nobody.asked == first


def test_scripted_teachers_err_at_other_questions_in_each_run_and_after_a_restart(tmp_path):
    rewards = np.random.default_rng(0).uniform(0, 1, (100, 2, 10))

    def mistakes(folder, run_seed, **arguments):
        spec = LabelerSpec("synthetic:mistake", {"mistake": 0.5, **arguments})
        teacher: Any = Preferences(settings(), spaces(), tmp_path / folder, spec, run_seed).labeler
        return [bool(teacher.weights(list(pair)).argmax() != pair.sum(1).argmax()) for pair in rewards]

    first = mistakes("a", 1)
    assert mistakes("b", 1) == first
    assert mistakes("c", 2) != first
    asking = reward_learner(tmp_path / "a")
    asking.observe(rollouts(1))
    asking.ask(0)
    assert mistakes("a", 1) != first
    assert mistakes("d", 1, seed=5) == mistakes("e", 2, seed=5)


def test_a_checkpoint_has_the_model_and_how_far_asking_was(tmp_path):
    reward = reward_learner(tmp_path)
    reward.observe(rollouts())
    reward.hear(Teacher(reward=upright).label(reward.ask(0)))
    reward.fit()
    again = reward_learner(tmp_path)
    again.set_state(reward.get_state())
    assert again.ready
    one = rollouts(1)[0]
    np.testing.assert_allclose(
        predicted(again.model, one, relative_to_end=False),
        predicted(reward.model, one, relative_to_end=False),
    )
    assert again.fit() == reward.fit()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["method.schedule=often"], "method.schedule: 'often' is not one of constant"),
        (["method.pairs=best"], "method.pairs: 'best' is not one of uniform"),
        (["method.terminal=death"], "method.terminal: expected 'judged'"),
        (["method.options=3", "method.candidates=2"], "method.options: 3 of 2 segments"),
        (["method.careless=1"], "method.careless"),
        (["method.segment_length=0"], "method.segment_length"),
        (["stop.comparisons=800"], "stop.comparisons can never be reached: method.comparisons is 700"),
        (["method.segment_length=129"], "segments of 129 steps do not fit into rollouts of 128"),
        (["stop.env_steps=null", "stop.rounds=3"], "method.ask_until: set it, or stop.env_steps"),
        (["feedback.labeler=null"], "method preference needs somebody who compares"),
        (["feedback.labeler=synthetic:orakle"], r"'orakle'; did you mean 'oracle'\?$"),
        (["feedback.labeler=humna"], "did you mean 'human'"),
        (["feedback.labeler=synthetic:oracle", "feedback.arguments.patience=1"], "feedback.arguments"),
        (
            ["feedback.arguments.discount=2"],
            r"^feedback.arguments: labeler synthetic:oracle: .* discount=2 is not from 0 to 1$",
        ),
        (["method.reward_lr=0"], r"method\.reward_lr: expected a number of at least"),
        (["method.reward_hiddens=[64, 0]"], r"method\.reward_hiddens: a layer of 0 units"),
        (["method.ask_until=0"], r"method\.ask_until: expected a number of at least 1, got 0"),
        (["method.pairs=disagreement", "method.members=1"], r"method\.pairs: one member .* method\.members"),
        (["method.warm_start=nowhere"], "method.warm_start: checkpoint 'nowhere' is no file"),
        (["feedback.max_reward_lag=-1"], "feedback.max_reward_lag"),
        (["feedback.drawn_envs=0"], "feedback.drawn_envs: expected a whole number of at least 1, got 0"),
        (["feedback.max_unanswered=-1"], "feedback.max_unanswered"),
    ],
)
def test_what_is_wrong_is_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        preflight(load_config("preference-pendulum", changes))


def test_answers_that_were_corrected_are_learnt_and_odd_ones_refused(tmp_path):
    reward = reward_learner(tmp_path, comparisons=10, first_share=1.0)
    reward.observe(rollouts())
    queries = reward.ask(0)
    answers = Teacher(reward=upright).label(queries)
    reward.hear(answers)
    reward.fit()
    before = [p.clone() for p in reward.model.parameters()]
    assert reward.fit()["comparisons"] == 10
    torch.testing.assert_close(before, [*reward.model.parameters()])
    reward.hear([replace(answers[0], value=1 - np.asarray(answers[0].value))])
    reward.fit()
    assert any(not torch.equal(a, b) for a, b in zip(before, reward.model.parameters(), strict=True))
    assert reward.comparisons.new_since(10) is None
    for odd in ([1.0, 0.0, 0.0], [np.nan, 1.0], [2.0, -1.0], 1):
        with pytest.raises(TrainingError, match=f"question {queries[1].id} with"):
            reward.hear([replace(answers[1], value=np.asarray(odd), annotator="odd")])


def test_accuracy_on_new_answers_is_not_of_old_ones_that_were_corrected(tmp_path, monkeypatch):
    reward = reward_learner(tmp_path, comparisons=40, first_share=0.5)
    reward.observe(rollouts())
    first = Teacher(reward=upright).label(reward.ask(0))
    reward.hear([replace(first[0], cannot_tell=True), *first[1:]])
    reward.fit()
    again = reward_learner(tmp_path, comparisons=40, first_share=0.5)
    again.set_state(reward.get_state())
    again.observe(rollouts())
    tested = []
    monkeypatch.setattr(again.model, "test", lambda data: tested.append(data.compared.rows) or (0.0, 0.5))
    new = Teacher(reward=upright).label(again.ask(900))
    again.hear([*new, *(replace(one, value=1 - np.asarray(one.value)) for one in first)])
    again.fit()
    assert sorted(tested[0]) == [0, *range(20, 20 + len(new))]  # nothing was learnt of the first before


def test_a_run_given_fewer_questions_than_were_asked_asks_none(tmp_path):
    before = reward_learner(tmp_path, comparisons=40, first_share=0.5)
    before.observe(rollouts())
    before.hear(replace(one, cannot_tell=True) for one in Teacher(reward=upright).label(before.ask(0)))
    after = reward_learner(tmp_path, comparisons=10, first_share=0.5)
    after.observe(rollouts())
    assert after.ask(10) == []


def test_where_nobody_could_tell_others_are_asked(tmp_path):
    reward = reward_learner(tmp_path, comparisons=20, first_share=0.25)
    reward.observe(rollouts())
    silent = [replace(one, cannot_tell=True) for one in Teacher(reward=upright).label(reward.ask(0))]
    reward.hear(silent)
    assert reward.fit()["first_unasked"]
    assert not reward.ready
    again = reward.ask(0)
    assert len(again) == 5
    reward.hear(Teacher(reward=upright).label(again))
    reward.fit()
    assert reward.ready


def test_where_no_episode_is_as_long_as_a_segment_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("learner.reward_learner.PATIENCE", 5)
    reward = reward_learner(tmp_path, terminal="ignored", segment_length=400)
    reward.observe(rollouts(1, steps=10))
    assert not reward.ask(0)
    reward.observe(rollouts(2))
    with pytest.raises(TrainingError, match=r"method\.segment_length: the longest of \d+ episodes had \d+ "):
        reward.ask(0)


def test_a_run_that_is_extended_goes_on_asking(tmp_path):
    short = reward_learner(tmp_path, comparisons=40, ask_until=1000)
    short.observe(rollouts(10))
    for step in range(0, 1001, 100):
        short.ask(step)
    assert short.comparisons.asked == 40
    long = reward_learner(tmp_path, comparisons=60, ask_until=2000)
    long.set_state(short.get_state())
    long.observe(rollouts(10))
    asked = [len(long.ask(step)) for step in range(1100, 2001, 100)]
    assert asked == [0, 0, 6, 0, 0, 6, 0, 0, 6, 2]


@pytest.mark.parametrize(("questions", "asked"), [(400, 36), (20, 0)])
def test_a_run_that_goes_on_may_be_given_other_numbers_of_questions(tmp_path, questions, asked):
    before = reward_learner(tmp_path, comparisons=40, ask_until=1000)
    before.observe(rollouts(10))
    for step in (0, 1000):
        before.hear(Teacher(reward=upright).label(before.ask(step)))
    before.fit()
    assert before.comparisons.asked == 40
    after = reward_learner(tmp_path, comparisons=questions, ask_until=2000)
    after.set_state(before.get_state())
    after.observe(rollouts(10))
    assert len(after.ask(1100)) == asked


def test_what_was_asked_before_the_first_checkpoint_counts(tmp_path):
    killed = reward_learner(tmp_path)
    killed.observe(rollouts(10))
    for step in range(0, 500, 100):
        killed.ask(step)
    before = killed.comparisons.asked
    again = reward_learner(tmp_path)
    again.observe(rollouts(10))
    asked = [len(again.ask(step)) for step in range(0, 1001, 100)]
    assert before + sum(asked) == 60
    assert sum(asked[:6]) == pytest.approx((60 - before) / 2, abs=5)


def test_without_a_reward_model_nothing_is_chosen_by_one():
    with pytest.raises(ConfigError, match=r"method\.pairs: disagreement needs a reward model"):
        CPL(pairs="disagreement")


def test_the_steps_over_which_to_ask_are_those_of_the_run():
    config = build_config(load_config("preference-pendulum", ["stop.env_steps=5000"]))
    assert isinstance(config.learning_method, Preference)
    assert config.learning_method.ask_until == 5000
