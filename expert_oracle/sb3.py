"""Policies of Stable-Baselines3, read from its zip files without running anything in them.

    sb3:PATH.zip          PPO, A2C, SAC, TD3, DDPG, DQN and what has the same layers, with an MLP policy

Tensors come from `policy.pth` by `torch.load(weights_only=True)`, the rest from the plain part of the JSON
file `data`; the pickles in it stay closed. The layers say which algorithm it is, and what it does to
observations and actions follows: PPO and A2C use tanh between the layers and clip the actions, SAC, TD3 and
DDPG use relu and stretch a tanh onto the Box, DQN uses relu. An activation given in `policy_kwargs` is read
from there.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expert_oracle.checkpoint import PolicyFile
from expert_oracle.layers import (
    ActionSpace,
    Layer,
    Moments,
    action_space,
    layer,
    layers,
    numbers,
    policy_file,
)
from expert_oracle.pickled import fields, read_pickle
from tutelage.errors import ConfigError, OracleError


@dataclass(frozen=True)
class Layout:
    """Where the layers that act lie, and what the algorithm does by default."""

    hidden: str
    output: str | None  # None: it is the last of the hidden ones
    activation: str
    squash: bool


LAYOUTS = {  # by a tensor that only this one has
    "action_net.weight": Layout("mlp_extractor.policy_net", "action_net", "tanh", False),  # PPO, A2C
    "actor.mu.weight": Layout("actor.latent_pi", "actor.mu", "relu", True),  # SAC
    "actor.mu.0.weight": Layout("actor.mu", None, "relu", True),  # TD3, DDPG
    "q_net.q_net.0.weight": Layout("q_net.q_net", None, "relu", False),  # DQN
}


def load_sb3(
    path: str,
    *,
    activation: str | None = None,
    squash: bool | None = None,
    normalize: str | None = None,
) -> PolicyFile:
    """The expert in a zip file of Stable-Baselines3.

    activation: "tanh" or "relu" between the layers; squash: actions are a tanh stretched onto the Box; both
    override what the file says or the algorithm does. normalize: the statistics of VecNormalize, see
    `moments`.
    """
    file = Path(path).expanduser()
    state, data = _read(file)
    statistics = None if normalize is None else moments(Path(normalize).expanduser())
    try:
        layout = _layout(state)
        options = _options(data)
        squash = bool(options.get("squash_output", layout.squash)) if squash is None else squash
        return policy_file(
            _dense(state, layout),
            activation or _activation(options) or layout.activation,
            _action_space(data),
            name=f"sb3:{path}",
            scale="tanh" if squash else "box",
            moments=statistics,
        )
    except KeyError as error:
        raise OracleError(f"{file} is no whole policy of Stable-Baselines3: it has no {error}") from None
    except (TypeError, ValueError) as error:
        raise OracleError(
            f"{file} cannot be used: {error}; a TorchScript export can: torchscript:PATH"
        ) from None


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state dictionary as arrays, and the JSON values of `data`."""
    if not file.is_file():
        raise ConfigError(f"no such file: {file}")
    import torch

    try:
        with zipfile.ZipFile(file) as archive:
            data = json.loads(archive.read("data"))
            tensors = torch.load(io.BytesIO(archive.read("policy.pth")), "cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in tensors.items()}, dict(data)
    except Exception as error:  # zipfile, json and torch raise a dozen kinds
        text = str(error).split("\n")[0]
        raise OracleError(
            f"{file} is no model of Stable-Baselines3: {type(error).__name__}: {text}"
        ) from None


def _layout(state: Mapping[str, Any]) -> Layout:
    for name in state:
        if re.search(r"features_extractor|lstm|shared_net", name):
            raise ValueError(f"only MLP policies can be read, it has {name.rpartition('.')[0]}")
    for key, layout in LAYOUTS.items():
        if key in state:
            if key == "actor.mu.0.weight" and any(name.startswith("actor.latent_pi.") for name in state):
                raise ValueError("it was trained with use_sde=True, which is not known for SAC")
            return layout
    raise ValueError("its layers are those of no known algorithm: PPO, A2C, SAC, TD3, DDPG, DQN")


def _dense(state: Mapping[str, Any], layout: Layout) -> list[Layer]:
    hidden = layers(state, layout.hidden)
    return hidden if layout.output is None else [*hidden, layer(state, layout.output)]


def _options(data: Mapping[str, Any]) -> Mapping[str, Any]:
    options = data.get("policy_kwargs")
    return options if isinstance(options, dict) else {}


def _activation(options: Mapping[str, Any]) -> str | None:
    """The text `<class 'torch.nn.modules.activation.ReLU'>`, beside the pickle of that class, as "relu"."""
    match = re.search(r"(\w+)'>$", str(options.get("activation_fn", "")))
    return match[1].lower() if match else None


def _action_space(data: Mapping[str, Any]) -> ActionSpace:
    observations = _kind(data["observation_space"])
    if observations != "Box":
        raise ValueError(f"it takes observations of a {observations} space, only those of a Box are known")
    if len(data["observation_space"]["_shape"]) > 2:
        raise ValueError("it takes images, only vectors are known")
    space = data["action_space"]
    attributes = {k: _parsed(space[k], k) for k in ("low", "high", "n", "nvec", "start") if k in space}
    return action_space(_kind(space), attributes)


def _kind(space: Mapping[str, str]) -> str:
    """The text `<class 'gymnasium.spaces.box.Box'>` as "Box"."""
    return space[":type:"].rpartition(".")[2].rstrip("'>")


def _parsed(text: str, name: str) -> Any:
    """The numbers in the text of an array or of an integer."""
    try:
        values = [float(number) for number in re.sub(r"[\[\],]", " ", str(text)).split()]
    except ValueError:
        raise ValueError(f"{name} of its action space is not readable: {text[:40]!r}") from None
    return values if str(text).startswith("[") else values[0]


def moments(file: Path) -> Moments:
    """The statistics of VecNormalize: its own file, of which nothing is run, or an .npz file.

    The latter has `mean` [D] and `var` [D], and may have `epsilon` (1e-8) and `clip_obs` (10).
    """
    if not file.is_file():
        raise ConfigError(f"normalize: no such file: {file}")
    try:
        values = _arrays(file) if file.suffix == ".npz" else _vec_normalize(file)
        mean, var = numbers(values["mean"], "mean"), np.asarray(values["var"], np.float64)
        std = np.sqrt(var + float(values.get("epsilon", 1e-8)))
        return Moments(mean, numbers(std, "var"), float(values.get("clip_obs", 10.0)))
    except KeyError as error:
        raise OracleError(f"normalize: {file} has no {error}; it needs 'mean' and 'var'") from None
    except (TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise OracleError(f"normalize: {file} cannot be used: {error}") from None


def _arrays(file: Path) -> dict[str, Any]:
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def _vec_normalize(file: Path) -> dict[str, Any]:
    attributes = fields(read_pickle(file))
    if attributes.get("norm_obs") is False:
        raise ValueError("it does not normalise observations: leave it out")
    return fields(attributes["obs_rms"]) | {key: attributes[key] for key in ("epsilon", "clip_obs")}
