"""Whoever answers at random is found out, with or without questions in common."""

import math

import gymnasium as gym
import numpy as np
import pytest

from learner.reliability import reliabilities
from learner.reward_learner import FIRST_PASSES, LEAST_MINIBATCHES
from learner.reward_model import MINIBATCH, Compared, RewardModel

BOX = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
CARELESS = {"anna": 0.0, "bert": 0.4, "carl": 1.0, "dora": 0.1}


def answers(questions, *, shared, seed=0):
    """Each annotator's answers to the same questions, or to others each."""
    rng = np.random.default_rng(seed)
    total = questions if shared else questions * len(CARELESS)
    obs = rng.normal(size=(total, 2, 5, 2)).astype(np.float32)
    truth = obs[..., 0].sum(-1).argmax(-1)
    rows, weights, who = [], [], []
    for i, (name, careless) in enumerate(CARELESS.items()):
        for q in range(questions):
            row = q if shared else i * questions + q
            said = rng.integers(2) if rng.random() < careless else truth[row]
            rows.append(row)
            weights.append(np.eye(2, dtype=np.float32)[said])
            who.append(name)
    return Compared(obs, np.zeros((total, 2, 5, 2), np.float32), np.array(weights), np.array(rows)), who


def by_name(found, who):
    return {name: float(found[who.index(name)]) for name in CARELESS}


def test_those_who_agree_with_each_other_are_trusted():
    data, who = answers(150, shared=True)
    found = by_name(reliabilities(data, who, None), who)
    assert max(found["anna"], found["dora"]) < 0.2
    assert found["bert"] == pytest.approx(0.4, abs=0.15)
    assert found["carl"] > 0.7


def test_without_questions_in_common_the_reward_model_is_asked():
    data, who = answers(150, shared=False)
    model = RewardModel(BOX, BOX, seed=0)
    model.fit(
        data, passes=FIRST_PASSES * max(10, math.ceil(LEAST_MINIBATCHES / round(len(data) / MINIBATCH)))
    )
    found = by_name(reliabilities(data, who, model), who)
    assert found["anna"] < found["bert"] < found["carl"]
    assert found["carl"] > 0.5


def test_nobody_is_trusted_because_the_model_learnt_what_they_said():
    """Two annotators, many features, few answers: the members have their answers by heart."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(200, 2, 5, 8)).astype(np.float32)
    said = obs[..., 0].sum(-1).argmax(-1)
    said[100:] = rng.integers(0, 2, 100)
    weights = np.eye(2, dtype=np.float32)[said]
    data = Compared(obs, np.zeros((200, 2, 5, 2), np.float32), weights, np.arange(200))
    model = RewardModel(gym.spaces.Box(-np.inf, np.inf, (8,), np.float32), BOX, seed=0)
    model.fit(data, passes=FIRST_PASSES * LEAST_MINIBATCHES // round(len(data) / MINIBATCH))
    found = reliabilities(data, ["good"] * 100 + ["random"] * 100, model)
    assert found[0] < 0.15 < 0.25 < found[-1]


def test_nobody_is_condemned_for_one_answer():
    data, who = answers(1, shared=True)
    assert max(reliabilities(data, who, None)) < 0.5
