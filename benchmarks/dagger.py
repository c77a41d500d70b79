"""DAgger to 95 % of the expert: `python -m benchmarks.dagger [--json] [CASE...]`.

CPU seconds of this process for collecting, asking, storing and fitting; neither start-up nor the episodes
that measure the return count. A run has reached the bar once two disjoint sets of 20 episodes are both above
it. Beside it `imitation`, in an environment of its own, with the same expert: ours, as it comes with
Tutelage, or one of the folder that TUTELAGE_EXPERTS names.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import peers
from benchmarks.common import Row, row, run
from expert_oracle.checkpoint import SHIPPED
from services.overrides import load_config
from services.settings import build_config

SEEDS = 3
FRACTION = 0.95


def reach_bar(preset: str, seed: int, overrides: Sequence[str]) -> dict[str, float]:
    """CPU seconds, labels and rounds of one run until it is as good as the bar."""
    sections = load_config(preset, [f"seed={seed}", "evaluation.evaluation_interval=null", *overrides])
    trainer = build_config(sections).build_trainer()
    sets = [range(1000, 1020), range(5000, 5020)]
    goals = []
    for seeds in sets:
        expert = float(trainer.measure(list(seeds), "oracle")[0].mean())
        goals.append(expert - (1 - FRACTION) * abs(expert))
    cpu = 0.0
    while trainer.round < 40:
        start = time.process_time()
        trainer.train()
        cpu += time.process_time() - start
        if all(
            trainer.measure(list(seeds))[0].mean() >= goal for seeds, goal in zip(sets, goals, strict=True)
        ):
            break
    figures = {"cpu_s": cpu, "labels": trainer.figures["expert_labels"], "rounds": trainer.round}
    trainer.stop()
    return figures


def published(name: str) -> list[str]:
    """Overrides that make a published expert the one to ask, where there are any."""
    folder = os.environ.get("TUTELAGE_EXPERTS")
    if folder is None:
        return []
    return [f"expert.oracle={folder}/expert.py:Expert", f"expert.arguments.path={folder}/{name}"]


def rows(name: str) -> Iterable[Row]:
    """Ours, medians of `SEEDS`, beside one run of the peer."""
    ours = [reach_bar(f"dagger-{name}", seed, published(name)) for seed in range(SEEDS)]
    shipped = None if published(name) else SHIPPED / f"{name}.safetensors"
    peer = peers.measure(f"dagger-{name}", expert=shipped)
    for key, unit, reach in (("cpu_s", "CPU-s", 4), ("labels", "labels", 1)):
        yield row(
            "dagger",
            f"{name} to 95 % of the expert",
            ours=statistics.median(run[key] for run in ours),
            against=peer["peer"],
            reference=peer[{"cpu_s": "value"}.get(key, key)],
            unit=unit,
            reach=reach,
            smaller_is_better=True,
        )


CASES: dict[str, Any] = {
    name: partial(rows, name) for name in ("cartpole", "lunarlander", "halfcheetah", "hopper")
}

if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    torch.set_num_threads(1)
    run(CASES)
