"""Observations as features: vectors normalised by what was seen, images through RLlib's convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from ray.rllib.core.models.catalog import Catalog
from ray.rllib.core.models.configs import CNNEncoderConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import ConfigError
from tutelage.types import Tree

OBS_CLIP = 10.0


class ObservationNorm(nn.Module):
    """(x − mean) / std over all that was seen, clipped to ± OBS_CLIP. The moments travel with the weights."""

    mean: Tensor
    var: Tensor
    std: Tensor  # of `var`, but 1 where a feature hardly varies
    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("var", torch.ones(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).clamp(-OBS_CLIP, OBS_CLIP)

    @torch.no_grad()
    def set(self, count: float, mean: Tensor, var: Tensor) -> None:
        """Use these moments; features that hardly vary are only shifted."""
        self.count.fill_(count)
        self.mean.copy_(mean)
        self.var.copy_(var.clamp(min=0))
        std = self.var.sqrt()
        self.std.copy_(torch.where(std > 1e-4, std, torch.ones_like(std)))

    @torch.no_grad()
    def merge(self, x: Tensor) -> None:
        """Take the observations `x` [N, D] into account (Chan et al., 1979, parallel variance)."""
        n, mean, var = len(x), x.double().mean(0), x.double().var(0, unbiased=False)
        old = float(self.count)
        if old == 0:
            return self.set(n, mean, var)
        total = old + n
        delta = mean - self.mean
        merged = (self.var.double() * old + var * n + delta**2 * old * n / total) / total
        self.set(total, self.mean + delta * n / total, merged)


def is_flat(space: gym.Space) -> bool:
    """A float Box of one axis: what an MLP takes as it is."""
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.dtype.kind == "f"


class LeafEncoder(nn.Module):
    """Features [N, size] of one leaf of an observation: images by RLlib's catalog, the rest flattened."""

    def __init__(self, space: gym.Space, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.space = space
        self.cnn: nn.Module | None = None
        self.norm: ObservationNorm | None = None
        if isinstance(space, gym.spaces.Box) and len(space.shape) == 3:
            encoder = image_encoder(space, config["conv_filters"])
            self.cnn, self.size = encoder.build("torch"), int(np.prod(np.array(encoder.output_dims)))
        else:
            self.size = gym.spaces.flatdim(space)
            if config["normalise_observations"] and is_flat(space):
                self.norm = ObservationNorm(self.size)

    def forward(self, x: Tensor) -> Tensor:
        if self.cnn is not None:
            scale = 255.0 if self.space.dtype == np.uint8 else 1.0
            return self.cnn({"obs": x.float() / scale})["encoder_out"].flatten(1)
        if isinstance(self.space, gym.spaces.Discrete):
            return F.one_hot(x.long() - int(self.space.start), int(self.space.n)).float()
        if isinstance(self.space, gym.spaces.MultiDiscrete):
            columns = zip(x.flatten(1).long().unbind(-1), self.space.nvec.ravel(), strict=True)
            return torch.cat([F.one_hot(column, int(n)) for column, n in columns], dim=-1).float()
        x = x.float().flatten(1)
        return x if self.norm is None else self.norm(x)


def image_encoder(space: gym.spaces.Box, conv_filters: Any) -> CNNEncoderConfig:
    """RLlib's convolutional encoder for an image of shape (height, width, channels)."""
    settings = DefaultModelConfig(conv_filters=conv_filters, head_fcnet_hiddens=[])
    try:
        config = Catalog._get_encoder_config(space, {**vars(settings)})
    except ValueError:
        config = None
    if not isinstance(config, CNNEncoderConfig):
        raise ConfigError(
            f"no default convolution for images of shape {space.shape}; "
            "set rl_module.model_config.conv_filters to [[channels, kernel, stride], ...]"
        )
    return config


class Encoder(nn.Module):
    """Features [N, size] of an observation tree: the leaves' features side by side."""

    def __init__(self, space: gym.Space, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.leaves = nn.ModuleList([LeafEncoder(leaf, config) for leaf in leaf_spaces(space)])
        self.size = sum(leaf.size for leaf in self.leaves)  # type: ignore[misc]

    def forward(self, obs: Tree) -> Tensor:
        if len(self.leaves) == 1:
            return self.leaves[0](*tree.flatten(obs))
        leaves = tree.flatten(obs)
        return torch.cat([encode(x) for encode, x in zip(self.leaves, leaves, strict=True)], dim=-1)


def leaf_spaces(space: gym.Space) -> list[gym.Space]:
    """Leaves of nested Dict and Tuple spaces, in dm-tree's order."""
    if isinstance(space, gym.spaces.Dict):
        return [leaf for key in sorted(space.spaces) for leaf in leaf_spaces(space[key])]
    if isinstance(space, gym.spaces.Tuple):
        return [leaf for part in space.spaces for leaf in leaf_spaces(part)]
    return [space]
