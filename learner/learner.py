"""The learner: rollouts in, weights out. RLlib's TorchLearner with a plain minibatch loop.

What a method decides is in `learner.methods`; here is what all share: the dataset, tensors prepared once per
update, fused Adam, gradient clipping, learning-rate schedules, several learners with equal shards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
import tree
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor

from expert_oracle.checkpoint import PolicyFile, load_checkpoint
from learner.comparisons import Comparisons
from learner.dataset import Dataset
from learner.demonstrations import load_demonstrations
from learner.losses import nearest_distance
from learner.methods._base import Columns, Method, Replaying, each
from learner.nets import PolicyModule
from learner.recent import Recent
from learner.reward_learner import make_model, mean_rewards, predicted
from learner.reward_model import Compared, RewardModel, rows_at_once
from learner.reward_scale import RewardScale
from tutelage.errors import ConfigError, TrainingError
from tutelage.policy import MLPPolicy
from tutelage.types import Array, Rollout, Tree

CHUNK_ROWS = 65_536  # rows of the dataset that are in memory at once
SETTLING_ROWS = 4_096
NEIGHBOURS = 1_024  # of what was collected, by which the novelty of an observation is told
VALUE_ROWS = 4_096  # observations in one forward without gradients


class MethodLearner(TorchLearner):
    """Runs any method: `config.learning_method`, in `config.run_directory`, with RLlib's own settings."""

    def build(self) -> None:
        if not self.config.num_gpus_per_learner:
            cpus = self.config.num_cpus_per_learner
            torch.set_num_threads(int(cpus) if isinstance(cpus, int | float) and cpus >= 1 else 1)
        super().build()
        self.method: Method = self.config.learning_method  # type: ignore[attr-defined]
        self.reward_scale = RewardScale()
        self.dataset: Dataset | None = None
        self.recent: Recent | None = None
        self.reward_model: RewardModel | None = None
        settings = self.config.reward_settings()  # type: ignore[attr-defined]
        if settings is not None and settings.fits:
            spaces = self.policy.observation_space, self.policy.action_space
            self.reward_model = make_model(settings, *spaces, self.config.seed or 0)  # type: ignore[arg-type]
        self.rewarded = False  # the reward model has been fitted
        if self.method.recent_rows:
            self.recent = Recent(self.method.recent_rows)
        if isinstance(self.method, Replaying):
            folder = Path(self.config.run_directory) / "replay" / str(self._rank())  # type: ignore[attr-defined]
            self.recent = Recent(self.method.replay, folder)
        if begin_with := getattr(self.method, "warm_start", None):
            self.policy.begin_with(warm_policy(begin_with))
        if self.method.learns_from == "dataset":
            self.dataset = self._open_dataset(Path(self.config.run_directory) / "dataset")  # type: ignore[attr-defined]

    def _open_dataset(self, path: Path) -> Dataset:
        """The run's dataset: written by the first learner, read by all."""
        self._by_the_first(lambda: self._begin_dataset(path))
        return Dataset(path, writable=self._is_first())

    def _begin_dataset(self, path: Path) -> None:
        dataset = Dataset(path)
        demonstrations = getattr(self.method, "demonstrations", None)
        if demonstrations and (key := f"file:{demonstrations}") not in dataset.keys:
            dataset.append_demonstrations(load_demonstrations(demonstrations), key=key)

    @property
    def policy(self) -> PolicyModule:
        return self.module[DEFAULT_MODULE_ID]  # type: ignore[return-value]

    # RLlib's hooks

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Adam on all parameters as one vector: for small networks that takes a quarter of the time."""
        parameters = self.get_parameters(self.module[module_id])
        vector = as_one_vector([one for one in parameters if one.requires_grad])  # type: ignore[union-attr]
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.Adam([vector], eps=1e-5, fused=True),
            params=[vector],
            lr_or_lr_schedule=config.lr,
        )

    def _make_modules_ddp_if_necessary(self) -> None:
        """Take the first learner's weights; one all-reduce a minibatch then does what DDP would."""
        if self._world() > 1:
            for tensor in [*self.policy.parameters(), *self.policy.buffers()]:
                dist.broadcast(tensor.data, src=0)

    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component("reward_scale", components, not_components):
            state["reward_scale"] = self.reward_scale.get_state()
            state["rewarded"] = self.rewarded
            state["replayed"] = 0 if self.recent is None else self.recent.added
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if "reward_scale" in state:
            self.reward_scale.set_state(state["reward_scale"])
            self.rewarded = state["rewarded"]
        if isinstance(self.method, Replaying) and self.recent is not None:
            self.recent.go_on(state.get("replayed", 0))

    def compute_loss_for_module(self, *, batch: Columns, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """RLlib's name for the loss of one minibatch."""
        return self.method.loss(self.policy, batch)[0]

    def update(  # type: ignore[override]
        self,
        rollouts: Sequence[Rollout | ray.ObjectRef],
        *,
        key: str,
        seed: int,
        env_steps: int,
        round: int | None = None,
        reward: Any = None,
    ) -> dict[str, float]:
        """Learn from `rollouts`, and for dataset methods from all before them.

        `key` names the rollouts, so that they are stored once even if they are sent twice; `round` is the one
        that they complete; `reward` are weights of the reward model, or a reference to them. Returns means
        over the minibatches of what the method reports, `minibatches`, and what a dataset counts where there
        is one.
        """
        self.before_gradient_based_update(timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: env_steps})
        self._weights_seq_no += 1
        if reward is not None and self.reward_model is not None:
            weights = ray.get(reward) if isinstance(reward, ray.ObjectRef) else reward
            self.reward_model.load_state_dict(weights)
            if not self.rewarded:
                self.method.reward_begins(self.policy)
                self.get_optimizer(DEFAULT_MODULE_ID).state.clear()  # moments of another loss
                self._make_modules_ddp_if_necessary()  # what it drew anew is the same for all
            self.rewarded = True
        if self.dataset is None:
            chunks_of = {
                "rollouts": self._chunks_of_rollouts,
                "comparisons": self._chunks_of_comparisons,
                "replay": self._chunks_of_replay,
            }[self.method.learns_from]
            chunks = chunks_of(fetched(rollouts), seed=seed)
            figures = self._descend(minibatches(chunks, self._minibatch_size()))
        else:
            self.store(rollouts, key=key, round=round)
            figures = self._descend(self._with_recent(rollouts, self.dataset, seed=seed))
        self.after_gradient_based_update(timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: env_steps})
        if self.dataset is not None:
            figures |= {
                "dataset": len(self.dataset),
                "expert_labels": self.dataset.labels,
                "dataset_steps": self.dataset.steps,
                "attended_steps": self.dataset.attended,
                "takeovers": self.dataset.takeovers,
            }
        return figures

    def store(
        self, rollouts: Sequence[Rollout | ray.ObjectRef], *, key: str, round: int | None = None
    ) -> None:
        """D ← D ∪ D_i, written by the first learner. All learners have to be asked for it."""
        dataset = self.dataset
        assert dataset is not None
        self._by_the_first(lambda: dataset.append(fetched(rollouts), key=key, round=round))
        if not self._is_first():
            dataset.refresh()

    # Data

    def _chunks_of_dataset(self, dataset: Dataset, *, seed: int) -> Iterator[Columns]:
        """Shuffled passes over this learner's share of D."""
        self._set_norms(dataset)
        for chunk in dataset.batches(
            rows=CHUNK_ROWS,
            seed=seed,
            epochs=self.config.num_epochs or 1,
            rank=self._rank(),
            world=self._world(),
        ):
            yield each(self.tensor, chunk)

    def _set_norms(self, dataset: Dataset) -> None:
        names = tree.flatten(dataset.obs_structure)
        moments = dataset.moments()
        for i, norms in self.policy.norms():
            of_leaf = moments[names[i]]
            for norm in norms:
                norm.set(of_leaf.count, self.tensor(of_leaf.mean), self.tensor(of_leaf.var))

    def _with_recent(
        self, rollouts: Sequence[Rollout | ray.ObjectRef], dataset: Dataset, *, seed: int
    ) -> Iterator[Columns]:
        """Minibatches of D; with as many of the newest transitions, where the method wants them."""
        chunks = minibatches(self._chunks_of_dataset(dataset, seed=seed), self._minibatch_size())
        if self.recent is None:
            yield from chunks
            return
        for rollout in fetched(rollouts):
            self.recent.add(rollout)
        if not len(self.recent):  # a resumed run that has not collected yet
            yield from chunks
            return
        rng = np.random.default_rng([seed, 1, self._rank()])
        for minibatch in chunks:
            yield {**minibatch, "recent": self._recently(len(minibatch["actions"]), rng)}
        rng = np.random.default_rng([seed, 2])  # the same for all learners
        with torch.no_grad():
            sample = each(self.tensor, dataset.sample(SETTLING_ROWS, rng))
            self.method.settle(self.policy, {**sample, "recent": self._recently(SETTLING_ROWS, rng)})

    def _recently(self, rows: int, rng: np.random.Generator) -> Columns:
        assert self.recent is not None
        return each(self.tensor, self.recent.sample(rows, rng))

    def _minibatch_size(self) -> int:
        return self.config.minibatch_size or CHUNK_ROWS

    def _chunks_of_rollouts(self, rollouts: Sequence[Rollout], *, seed: int) -> Iterator[Columns]:
        """Shuffled passes over this learner's share of the newest rollouts, labelled by the method.

        Every learner labels all of them and takes every `world`-th row, so that all see the same moments and
        take equally many steps.
        """
        new = self._norms_are_new()
        if new:
            self._merge_norms(rollouts)
        labelled = [self.method.label(rollout, self) for rollout in rollouts]
        columns = tree.map_structure(lambda *parts: torch.cat(parts), *labelled)
        rows = len(tree.flatten(columns)[0]) // self._world() * self._world()
        share = tree.map_structure(lambda x: x[self._rank() : rows : self._world()], columns)
        generator = np.random.default_rng(seed)
        for _ in range(self.config.num_epochs or 1):
            order = self.tensor(generator.permutation(rows // self._world()))
            yield each(lambda x, order=order: x.index_select(0, order), share)
        if not new:
            self._merge_norms(rollouts)

    def _chunks_of_comparisons(self, rollouts: Sequence[Rollout], *, seed: int) -> Iterator[Columns]:
        """Shuffled passes over this learner's share of what was compared; the rollouts' observations are
        what is normalised by."""
        new = self._norms_are_new()
        if new:
            self._merge_norms(rollouts)
        comparisons = Comparisons(Path(self.config.run_directory) / "preferences")  # type: ignore[attr-defined]
        answers = self._least(len(comparisons))  # more may come while learners read them
        if answers:  # all may have been taken back
            yield from self._chunks_of(comparisons.compared(), answers, seed=seed)
        if not new:
            self._merge_norms(rollouts)

    def _chunks_of(self, compared: Compared, answers: int, *, seed: int) -> Iterator[Columns]:
        """Shuffled passes over this learner's share of so many answers."""
        assert compared.ended is not None
        share = np.arange(answers // self._world() * self._world())[self._rank() :: self._world()]
        rows = max(1, rows_at_once(compared.obs, leading=3) // int(np.prod(compared.actions.shape[1:3])))
        generator = np.random.default_rng(seed)
        for _ in range(self.config.num_epochs or 1):
            order = generator.permutation(share)
            for part in (order[i : i + rows] for i in range(0, len(order), rows)):
                questions = compared.rows[part]
                yield {
                    "obs": each(lambda x, questions=questions: self.tensor(x[questions]), compared.obs),
                    "actions": self.tensor(compared.actions[questions]),
                    "weights": self.tensor(compared.weights[part]),
                    "ended": self.tensor(compared.ended[questions]),
                }

    def _chunks_of_replay(self, rollouts: Sequence[Rollout], *, seed: int) -> Iterator[Columns]:
        """As many rows of all that was collected as the new steps are worth, relabelled by the method: obs,
        next_obs, actions as -1..1, reward, goes_on (0 where the episode ended, else 1), and noise [2, D] for
        two actions each."""
        method, replay = self.method, self.recent
        assert isinstance(method, Replaying)
        assert replay is not None
        for rollout in rollouts:
            replay.add(rollout)
        if rollouts:
            self._merge_norms(rollouts)
        if self._least(len(replay)) < method.first_steps:
            return
        steps = sum(rollout.env_steps() for rollout in rollouts)
        left = round(method.updates_per_step * steps / self._world())
        rng = np.random.default_rng([seed, 1, self._rank()])
        size = self._minibatch_size()
        most = max(1, CHUNK_ROWS // size)
        while left > 0:
            rows = min(left, most) * size
            left -= most
            columns = method.relabelled(replay.sample(rows, rng), self)
            noise = rng.standard_normal((rows, 2, *columns["actions"].shape[1:]), np.float32)
            yield {
                **{name: each(self.single, columns[name]) for name in ("obs", "next_obs", "reward")},
                "actions": self.policy.units(self.single(columns["actions"])),
                "goes_on": 1 - self.tensor(columns["terminated"]).float(),
                "noise": self.tensor(noise),
            }

    def _norms_are_new(self) -> bool:
        return any(float(norm.count) == 0 for _, norms in self.policy.norms() for norm in norms)

    def _merge_norms(self, rollouts: Sequence[Rollout]) -> None:
        """Frozen while these rollouts are learned from; the next ones are collected with the new moments."""
        for i, norms in self.policy.norms():
            leaves = [tree.flatten(rollout.obs)[i][:-1] for rollout in rollouts]
            x = torch.cat([self.tensor(leaf.reshape(-1, leaf.shape[-1])) for leaf in leaves])
            for norm in norms:
                norm.merge(x)

    def tensor(self, array: np.ndarray) -> Tensor:
        """`array` on the learner's device; what comes out of the object store is read-only and is copied."""
        tensor = torch.from_numpy(array) if array.flags.writeable else torch.tensor(array)
        return tensor.to(self._device)

    def single(self, array: np.ndarray) -> Tensor:
        """The same; of double precision, in single."""
        tensor = self.tensor(array)
        return tensor.float() if tensor.dtype == torch.float64 else tensor

    # What a method's `label` may ask (learner.methods._base.Critic)

    @torch.no_grad()
    def values(self, obs: Tree, *, leading: tuple[int, ...]) -> Tensor:
        """Values [*leading] of observations [*leading, ...]."""
        flat = tree.map_structure(lambda leaf: leaf.reshape(-1, *leaf.shape[len(leading) :]), obs)
        starts = range(0, math.prod(leading), VALUE_ROWS)
        parts = (each(lambda leaf, i=i: self.tensor(leaf[i : i + VALUE_ROWS]), flat) for i in starts)
        return torch.cat([self.policy.value(part) for part in parts]).unflatten(0, leading)

    def scale_rewards(self, rollout: Rollout, gamma: float) -> Tensor:
        """Rewards [T, B] over the running standard deviation of the discounted return."""
        return self.tensor(rollout.rewards / np.float32(self.reward_scale.update(rollout, gamma)))

    def updates(self) -> int:
        """Updates that the policy has had before this one."""
        return self._weights_seq_no - 1

    def learnt_rewards(self, rollout: Rollout, *, relative_to_end: bool) -> Array:
        """What the reward model makes of a rollout's steps [T, B]."""
        assert self.reward_model is not None
        return predicted(self.reward_model, rollout, relative_to_end=relative_to_end)

    def mean_rewards(self, obs: Tree, actions: Array, *, relative_to_end: bool) -> Array:
        """What the reward model makes of steps [N]."""
        assert self.reward_model is not None
        return mean_rewards(self.reward_model, obs, actions, relative_to_end=relative_to_end)

    def has_reward(self) -> bool:
        """Whether there is a reward model that was fitted to anything."""
        return self.rewarded

    @torch.no_grad()
    def novelty(self, obs: Tree, *, k: int) -> Array:
        """How far observations [N, ...] are from the k-th nearest of what was collected [N], as features."""
        assert self.recent is not None
        among = self.recent.sample(NEIGHBOURS, np.random.default_rng([len(self.recent), 3]))["obs"]
        features, others = (self.policy.encoder(each(self.tensor, one)) for one in (obs, among))
        return nearest_distance(features, others, k=k).cpu().numpy()

    def ends_are_judged(self) -> bool:
        """Whether the reward model knows what comes after the end of a task."""
        return self.reward_model is not None and bool(self.reward_model.ends_known.any())

    # Descent

    def _descend(self, batches: Iterator[Columns]) -> dict[str, float]:
        """One optimiser step a minibatch; means of the method's figures over the minibatches."""
        epochs, minibatch_size = self.config.num_epochs or 1, self._minibatch_size()
        optimiser = self.get_optimizer(DEFAULT_MODULE_ID)
        gradient: Any = self._optimizer_parameters[optimiser][0].grad  # type: ignore[union-attr]
        lr = self._get_optimizer_lr(optimiser)
        sums: dict[str, Tensor] = {}
        steps = 0
        for minibatch in batches:
            if self.dataset is not None:
                progress = min(1.0, steps * minibatch_size / (epochs * len(self.dataset) / self._world()))
                self._set_optimizer_lr(optimiser, lr * self.method.lr_share(progress))
            loss, figures = self.method.loss(self.policy, minibatch)
            self._descend_once(loss, optimiser, gradient)
            if isinstance(self.method, Replaying):
                self.method.stepped(self.policy)
            steps += 1
            for name, value in figures.items():
                sums[name] = sums[name] + value if name in sums else value
        means = {name: float(total) / steps for name, total in sums.items()}
        if not all(map(np.isfinite, means.values())):
            raise TrainingError(f"the loss diverged: {means}; try a smaller training.lr")
        return {**means, "minibatches": steps}

    def _descend_once(self, loss: Tensor, optimiser: torch.optim.Optimizer, gradient: Tensor) -> None:
        """A step against the gradient, which is the mean over all learners, clipped."""
        gradient.zero_()
        loss.backward()
        if self._world() > 1:
            dist.all_reduce(gradient)
            gradient /= self._world()
        if self.config.grad_clip is not None:
            gradient *= (self.config.grad_clip / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp(max=1)
        optimiser.step()

    def _world(self) -> int:
        return max(1, self.config.num_learners or 0)

    def _rank(self) -> int:
        return dist.get_rank() if self._world() > 1 else 0

    def _least(self, number: int) -> int:
        """Of all learners' numbers, who have to take equally many steps."""
        if self._world() == 1:
            return number
        least = torch.tensor(number, device=self._device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        return int(least)

    def _is_first(self) -> bool:
        return self._rank() == 0

    def _by_the_first(self, work: Callable[[], object]) -> None:
        """Have the first learner do it while the others wait; where it fails, all of them raise."""
        error: Exception | None = None
        if self._is_first():
            try:
                work()
            except Exception as caught:
                error = caught
        failed = torch.tensor(float(error is not None), device=self._device)
        if self._world() > 1:
            dist.broadcast(failed, src=0)
        if error is not None:
            raise error
        if failed:
            raise TrainingError("the first learner could not write the dataset")


def warm_policy(place: str) -> MLPPolicy:
    """The policy of a run, a file or a shipped expert. Raises ConfigError where there is none of an MLP."""
    try:
        found = load_checkpoint(place.removeprefix("checkpoint:"))
    except ConfigError as error:
        raise ConfigError(f"method.warm_start: {error}") from None
    if not isinstance(found, PolicyFile):
        raise ConfigError(f"method.warm_start: {place} is no plain MLP, {type(found).__name__}")
    return found.policy


def fetched(rollouts: Sequence[Rollout | ray.ObjectRef]) -> list[Rollout]:
    """Rollouts, those that lie in the object store too."""
    return [ray.get(one) if isinstance(one, ray.ObjectRef) else one for one in rollouts]


def minibatches(chunks: Iterator[Columns], size: int) -> Iterator[Columns]:
    """Slices of `size` rows of each chunk; what is left at its end counts if it is at least half of that."""
    for chunk in chunks:
        rows = len(tree.flatten(chunk)[0])
        step = min(size, rows)
        for start in range(0, rows, step):
            if rows - start >= step / 2:
                yield {name: rows_of(column, slice(start, start + step)) for name, column in chunk.items()}


def rows_of(column: Tree, part: slice) -> Tree:
    """`column[part]` of every leaf."""
    return column[part] if isinstance(column, Tensor) else each(lambda x: x[part], column)


def as_one_vector(params: Sequence[Tensor]) -> Tensor:
    """A vector of which all parameters are views from now on, their gradients views of its gradient."""
    vector = torch.cat([param.detach().flatten() for param in params])
    vector.grad = torch.zeros_like(vector)
    sizes = [param.numel() for param in params]
    for param, part, gradient in zip(params, vector.split(sizes), vector.grad.split(sizes), strict=True):
        param.data, param.grad = part.view_as(param), gradient.view_as(param)
    return vector


def metrics_of(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Figures of several learners as one: the mean of what differs, the first of what is common."""
    first = results[0]
    return {name: float(np.mean([result[name] for result in results])) for name in first}
