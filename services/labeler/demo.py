"""Something to try the page with: HalfCheetah by an expert beside HalfCheetah at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from actors.clips import episode
from actors.environments import make_env
from actors.replay import replay
from expert_oracle.loading import OracleSpec
from tutelage.types import Array, EnvRecipe, Query, Segment, Tree

if TYPE_CHECKING:
    from services.labeler.labeling import Labeling

ENV, EXPERT = "HalfCheetah-v5", "checkpoint:halfcheetah"
COMPARISONS = 40
STEPS = 40  # of a segment: two seconds
EPISODES = 4  # of the expert, and as many at random
LONGEST = 240  # steps of an episode that are played
Episode = tuple[int, Tree, Array, Array]  # seed, observations, actions, rewards


def fill(labeling: Labeling, n: int = COMPARISONS) -> str:
    """Ask `n` comparisons, the same ones whenever it is called. Says what there is to do."""
    ids = [f"demo-{number:03d}" for number in range(n)]
    if not all(name in labeling.queries for name in ids):
        labeling.submit(list(comparisons(ids)))
        return f"{n} comparisons are being filmed; the first can be answered now"
    done = sum(state in ("done", "dead", "withdrawn") for state in labeling.queue.states(ids).values())
    return f"the {n} comparisons of the demo are there already; {n - done} of them are still to be answered"


def comparisons(ids: Sequence[str]) -> Iterator[Query]:
    """A segment of the expert's and one at random, in an order by chance."""
    rng = np.random.default_rng(0)
    recipe = EnvRecipe(ENV)
    expert = OracleSpec(EXPERT).build()
    pools = [list(_episodes(recipe, expert.act)), list(_episodes(recipe, _Chance(recipe).act))]
    for name in ids:
        pair = [_segment(recipe, pool, rng) for pool in pools]
        if rng.random() < 0.5:
            pair.reverse()
        context = {"prompt": "Which one runs better?"}
        yield Query(name, "comparison", pair, context)


class _Chance:
    def __init__(self, recipe: EnvRecipe) -> None:
        env = make_env(recipe)
        self._space = env.action_space
        self._space.seed(0)
        env.close()

    def act(self, obs: Tree) -> Array:
        return np.stack([self._space.sample() for _ in obs])


def _episodes(recipe: EnvRecipe, act: object) -> Iterator[Episode]:
    for seed in range(EPISODES):
        actions = episode(act, recipe, seed, LONGEST)  # type: ignore[arg-type]
        played = replay(recipe, seed, actions)
        yield seed, played.obs, played.actions, played.rewards


def _segment(recipe: EnvRecipe, pool: list[Episode], rng: np.random.Generator) -> Segment:
    seed, obs, actions, rewards = pool[rng.integers(len(pool))]
    start = int(rng.integers(0, len(actions) - STEPS))
    end = start + STEPS
    return Segment(
        obs[start:end], actions[start:end], recipe, seed, actions[:start], rewards=rewards[start:end]
    )
