"""How far each annotator can be trusted: the probability of an answer at random, by expectation-maximisation.

The one-coin model of Dawid & Skene (1979): annotator a answers a question about K options at random with
probability ε_a, else picks the truth, which nobody sees. What the reward model thinks is the truth's prior
(as in Raykar et al., 2010, learning from crowds), so annotators are compared even where they share no
question. Only members are asked that were not fitted to the answers to a question: the others would say that
they are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from learner.reward_model import Compared, Fitting, RewardModel
from tutelage.types import Array

ROUNDS = 20
PRIOR = (1.0, 9.0)  # of ε: as if one answer in ten had been at random
MOST = 0.95


def reliabilities(compared: Compared, annotators: Sequence[str], model: RewardModel | None) -> Array:
    """ε [N] float32, of the annotator of each comparison. Ties say nothing of it."""
    K = compared.weights.shape[1]
    who, of = np.unique(np.asarray(annotators), return_inverse=True)
    questions, question = np.unique(compared.rows, return_inverse=True)
    prior = np.full((len(questions), K), 1.0 / K)
    if model is not None:
        prior = 0.9 * beliefs(compared, questions, model) + 0.1 / K
    decided = compared.weights.max(1) > compared.weights.mean(1) + 1e-6
    said = compared.weights.argmax(1)
    careless = np.full(len(who), PRIOR[0] / sum(PRIOR))
    for _ in range(ROUNDS):
        log_truth = np.log(prior)
        right, wrong = np.log(1 - careless + careless / K)[of], np.log(careless / K)[of]
        votes = np.where(np.arange(K) == said[:, None], right[:, None], wrong[:, None]) * decided[:, None]
        np.add.at(log_truth, question, votes)
        truth = np.exp(log_truth - log_truth.max(1, keepdims=True))
        truth /= truth.sum(1, keepdims=True)
        agrees = truth[question, said]  # that the answer is the truth
        lucky = careless[of] / K / (1 - careless[of] + careless[of] / K)  # and at random all the same
        at_random = (1 - agrees) + agrees * lucky
        total = np.bincount(of, at_random * decided, len(who)) + PRIOR[0]
        careless = (total / (np.bincount(of, decided, len(who)) + sum(PRIOR))).clip(1e-3, MOST)
    return careless[of].astype(np.float32)


@torch.no_grad()
def beliefs(compared: Compared, questions: Array, model: RewardModel) -> Array:
    """What the members expect [Q, K] of these questions, each of those held out of it; 1/K where of none."""
    K = compared.weights.shape[1]
    unanswered = np.zeros((len(questions), K), np.float32)
    data = Fitting(
        replace(compared, rows=questions, weights=unanswered, careless=None), model.members, model.seed
    )
    found = []
    for rows in data.all():
        expected = torch.softmax(model.returns(*data.rows(rows)[:3]), -1)  # [M, n, K]
        held_out = data.held_out[:, torch.from_numpy(rows), None]
        members = held_out.sum(0)
        mean = (expected * held_out).sum(0) / members.clamp(min=1)
        found.append(torch.where(members > 0, mean, 1 / K).double().numpy())
    return np.concatenate(found)
