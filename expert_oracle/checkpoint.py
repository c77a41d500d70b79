"""Experts from files: a plain-MLP policy in one safetensors file that acts with numpy alone.

The tensors are `weights.0`, `biases.0`, ..., and where they apply `obs_mean obs_std log_std low high`; the
header holds the format, the rest of `MLPPolicy`, the environment's id and whatever else its maker knew:
returns, the command that made it. A policy that is no plain MLP has `policy.json` in its folder instead,
{"loader": "module:attr"}, and that function is called with the folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tutelage import codec, plugins
from tutelage.errors import ConfigError, OracleError
from tutelage.policy import ACTIVATIONS, Distribution, MLPPolicy, mode, stretched
from tutelage.proto.tutelage.v1 import oracle_pb2 as pb
from tutelage.protocols import Oracle
from tutelage.types import Array

FORMAT = "tutelage.policy"
VERSION = 1
POLICY, LOADER = "policy.safetensors", "policy.json"
SHIPPED = Path(__file__).parent / "experts"
OPTIONAL = ("obs_mean", "obs_std", "log_std")
PLAIN = ("activation", "distribution", "obs_clip", "nvec")

Scale = Literal["box", "unit", "tanh"]
"""How a mean becomes an action: as it is; with -1..1 stretched to low..high, where all of these are
finite; the same after a tanh."""


@dataclass(frozen=True)
class PolicyFile:
    """A policy with what was said about it. An `Oracle`: it acts greedily, clipped to the Box."""

    policy: MLPPolicy
    low: Array | None = None  # [D_action] of the Box; None: other kinds of spaces
    high: Array | None = None  # [D_action]
    env: str = ""  # id of the environment that it is for
    metadata: Mapping[str, Any] = field(default_factory=dict)
    name: str = "policy"
    scale: Scale = "box"

    def act(self, obs: Array) -> Array:
        """Actions [N, ...] for observations [N, ...]."""
        obs, wanted = np.asarray(obs), len(self.policy.weights[0])
        size = obs[0].size if len(obs) else wanted
        if size != wanted:
            raise OracleError(f"{self.name} takes observations of {wanted} numbers, got {size}")
        actions = mode(self.policy(obs), self.policy.distribution, self.policy.nvec)
        if self.low is None or self.high is None:
            return actions
        return np.clip(_scaled(actions, self.low, self.high, self.scale), self.low, self.high)

    def describe(self) -> pb.DescribeReply:
        return pb.DescribeReply(
            name=self.name,
            env_id=self.env,
            observation_space=codec.unbounded_space([len(self.policy.weights[0])]),
            action_space=self._action_space(),
        )

    def _action_space(self) -> pb.Space:
        outputs = len(self.policy.biases[-1])
        match self.policy.distribution:
            case "categorical":
                return codec.discrete_space(outputs)
            case "multi_categorical":
                return codec.multi_discrete_space(self.policy.nvec)
            case "bernoulli":
                return codec.multi_binary_space(outputs)
            case "gaussian" | "squashed" if self.low is not None and self.high is not None:
                return codec.box_space(self.low, self.high)
            case "gaussian" | "squashed":
                return codec.unbounded_space([outputs if self.policy.log_std is not None else outputs // 2])


def _scaled(means: Array, low: Array, high: Array, scale: Scale) -> Array:
    if scale == "box":
        return means
    units = np.tanh(means) if scale == "tanh" else means
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return units  # as RLlib has it: what is open cannot be stretched onto
    return stretched(units, low, high)


def save_policy(
    path: str | Path,
    policy: MLPPolicy,
    *,
    low: Array | None = None,
    high: Array | None = None,
    env: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a policy file, whole or not at all. `low`, `high`: the Box that actions are clipped to."""
    tensors: dict[str, Any] = {name: getattr(policy, name) for name in OPTIONAL}
    tensors |= {"low": low, "high": high}
    tensors |= {f"weights.{i}": W for i, W in enumerate(policy.weights)}
    tensors |= {f"biases.{i}": b for i, b in enumerate(policy.biases)}
    arrays = {k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items() if v is not None}
    header = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "policy": _json({name: getattr(policy, name) for name in PLAIN}),
        "env": env,
        "metadata": _json(dict(metadata or {})),
    }
    _write(Path(path), save(arrays, header))


def _json(value: Any) -> str:
    return json.dumps(value, default=lambda number: number.tolist())  # numpy's numbers and arrays


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_policy(path: str | Path) -> PolicyFile:
    """Read a policy file. Raises ConfigError if it is not there, OracleError if it is not usable."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no such policy file: {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            header: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dict
    except SafetensorError as error:
        raise OracleError(f"{path} is corrupt or no safetensors file: {error}") from None
    _check_format(path, header)
    try:
        return _policy_file(path, header, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise OracleError(f"{path} is not a whole policy: {error}") from None


def _check_format(path: Path, header: Mapping[str, str]) -> None:
    if header.get("format") != FORMAT:
        raise OracleError(f"{path} is a safetensors file, but not of the format {FORMAT!r}")
    if header.get("format_version") != str(VERSION):
        raise OracleError(
            f"{path} has format version {header.get('format_version')}; this release reads version {VERSION}"
        )


def _policy_file(path: Path, header: Mapping[str, str], tensors: Mapping[str, Array]) -> PolicyFile:
    depth = sum(name.startswith("weights.") for name in tensors)
    policy = MLPPolicy(
        weights=[tensors[f"weights.{i}"] for i in range(depth)],
        biases=[tensors[f"biases.{i}"] for i in range(depth)],
        **{name: tensors.get(name) for name in OPTIONAL},
        **{name: json.loads(header["policy"])[name] for name in PLAIN},
    )
    _check_layers(policy)
    file = PolicyFile(
        policy,
        low=tensors.get("low"),
        high=tensors.get("high"),
        env=header.get("env", ""),
        metadata=json.loads(header.get("metadata", "{}")),
        name=f"checkpoint:{path}",
        scale="unit" if policy.distribution == "squashed" else "box",
    )
    _check_vectors(file)
    return file


def _check_layers(policy: MLPPolicy) -> None:
    for name, value, known in (
        ("activation", policy.activation, ACTIVATIONS),
        ("distribution", policy.distribution, get_args(Distribution)),
    ):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}{plugins.did_you_mean(value, known)}")
    if not policy.weights:
        raise ValueError("it has no tensor 'weights.0'")
    width = len(policy.weights[0])
    for i, (W, b) in enumerate(zip(policy.weights, policy.biases, strict=True)):
        if b.ndim != 1 or W.shape != (width, len(b)):
            raise ValueError(f"layer {i} has weights {W.shape} and biases {b.shape} after {width} inputs")
        width = len(b)
    if not all(np.isfinite(leaf).all() for leaf in (*policy.weights, *policy.biases)):
        raise ValueError("its weights are not finite")


def _check_vectors(file: PolicyFile) -> None:
    """The optional vectors have the length of the observations or of the actions."""
    policy = file.policy
    inputs, outputs = len(policy.weights[0]), len(policy.biases[-1])
    actions = outputs if policy.log_std is not None else outputs // 2
    lengths = {"obs_mean": inputs, "obs_std": inputs, "log_std": actions, "low": actions, "high": actions}
    vectors = {"obs_mean": policy.obs_mean, "obs_std": policy.obs_std, "log_std": policy.log_std}
    for name, vector in (vectors | {"low": file.low, "high": file.high}).items():
        if vector is not None and vector.shape != (lengths[name],):
            raise ValueError(f"{name} has shape {vector.shape}, expected ({lengths[name]},)")


def load_checkpoint(place: str) -> Oracle:
    """The expert in a policy file, a checkpoint's folder, a run's folder, or one shipped under that name.

    Of a run it is the best checkpoint, else the newest.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return load_policy(path)
    if path.is_dir():
        return _load_folder(path)
    if (SHIPPED / f"{place}.safetensors").is_file():
        return load_policy(SHIPPED / f"{place}.safetensors")
    shipped = sorted(file.stem for file in SHIPPED.glob("*.safetensors"))
    near = plugins.did_you_mean(place, shipped)
    raise ConfigError(f"checkpoint {place!r} is no file, no folder and no shipped expert{near}")


def _load_folder(folder: Path) -> Oracle:
    for candidate in _folders(folder):
        if (candidate / POLICY).is_file():
            return load_policy(candidate / POLICY)
        if (candidate / LOADER).is_file():
            return _load_by_loader(candidate)
    raise ConfigError(f"{folder} holds no policy: neither it nor its checkpoints/ has {POLICY} or {LOADER}")


def _folders(folder: Path) -> Iterator[Path]:
    """Where a policy may lie, the best place first."""
    checkpoints = folder / "checkpoints"
    yield folder
    yield checkpoints / "best"
    if checkpoints.is_dir():
        numbered = [path for path in checkpoints.iterdir() if re.fullmatch(r"\d+", path.name)]
        yield from sorted(numbered, key=lambda path: int(path.name), reverse=True)


def _load_by_loader(folder: Path) -> Oracle:
    try:
        loader = json.loads((folder / LOADER).read_text())["loader"]
    except (ValueError, KeyError, TypeError):
        raise OracleError(f'{folder / LOADER} is not of the form {{"loader": "module:attr"}}') from None
    oracle = plugins.load(loader)(folder)
    if not isinstance(oracle, Oracle):
        raise OracleError(f"{loader}, named in {folder / LOADER}, gave {type(oracle).__name__} without `act`")
    return oracle
