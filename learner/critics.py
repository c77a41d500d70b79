"""Two action-value functions side by side, and slow copies of them: the critics of SAC and TD3."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from learner.encoders import Encoder
from learner.mlp import EnsembleMLP
from tutelage.types import Tree

TWINS = 2


class Critics(nn.Module):
    """Q_1 and Q_2 of states and actions in units, -1..1 on each side of the middle of the Box; with targets
    that follow them slowly (Lillicrap et al., 2016; Fujimoto et al., 2018)."""

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self._made_of = observation_space, action_space, config
        self.encoder = Encoder(observation_space, config)
        sizes = [self.encoder.size + gym.spaces.flatdim(action_space), *config["fcnet_hiddens"], 1]
        self.net = EnsembleMLP(TWINS, sizes, config["fcnet_activation"], output_gain=1.0)
        self.target_encoder, self.target_net = deepcopy(self.encoder), deepcopy(self.net)
        for parameter in (*self.target_encoder.parameters(), *self.target_net.parameters()):
            parameter.requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.zeros(()))  # of the entropy's weight α

    def forward(self, obs: Tree, actions: Tensor) -> Tensor:
        """Q_i(s, a) [2, N] of actions [N, D]."""
        return self._values(self.encoder, self.net, obs, actions)

    def frozen(self, obs: Tree, actions: Tensor) -> Tensor:
        """The same with gradients for the actions alone."""
        return self._values(self.encoder, self.net, obs, actions, frozen=True)

    def target(self, obs: Tree, actions: Tensor) -> Tensor:
        """Q'_i(s, a) [2, N] of the slow copies."""
        return self._values(self.target_encoder, self.target_net, obs, actions)

    @staticmethod
    def _values(
        encoder: Encoder, net: EnsembleMLP, obs: Tree, actions: Tensor, *, frozen: bool = False
    ) -> Tensor:
        features = encoder(obs).detach() if frozen else encoder(obs)
        return net(torch.cat([features, actions], dim=-1), frozen=frozen).squeeze(-1)

    def encoders(self) -> list[Encoder]:
        return [self.encoder, self.target_encoder]

    @torch.no_grad()
    def follow(self, rate: float) -> None:
        """θ' ← θ' + rate (θ − θ')."""
        ours: list[Tensor] = [*self.encoder.parameters(), *self.net.parameters()]
        theirs: list[Tensor] = [*self.target_encoder.parameters(), *self.target_net.parameters()]
        get_ema_multi_avg_fn(1 - rate)(theirs, ours, 0)

    @torch.no_grad()
    def begin_anew(self) -> None:
        """Forget all values, as where the reward has changed beyond recognition; neither the weight of the
        entropy nor the moments of the observations."""
        fresh = Critics(*self._made_of)
        for name, new in fresh.named_parameters():
            if name != "log_alpha":
                self.get_parameter(name).copy_(new)
