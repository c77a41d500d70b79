"""What a policy thinks of itself: how much its members differ, whether it errs, what it risks."""

from __future__ import annotations

import abc
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learner.losses import Params
from tutelage.policy import half_range
from tutelage.types import Tree

LIMITS = ("doubt", "risk", "difference", "calm")
"""By which ThriftyDAgger's expert takes over and hands back."""


class SelfJudgement(abc.ABC):
    """The part of `learner.nets.PolicyModule` by which experts take over."""

    action_space: Any
    distribution: Any
    nvec: Any
    encoder: Any
    danger_net: nn.Module
    risk_net: nn.Module
    limits_of: Tensor  # [4] float32

    @abc.abstractmethod
    def policy(self, obs: Tree) -> Params:
        """Distribution parameters [N, P] of the policy."""

    @abc.abstractmethod
    def members(self, obs: Tree) -> Params:
        """Those of each member [M, N, P]."""

    def doubt(self, obs: Tree) -> Tensor:
        """How far the members are apart [N]: the variance of their actions, averaged over the components, in
        half ranges of a Box; of other spaces the variance of the probabilities, summed."""
        params = self.members(obs)
        if isinstance(params, tuple):
            return (params[0] / self._half_range(params[0])).var(0, correction=0).mean(-1)
        return self._probabilities(params).var(0, correction=0).sum(-1)

    def _probabilities(self, logits: Tensor) -> Tensor:
        if self.distribution == "bernoulli":
            return logits.sigmoid()
        parts = logits.split(list(self.nvec), dim=-1) if self.nvec else (logits,)
        return torch.cat([part.softmax(-1) for part in parts], dim=-1)

    def _half_range(self, like: Tensor) -> Tensor:
        space = self.action_space
        return torch.as_tensor(half_range(space.low, space.high)).to(like)

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Of a Box."""
        space = self.action_space
        return torch.as_tensor(space.low).to(like), torch.as_tensor(space.high).to(like)

    def difference(self, actions: Tensor, others: Tensor) -> Tensor:
        """How far actions [N, ...] are apart [N], as `tutelage.policy.difference`."""
        if isinstance(self.action_space, gym.spaces.Box):
            apart = ((actions - others) / self._half_range(actions)).square()
        else:
            apart = (actions != others).float()
        return apart.flatten(1).mean(-1) if apart.ndim > 1 else apart

    def actions(self, obs: Tree) -> Tensor:
        """The most likely actions [N, ...]; those of a Box within its bounds."""
        params = self.policy(obs)
        if isinstance(params, tuple):
            return params[0].clamp(*self._bounds(params[0]))
        if self.distribution == "bernoulli":
            return (params > 0).to(torch.int8)
        parts = params.split(list(self.nvec), dim=-1) if self.nvec else (params,)
        chosen = torch.stack([part.argmax(-1) for part in parts], dim=-1)
        return chosen if self.nvec else chosen[:, 0]

    def danger_logits(self, obs: Tree) -> Tensor:
        """Log-odds [N] that the policy's action is not the expert's; the encoder is not trained by it."""
        return self.danger_net(self.encoder(obs).detach()).squeeze(-1)

    def danger(self, obs: Tree) -> Tensor:
        """Their probability [N]."""
        return self.danger_logits(obs).sigmoid()

    def risk_logits(self, obs: Tree, actions: Tensor) -> Tensor:
        """Log-odds [N] of failure after `actions` [N, ...]; the encoder is not trained by it."""
        if isinstance(self.action_space, gym.spaces.Box):
            flat = actions.float()
            low, high = self._bounds(flat)
            middle = torch.where(torch.isfinite(low) & torch.isfinite(high), (low + high) / 2, 0.0)
            flat = (flat.clamp(low, high) - middle) / self._half_range(flat)
        elif self.distribution == "bernoulli":
            flat = actions.float()
        else:
            columns = actions.long().unbind(-1) if self.nvec else (actions.long(),)
            sizes = self.nvec or (int(self.action_space.n),)  # type: ignore[attr-defined]
            flat = torch.cat([F.one_hot(a, n) for a, n in zip(columns, sizes, strict=True)], dim=-1).float()
        return self.risk_net(torch.cat([self.encoder(obs).detach(), flat], dim=-1)).squeeze(-1)

    def risk(self, obs: Tree, actions: Tensor) -> Tensor:
        """Discounted probability of failure [N]."""
        return self.risk_logits(obs, actions).sigmoid()

    def limits(self) -> dict[str, float]:
        """What `set_limits` set; infinite before."""
        return dict(zip(LIMITS, self.limits_of.tolist(), strict=True))

    @torch.no_grad()
    def set_limits(self, **limits: Tensor) -> None:
        """Those of `LIMITS`."""
        self.limits_of.copy_(torch.stack([limits[name] for name in LIMITS]))
