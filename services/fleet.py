"""The fleet: the rollout actors, asked together, restarted where they die, more or fewer as a run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import ray

from tutelage.errors import ConfigError, OracleError, TrainingError, TutelageError
from tutelage.types import Array, Failure, Rollout, SampleRequest

Who = Literal["module", "oracle", "random"]


@dataclass(frozen=True)
class Reference:
    """A rollout that stays in the object store. Made on a runner; fetched by remote learners, never here."""

    rollout: ray.ObjectRef
    steps: int
    returns: Array  # [E] of the episodes that ended in it

    def env_steps(self) -> int:
        return self.steps

    def finished_returns(self) -> Array:
        return self.returns


Collected = Rollout | Reference


class Fleet:
    """RLlib's group of env runners, as one thing that collects and measures.

        rollouts = fleet.collect(request, explore=True)
        returns, lengths = fleet.measure(seeds, weights)

    `patience_s` is how long it waits for a first runner to come back after the last one died.
    """

    def __init__(
        self,
        group: Any,  # RLlib's EnvRunnerGroup
        *,
        local: bool,  # its only runner is in this process
        by_reference: bool,  # rollouts stay in the object store
        steps_per_fragment: int,
        max_version_lag: int,
        patience_s: float,
        restore: Callable[[], Any],  # tries to bring dead runners back
    ) -> None:
        self.group = group
        self.local = local
        self.by_reference = by_reference
        self.steps_per_fragment = steps_per_fragment
        self.max_version_lag = max_version_lag
        self.patience_s = patience_s
        self.restore = restore
        self.in_flight: dict[int, int] = {}  # actor -> version of the policy that it was asked to act with
        self.arrived: list[Collected] = []  # asynchronously, not handed out yet

    def __len__(self) -> int:
        return 1 if self.local else self.group.num_remote_env_runners()

    # Collecting

    def collect(self, request: SampleRequest, *, explore: bool) -> list[Collected]:
        """A fragment from each runner; the healthy ones make those of the others too.

        Raises OracleError if an expert failed (what else arrived waits for `drain`), TrainingError if no
        runner is left.
        """
        call = partial(sample, request=request, explore=explore, by_reference=self.by_reference)
        while (missing := len(self) - len(self.arrived)) > 0:
            self._take(self._until_some(lambda missing=missing: self._each(call, missing)))
        return self._hand_out()

    def collect_asynchronously(self, request: SampleRequest, *, explore: bool) -> list[Collected]:
        """As many steps as one fragment of each runner, of whatever has arrived, whoever it came from.

        Idle runners are set to work with `request` at once. A runner that acts with a policy
        `max_version_lag` updates old is waited for, and meanwhile nobody runs further ahead.
        """
        call = partial(sample, request=request, explore=explore, by_reference=self.by_reference)
        self._until_some(lambda: self._gather(call, request.version))
        return self._hand_out()

    def drain(self, *, wait: bool = True) -> list[Collected]:
        """Whatever was collected and not handed out, with its labels, once nothing is under way any more;
        without `wait` what is under way is left out.

        What an expert fails to label is left out; the others' labels are kept.
        """
        if wait:
            self._finish_on(None if self.local else self.group.healthy_env_runner_ids())
        return self._hand_out()

    def leave(self) -> None:
        """End the remote runners at once, whatever they wait for."""
        self.group._worker_manager.clear()

    def _finish_on(self, ids: Sequence[int] | None) -> None:
        """Let these runners end what they do, and keep it; None: the local one."""
        finish = partial(finished, by_reference=self.by_reference)
        if ids is None:
            rest = [finish(self.group.local_env_runner)]
        else:
            rest = self.group.foreach_env_runner(finish, local_env_runner=False, remote_worker_ids=list(ids))
            for actor, result in self.group.fetch_ready_async_reqs(tags="sample"):
                self.in_flight.pop(actor, None)
                rest.append(result)
        self.arrived += [one for part in rest for one in part if not isinstance(one, Failure)]

    def _take(self, results: Sequence[Sequence[Any]]) -> None:
        """Keep the rollouts among what runners answered; then raise OracleError if an expert failed."""
        flat = [result for part in results for result in part]
        self.arrived += [one for one in flat if not isinstance(one, Failure)]
        for one in flat:
            if isinstance(one, Failure):
                raise OracleError(one.error)

    def _hand_out(self) -> list[Collected]:
        collected, self.arrived = self.arrived, []
        return collected

    def _gather(self, call: Callable[[Any], Any], version: int) -> bool:
        """Take what is ready, set idle runners to work; whether there is enough to learn from."""
        ready = self.group.fetch_ready_async_reqs(tags="sample", timeout_seconds=0.1)
        for actor, _ in ready:
            self.in_flight.pop(actor, None)
        self._take([result for _, result in ready])
        healthy = set(self.group.healthy_env_runner_ids())
        busy = healthy & {
            actor for _, actor in self.group._worker_manager._in_flight_req_to_actor_id.values()
        }
        self.in_flight = {actor: v for actor, v in self.in_flight.items() if actor in busy}
        enough = sum(one.env_steps() for one in self.arrived) >= len(self) * self.steps_per_fragment
        lagging = any(version - v >= self.max_version_lag for v in self.in_flight.values())
        if enough and lagging:
            return False
        if idle := sorted(healthy - set(self.in_flight)):
            self.group.foreach_env_runner_async(call, tag="sample", remote_worker_ids=idle)
            self.in_flight |= dict.fromkeys(idle, version)
        return enough

    def _each(self, call: Callable[[Any], Any], at_most: int) -> list[Any]:
        """What `at_most` healthy runners answer; fewer if some die meanwhile."""
        if self.local:
            return [call(self.group.local_env_runner)]
        ids = self.group.healthy_env_runner_ids()[:at_most]
        return self.group.foreach_env_runner(call, local_env_runner=False, remote_worker_ids=ids)

    def _until_some(self, attempt: Callable[[], Any]) -> Any:
        """Repeat until there is a result; TrainingError when no runner has been there for `patience_s`."""
        alone_since: float | None = None
        while not (result := attempt()):
            if self.local or self.group.num_healthy_remote_env_runners() > 0:
                alone_since = None
                continue
            alone_since = alone_since or time.monotonic()
            if time.monotonic() - alone_since > self.patience_s:
                raise TrainingError(f"no env runner is left, and none came back in {self.patience_s:g} s")
            self.restore()
        return result

    # Measuring

    def measure(self, seeds: Sequence[int], weights: Any, who: Who = "module") -> tuple[Array, Array]:
        """Undiscounted returns [n] and lengths [n] of one whole episode a seed, shared among the runners."""
        done: dict[int, tuple[float, int]] = {}
        while missing := [seed for seed in seeds if seed not in done]:
            done |= self._until_some(lambda missing=missing: self._measure_some(missing, weights, who))
        returns, lengths = zip(*(done[seed] for seed in seeds), strict=True)
        return np.array(returns, np.float64), np.array(lengths, np.int64)

    def _measure_some(self, seeds: Sequence[int], weights: Any, who: Who) -> dict[int, tuple[float, int]]:
        """Return and length by seed, of those seeds whose runner lived through it."""
        ids = [] if self.local else self.group.healthy_env_runner_ids()
        shares = [seeds[i :: len(ids)] for i in range(min(len(ids), len(seeds)))] or [seeds]
        calls = [partial(outcomes, seeds=share, weights=weights, who=who) for share in shares]
        if self.local:
            results = [calls[0](self.group.local_env_runner)]
        elif not ids:
            return {}
        else:
            ids = ids[: len(calls)]
            results = self.group.foreach_env_runner(calls, local_env_runner=False, remote_worker_ids=ids)
        merged: dict[int, tuple[float, int]] = {}
        for result in results:
            if isinstance(result, Failure):
                raise OracleError(result.error)
            merged |= result
        return merged

    # Size

    def scale(self, runners: int, cpus_per_runner: float) -> None:
        """Have so many runners from now on; the newest leave first.

        Raises ConfigError where the cluster has no room for them: to wait for it would stop the run.
        """
        if runners < 1 or self.local:
            raise ConfigError("env_runners.num_env_runners can change only among numbers of at least 1")
        ids = sorted(self.group._worker_manager.actor_ids())
        if runners > len(ids) and ray.util.get_current_placement_group() is not None:
            raise ConfigError("a seed among several has the room that it began with; scale single runs")
        room = ray.available_resources().get("CPU", 0.0)
        if (runners - len(ids)) * cpus_per_runner > room:
            raise ConfigError(
                f"no room for {runners} env runners: {len(ids)} run, {room:g} CPUs are free and one takes "
                f"{cpus_per_runner:g}; add nodes to the cluster first"
            )
        if ids[runners:]:
            self._finish_on(ids[runners:])
        for actor in ids[runners:]:
            ray.kill(self.group._worker_manager.remove_actor(actor))
            self.in_flight.pop(actor, None)
        if runners > len(ids):
            self.group.add_workers(runners - len(ids))


# On a runner


def sample(
    runner: Any, *, request: SampleRequest, explore: bool, by_reference: bool
) -> list[Collected | Failure]:
    """Collect as requested. An exception would cost the actor and its reason: it is returned."""
    try:
        results = runner.sample(request=request, explore=explore)
    except Exception as error:
        return [failure(runner, error)]
    return [refer(one) if by_reference and isinstance(one, Rollout) else one for one in results]


def finished(runner: Any, *, by_reference: bool) -> list[Collected | Failure]:
    """The rollouts whose labels were still under way, once they have them."""
    return [
        refer(one) if by_reference and isinstance(one, Rollout) else one for one in runner.finish_labels()
    ]


def refer(rollout: Rollout) -> Reference:
    """Put a rollout into the object store."""
    return Reference(ray.put(rollout), rollout.env_steps(), rollout.finished_returns())


def outcomes(
    runner: Any, *, seeds: Sequence[int], weights: Any, who: Who
) -> dict[int, tuple[float, int]] | Failure:
    """Return and length by seed."""
    try:
        returns, lengths = runner.evaluate(seeds, explore=False, weights=weights, policy=who)
    except Exception as error:
        return failure(runner, error)
    return {seed: (float(r), int(n)) for seed, r, n in zip(seeds, returns, lengths, strict=True)}


def failure(runner: Any, error: Exception) -> Failure:
    """What went wrong on a runner, in one line."""
    words = str(error) if isinstance(error, TutelageError) else f"{type(error).__name__}: {error}"
    return Failure(
        f"env runner {runner.worker_index or 0}: {words}".splitlines()[0], runner.worker_index or 0
    )
