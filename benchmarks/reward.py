"""The reward model's fit: `python -m benchmarks.reward [--json] [CASE...]`.

An ensemble of three networks of 2 × 64 on 700 comparisons of segments of 50 steps of HalfCheetah's sizes,
minibatches of 64, beside a bare torch loop with the same batched networks, loss and optimiser, and beside
`imitation`'s ensemble trainer, also with the networks of 2 × 32 that it comes with. `memory`: fits in
processes of their own to 1,000 and to 100,000 comparisons on the disk (1 GB in the folder for temporary
files).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from benchmarks import peers
from benchmarks.common import Row, interleaved, row, run
from benchmarks.learner import peak_mb
from learner.comparisons import Comparisons
from learner.losses import bradley_terry
from learner.reward_model import CARELESS, Compared, Fitting, RewardModel
from tutelage.types import Answer, EnvRecipe, Query, Segment

COMPARISONS, STEPS, MINIBATCH, PASSES, MEMBERS = 700, 50, 64, 10, 3
OBS, ACTIONS = 17, 6
FEW, MANY = 1_000, 100_000


def compared() -> Compared:
    """Random segments, the one with the larger sum of the first observation preferred."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((COMPARISONS, 2, STEPS, OBS), np.float32)
    actions = rng.uniform(-1, 1, (COMPARISONS, 2, STEPS, ACTIONS)).astype(np.float32)
    weights = np.eye(2, dtype=np.float32)[obs[..., 0].sum(-1).argmax(-1)]
    return Compared(obs, actions, weights, np.arange(COMPARISONS), np.zeros(actions.shape[:3], bool))


def reward_model(width: int = 64) -> RewardModel:
    spaces = gym.spaces.Box(-np.inf, np.inf, (OBS,)), gym.spaces.Box(-1, 1, (ACTIONS,))
    return RewardModel(*spaces, members=MEMBERS, hiddens=(width, width))


def learnt_from(data: Compared) -> np.ndarray:
    """Numbers of the comparisons that a member learns from: 1 − 1/e of them."""
    return np.flatnonzero(Fitting(data, 1, 0).counts[0].numpy())


def our_fit(data: Compared, width: int = 64) -> Callable[[], object]:
    model = reward_model(width)
    return lambda: model.fit(data, passes=PASSES, minibatch=MINIBATCH)


def bare_fit(data: Compared) -> Callable[[], object]:
    """The same networks, loss and optimiser in a loop, on tensors that are ready: nothing is held out,
    weighted, adapted or normalised. Members see as many comparisons as ours do."""
    kept = learnt_from(data)
    features = torch.from_numpy(np.concatenate([data.obs, data.actions], -1)[kept])  # [N, K, L, D]
    answers = torch.from_numpy(data.weights[kept])
    sizes = [(OBS + ACTIONS, 64), (64, 64), (64, 1)]
    weights = [nn.Parameter(torch.randn(MEMBERS, *size) / size[0] ** 0.5) for size in sizes]
    biases = [nn.Parameter(torch.zeros(MEMBERS, 1, size[1])) for size in sizes]
    optimiser = torch.optim.AdamW([*weights, *biases], lr=1e-3, weight_decay=1e-4, fused=True)

    def fit() -> None:
        for _ in range(PASSES):
            order = torch.randperm(len(answers))
            for rows in order.split(MINIBATCH):
                x = features[rows].flatten(0, 2).expand(MEMBERS, -1, -1)
                for i, (W, b) in enumerate(zip(weights, biases, strict=True)):
                    x = torch.baddbmm(b, torch.relu(x) if i else x, W)
                returns = x.view(MEMBERS, len(rows), 2, STEPS).sum(-1)
                loss = MEMBERS * bradley_terry(returns, answers[rows], careless=CARELESS).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

    return fit


def bare() -> Iterable[Row]:
    data = compared()
    count = PASSES * len(learnt_from(data))
    ours, loop = interleaved(our_fit(data), bare_fit(data))
    yield row(
        "reward",
        f"fit to {COMPARISONS} comparisons, {PASSES} passes",
        ours=count / ours,
        against="bare batched torch loop",
        reference=count / loop,
        unit="comparisons/CPU-s",
        reach=0.8,
    )


def beside_peer() -> Iterable[Row]:
    """Both draw a bootstrap sample of all comparisons a pass and member; theirs computes what it draws twice
    twice."""
    data = compared()
    count = PASSES * len(data)
    for width, reach in ((32, 20), (64, None)):
        (ours,) = interleaved(our_fit(data, width))
        peer = peers.measure(f"reward-{width}")
        yield row(
            "reward",
            f"fit to {COMPARISONS} comparisons, {PASSES} passes, 2 × {width}",
            ours=count / ours,
            against=peer["peer"],
            reference=peer["value"],
            unit=peer["unit"],
            reach=reach,
        )


def memory() -> Iterable[Row]:
    with tempfile.TemporaryDirectory() as folder:
        few, many = (peak_of_fit(Path(folder) / str(count), count) for count in (FEW, MANY))
    yield row(
        "reward",
        f"peak memory of a fit to {MANY:,} comparisons on disk",
        ours=many,
        against=f"{FEW:,}",
        reference=few,
        unit="MB",
        reach=0.8,
        smaller_is_better=True,
    )


def peak_of_fit(path: Path, count: int) -> float:
    """MB that a fresh process needs to open `count` comparisons and fit to them once."""
    fill(path, count)
    fit = f"from benchmarks.reward import fit_once; fit_once({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", fit], stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def fill(path: Path, count: int) -> None:
    """Answered questions about random segments, the same ones again and again."""
    data, comparisons = compared(), Comparisons(path)
    recipe, nothing = EnvRecipe("HalfCheetah-v5"), data.actions[0, 0, :0]
    options = [
        [Segment(obs, actions, recipe, 0, nothing) for obs, actions in zip(*pair, strict=True)]
        for pair in zip(data.obs, data.actions, strict=True)
    ]
    template = Answer("", data.weights[0], "benchmark", 0.0, 1.0)
    for start in range(0, count, COMPARISONS):
        numbers = range(start, min(start + COMPARISONS, count))
        comparisons.ask([Query(f"q{n}", "comparison", options[n % COMPARISONS]) for n in numbers])
        comparisons.hear(
            replace(template, query_id=f"q{n}", value=data.weights[n % COMPARISONS]) for n in numbers
        )


def fit_once(path: str) -> None:
    """Print the peak memory of this process."""
    torch.set_num_threads(1)
    reward_model().fit(Comparisons(Path(path)).compared(), minibatch=MINIBATCH)
    print(peak_mb())


CASES: dict[str, Any] = {"bare": bare, "peer": beside_peer, "memory": memory}

if __name__ == "__main__":
    torch.set_num_threads(1)
    run(CASES)
