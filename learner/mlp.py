"""Multi-layer perceptrons: one, or several side by side as one batched network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
IN_PLACE = {"tanh": torch.tanh_, "relu": torch.relu_}


def mlp(sizes: Sequence[int], activation: str, *, output_gain: float) -> nn.Sequential:
    """Linear layers with `activation` between them, orthogonal weights, zero biases."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        last = i == len(sizes) - 2
        linear = nn.Linear(n_in, n_out)
        nn.init.orthogonal_(linear.weight, output_gain if last else 2**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


class EnsembleMLP(nn.Module):
    """M MLPs as one: features [N, in] or [1, N, in], [M, N, in] of each its own, to outputs [M, N, out]."""

    def __init__(self, members: int, sizes: Sequence[int], activation: str, *, output_gain: float) -> None:
        super().__init__()
        each = [mlp(sizes, activation, output_gain=output_gain) for _ in range(members)]
        layers = [[layer for layer in member if isinstance(layer, nn.Linear)] for member in each]
        self.weights = nn.ParameterList(
            torch.stack([layer.weight.detach().T for layer in same]) for same in zip(*layers, strict=True)
        )  # each [M, in, out]
        self.biases = nn.ParameterList(
            torch.stack([layer.bias.detach()[None] for layer in same]) for same in zip(*layers, strict=True)
        )  # each [M, 1, out]
        self.activate = IN_PLACE[activation]
        self.members = members

    def forward(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """frozen: gradients are for x alone."""
        return self._linear(-1, self.hidden(x, frozen=frozen), frozen)

    def hidden(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """What the last layer takes [M, N, hidden]."""
        x = x.expand(self.members, *x.shape[-2:])
        for i in range(len(self.weights) - 1):
            x = self.activate(self._linear(i, x, frozen))
        return x

    def last(self, x: Tensor, summed: Tensor | float) -> Tensor:
        """Sums of outputs [M, N, out] of sums of `summed` [M, N, 1] such."""
        return x @ self.weights[-1] + summed * self.biases[-1]

    def _linear(self, i: int, x: Tensor, frozen: bool) -> Tensor:
        W, b = self.weights[i], self.biases[i]
        return torch.baddbmm(b.detach(), x, W.detach()) if frozen else torch.baddbmm(b, x, W)

    def as_one(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Weights [in, out] and biases [out] of one MLP that gives the members' mean."""
        W, b = [to_numpy(w) for w in self.weights], [to_numpy(b)[:, 0] for b in self.biases]
        if len(W) == 1:
            return [W[0].mean(0)], [b[0].mean(0)]
        weights = [
            np.concatenate(W[0], axis=1),
            *map(block_diagonal, W[1:-1]),
            np.concatenate(W[-1]) / self.members,
        ]
        return weights, [*(part.reshape(-1) for part in b[:-1]), b[-1].mean(0)]


def block_diagonal(blocks: np.ndarray) -> np.ndarray:
    """Blocks [M, m, n] along the diagonal of one matrix [M m, M n]."""
    M, m, n = blocks.shape
    out = np.zeros((M, m, M, n), blocks.dtype)
    out[range(M), :, range(M)] = blocks
    return out.reshape(M * m, M * n)


def to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
