"""Policies of RLlib's new API stack, read from a checkpoint without importing RLlib or running its pickles.

    rllib:PATH            an Algorithm's checkpoint, or the folder of one RLModule in it

The modules that PPO, APPO, IMPALA, BC, MARWIL, SAC and DQN have by default, with an MLP, are known. Weights
come from `module_state`, spaces and activations from `class_and_ctor_args.pkl`, the statistics of a
MeanStdFilter and `normalize_actions` from the Algorithm around it. Where RLlib normalises actions, a mean of
-1..1 is stretched onto the Box if all its bounds are finite. SAC's mean goes through its tanh, which RLlib
leaves out when it does not explore.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from expert_oracle.checkpoint import PolicyFile, Scale
from expert_oracle.layers import ActionSpace, Layer, Moments, action_space, layers, numbers, policy_file
from expert_oracle.pickled import Opaque, fields, read_pickle
from tutelage.errors import ConfigError, OracleError
from tutelage.plugins import did_you_mean

MODULES = Path("learner_group", "learner", "rl_module")
FILTERS = Path("env_runner", "env_to_module_connector")
ENCODERS = ("encoder.actor_encoder", "encoder.encoder", "pi_encoder", "encoder")
HEADS = ("pi", "af")
PASSING = {  # connectors of every pipeline; they leave the observations as they are
    "AddObservationsFromEpisodesToBatch",
    "AddTimeDimToBatchAndZeroPad",
    "AddStatesFromEpisodesToBatch",
    "BatchIndividualItems",
    "NumpyToTensor",
    "FlattenObservations",
}
SMALL = 1e-6  # what RLlib's filter adds to a standard deviation


def load_rllib(
    path: str,
    *,
    module: str = "default_policy",
    activation: str | None = None,
    normalize_actions: bool | None = None,
) -> PolicyFile:
    """The expert in a checkpoint of RLlib.

    module: which one of several; activation: "tanh" or "relu", overrides the module's settings;
    normalize_actions: RLlib's setting, overrides the Algorithm's; True if nothing says it.
    """
    algorithm, folder = _find(Path(path).expanduser(), module)
    try:
        state = _module_state(folder)
        settings = read_pickle(folder / "class_and_ctor_args.pkl")["ctor_args_and_kwargs"][1]
        if normalize_actions is None:
            normalize_actions = algorithm is None or _normalizes(algorithm)
        return policy_file(
            _dense(state),
            activation or _activation(state, _plain(settings["model_config"])),
            _action_space(settings),
            name=f"rllib:{path}",
            scale=_scale(state, normalize_actions),
            moments=None if algorithm is None else _moments(algorithm),
        )
    except (KeyError, IndexError) as error:
        raise OracleError(f"{folder} is no whole module of RLlib: it has no {error}") from None
    except (TypeError, ValueError, zlib.error) as error:
        raise OracleError(
            f"{folder} cannot be used: {error}; a TorchScript export can: torchscript:PATH"
        ) from None


def _find(path: Path, module: str) -> tuple[Path | None, Path]:
    """The Algorithm's folder, None if `path` is a module's own, and the module's."""
    if any(path.glob("module_state.*")) and not _modules(path):
        return None, path
    for algorithm, modules in ((path, path / MODULES), (None, path)):
        known = _modules(modules)
        if module in known:
            return algorithm, modules / module
        if known:
            raise ConfigError(
                f"{path} has no module {module!r}{did_you_mean(module, known)}; set module=NAME"
            )
    raise ConfigError(
        f"{path} is no checkpoint of RLlib's new API stack: it has neither {MODULES}/ nor module_state"
        if path.is_dir()
        else f"no such folder: {path}"
    )


def _modules(folder: Path) -> list[str]:
    return sorted(file.parent.name for file in folder.glob("*/class_and_ctor_args.pkl"))


def _module_state(folder: Path) -> Mapping[str, Any]:
    packed = folder / "module_state.msgpack"
    return _read_msgpack(packed) if packed.is_file() else dict(read_pickle(folder / "module_state.pkl"))


def _read_msgpack(file: Path) -> dict[str, Any]:
    """Arrays as msgpack-numpy writes them: a map with `nd`, `type`, `shape` and `data`."""
    import msgpack

    def array(record: Mapping[Any, Any]) -> Any:
        if record.get(b"nd", record.get("nd")) is not True:
            return record
        kind, shape, data = (record.get(key.encode(), record.get(key)) for key in ("type", "shape", "data"))
        return np.frombuffer(data, np.dtype(kind)).reshape(shape)

    return msgpack.unpackb(file.read_bytes(), object_hook=array, strict_map_key=False)


def _dense(state: Mapping[str, Any]) -> list[Layer]:
    head = _head(state)
    encoder = next((name for name in ENCODERS if any(k.startswith(f"{name}.net.mlp.") for k in state)), None)
    if encoder is None:
        raise ValueError("it has no plain MLP for an encoder")
    return [*layers(state, f"{encoder}.net.mlp"), *layers(state, f"{head}.net.mlp")]


def _head(state: Mapping[str, Any]) -> str:
    for head in HEADS:
        if any(key.startswith(f"{head}.net.mlp.") for key in state):
            return head
    raise ValueError(f"it has no action head {' or '.join(HEADS)}")


def _activation(state: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    activation = str(settings.get("fcnet_activation", "tanh"))
    of_head = str(settings.get("head_fcnet_activation", "relu"))
    if f"{_head(state)}.net.mlp.2.weight" in state and of_head != activation:
        raise ValueError(f"it has {activation} in the encoder and {of_head} in the head, only one is known")
    return activation


def _plain(settings: Any) -> Mapping[str, Any]:
    """Model settings from a dict or from the record of a dataclass."""
    return settings if isinstance(settings, dict) and not isinstance(settings, Opaque) else fields(settings)


def _action_space(settings: Mapping[str, Any]) -> ActionSpace:
    space = settings["action_space"]
    if not isinstance(space, Opaque):
        raise ValueError("it does not say what its action space is")
    return action_space(space.name.rpartition(".")[2], fields(space))


def _scale(state: Mapping[str, Any], normalize_actions: bool) -> Scale:
    if any(name.startswith("pi_encoder.") for name in state):  # SAC's
        return "tanh"
    return "unit" if normalize_actions else "box"


def _normalizes(algorithm: Path) -> bool:
    config = read_pickle(algorithm / "class_and_ctor_args.pkl")["ctor_args_and_kwargs"][0][0]
    return bool(_plain(config).get("normalize_actions", True))


def _moments(algorithm: Path) -> Moments | None:
    """The statistics of the pipeline's MeanStdFilter. ValueError for a connector that does something else."""
    folder = algorithm / FILTERS
    if not folder.is_dir():
        return None
    for name in _connectors(folder):
        if name not in PASSING | {"MeanStdFilter"}:
            raise ValueError(f"the connector {name} changes its observations")
    state = folder / "MeanStdFilter" / "state.pkl"
    return _filter(read_pickle(state)[None]) if state.is_file() else None


def _connectors(folder: Path) -> Iterator[str]:
    settings = read_pickle(folder / "class_and_ctor_args.pkl")["ctor_args_and_kwargs"][1]
    for kind, *_ in settings.get("connectors", ()):
        yield getattr(kind, "name", str(kind)).rpartition(".")[2]


def _filter(state: Mapping[str, Any]) -> Moments:
    (running,) = state["running_stats"]
    mean, squares = (_unpacked(running[name]) for name in ("mean_array", "sum_sq_diff_array"))
    std = np.sqrt(np.maximum(squares / max(running["num_pushes"] - 1, 1), 0))
    mean = mean if state["de_mean_to_zero"] else np.zeros_like(mean)
    std = std + SMALL if state["de_std_to_one"] else np.ones_like(std)
    return Moments(numbers(mean, "mean"), numbers(std, "std"), state["clip_by_value"])


def _unpacked(text: str) -> np.ndarray[Any, Any]:
    """An array from RLlib's text for it: .npy, compressed, in base64."""
    return np.load(io.BytesIO(zlib.decompress(base64.b64decode(text))), allow_pickle=False)
