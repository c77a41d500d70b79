"""Segments to ask about, cut out of rollouts as they come.

    pool = SegmentPool(length=50, per_rollout=40, capacity=2000, past_the_end=True, seed=0)
    pool.add(rollout)                    # consecutive rollouts of each runner
    segments = pool.newest(200)          # or pool.across_time(200)

A segment has what it takes to see it again: its episode's seed and the actions up to it. Segments whose
episode began before the first rollout that was seen are passed over. Where pictures were kept, segments are
cut from the environments that were drawn, and have theirs.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import tree

from tutelage.types import Array, Pictures, Rollout, Segment

OVERLAP = 2  # segments in which a step is on average, where there is room for as many
BEYOND = 0.25  # of an episode's segments, at most, run on after its end, where others fit into it


@dataclass(frozen=True)
class Stretch:
    """One episode's rows in a rollout. Made by: the pool. Eaten by: the pool."""

    slot: int
    start: int
    end: int
    seed: int
    before: Array  # [offset, ...] its actions in earlier rollouts
    terminated: bool

    @property
    def steps(self) -> int:
        return self.end - self.start


class SegmentPool:
    """Random segments of what was collected: the newest, and a sample of all that there ever were."""

    def __init__(
        self,
        *,
        length: int,
        per_rollout: int,  # segments cut from one rollout, at most
        capacity: int,  # segments kept of the newest, and as many across time
        past_the_end: bool,  # segments may run on after the end of the task
        seed: int = 0,
    ) -> None:
        self.length, self.per_rollout, self.past_the_end = length, per_rollout, past_the_end
        self._rng = np.random.default_rng([seed, 11])
        self._newest: deque[Segment] = deque(maxlen=capacity)
        self._sample: list[Segment] = []  # a reservoir (Vitter, 1985)
        self._seen = 0
        self.episodes, self.longest = 0, 0  # that were over, and the steps of the longest of them
        self._begun: dict[tuple[int, int], tuple[int, list[Array]]] = {}  # (runner, slot) -> seed, actions

    def __len__(self) -> int:
        return len(self._newest)

    def newest(self, n: int) -> list[Segment]:
        """The last `n` that were cut."""
        return list(self._newest)[-n:]

    def across_time(self, n: int) -> list[Segment]:
        """At most `n` of all that were ever cut, each as likely as any other."""
        chosen = self._rng.permutation(len(self._sample))[:n]
        return [self._sample[i] for i in chosen]

    def add(self, rollout: Rollout) -> None:
        """Cut a rollout's episodes at random places."""
        stretches = self._stretches(rollout)
        room = np.array([max(self._starts(one), 0) for one in stretches])
        fitting = int(min(self.per_rollout, OVERLAP * sum(-(-n // self.length) for n in room)))
        for _ in range(fitting):
            one = stretches[self._rng.choice(len(room), p=room / room.sum())]
            self._keep(self._cut(rollout, one, self._start(one)))

    def _starts(self, one: Stretch) -> int:
        """How many places there are where a segment may begin; an ended task's goes on."""
        if one.terminated and self.past_the_end:
            return one.steps
        return one.steps - self.length + 1

    def _start(self, one: Stretch) -> int:
        """One of the places, at random.

        Few from which a segment runs on after the end, where there are others: how long a task has been over
        is told at a glance, and teaches one number.
        """
        inside = max(0, one.steps - self.length + 1)
        beyond = self._starts(one) - inside
        if not inside or (beyond and self._rng.random() < min(BEYOND, beyond / one.steps)):
            return inside + int(self._rng.integers(beyond))
        return int(self._rng.integers(inside))

    def _keep(self, segment: Segment) -> None:
        self._newest.append(segment)
        self._seen += 1
        if len(self._sample) < (self._newest.maxlen or 0):
            self._sample.append(segment)
        elif (slot := int(self._rng.integers(self._seen))) < len(self._sample):
            self._sample[slot] = segment

    def _stretches(self, rollout: Rollout) -> list[Stretch]:
        """Those whose beginning is known; what goes on is remembered for the next rollout."""
        episodes, runner = rollout.episodes, rollout.provenance.runner
        found = []
        for i in range(len(episodes)):
            slot, start, end, seed = (
                int(column[i]) for column in (episodes.slot, episodes.start, episodes.end, episodes.seed)
            )
            known_seed, before = self._begun.pop((runner, slot), (None, []))
            if not episodes.offset[i]:
                before = []
            elif known_seed != seed or sum(map(len, before)) != episodes.offset[i]:
                continue
            if not episodes.done[i]:
                self._begun[runner, slot] = seed, [*before, rollout.actions[start:end, slot].copy()]
            else:
                self.episodes += 1
                self.longest = max(self.longest, int(episodes.offset[i]) + end - start)
            earlier = np.concatenate(before) if before else rollout.actions[:0, slot]
            terminated = bool(episodes.done[i] and rollout.terminated[end - 1, slot])
            if rollout.pictures is not None and slot >= rollout.pictures.drawn:
                continue
            if rollout.valid is None or rollout.valid[start:end, slot].all():
                found.append(Stretch(slot, start, end, seed, earlier, terminated))
        return found

    def _cut(self, rollout: Rollout, one: Stretch, at: int) -> Segment:
        """The segment from step `at` of the stretch on."""
        start = one.start + at
        end = min(start + self.length, one.end)
        missing = self.length - (end - start)
        rewards = np.concatenate([rollout.rewards[start:end, one.slot], np.zeros(missing, np.float32)])

        def padded(leaf: Array, last: Array | None = None) -> Array:
            part = leaf[start:end, one.slot]
            return np.concatenate([part, np.repeat(part[-1:] if last is None else last, missing, axis=0)])

        obs = tree.map_structure(padded, rollout.obs)
        ended = (rollout.final_t == end - 1) & (rollout.final_b == one.slot)
        if missing:
            obs = tree.map_structure(
                lambda leaf, final: padded(leaf, final[ended]), rollout.obs, rollout.final_obs
            )
        return Segment(
            obs=obs,
            actions=padded(rollout.actions),
            recipe=rollout.provenance.recipe,
            seed=one.seed,
            prefix=np.concatenate([one.before, rollout.actions[one.start : start, one.slot]]),
            rewards=rewards,
            played=self.length - missing if missing else None,
            pictures=seen(rollout.pictures, one.slot, start, end, ended) if rollout.pictures else None,
        )


def seen(pictures: Pictures, slot: int, start: int, end: int, ended: Array) -> tuple[bytes, ...]:
    """The pictures before each of these steps, and the one after: a final one, where one `ended` [F]."""
    last = pictures.final_obs[ended] if ended.any() else pictures.obs[end : end + 1, slot]
    return (*pictures.obs[start:end, slot], *last)


def first_states(segments: list[Segment]) -> Array:
    """Where segments begin, as vectors [N, D], standardised."""
    rows = [np.concatenate([np.ravel(leaf[0]) for leaf in tree.flatten(segment.obs)]) for segment in segments]
    return standardised(np.stack(rows).astype(np.float64))


def standardised(rows: Array) -> Array:
    """Columns of [N, D] with mean 0 and standard deviation 1; those that hardly vary are 0."""
    std = rows.std(0)
    return (rows - rows.mean(0)) / np.where(std > 1e-6, std, np.inf)
