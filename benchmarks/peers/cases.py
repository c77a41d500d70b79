"""The cases, and how one is run: a script, its settings, one JSON object back."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import HERE, prepare
from benchmarks.peers.expert_file import convert


@dataclass(frozen=True)
class Case:
    """One script with its settings. `expert` is the name of a published expert, if it needs one; what takes
    `minutes` is run only where it is named."""

    script: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    expert: str | None = None
    minutes: bool = False


PENDULUM = {
    "env": "Pendulum-v1",
    "env_steps": 130_000,
    "segment": 25,
    "ppo": {"gamma": 0.95, "gae_lambda": 0.95, "batch_size": 256},
    "lr": (1e-3, 1e-4),
    "rollouts_a_round": 2,
    "horizon": 200,
}
MUJOCO: dict[str, Any] = {
    "env_steps": 300_000,
    "segment": 50,
    "ppo": {"gamma": 0.99, "gae_lambda": 0.95, "batch_size": 128},
    "lr": (3e-4, 3e-4),
    "rollouts_a_round": 6,
    "horizon": 1000,
}
PREFERENCES: Mapping[str, Mapping[str, Any]] = {
    "pendulum": PENDULUM,
    "halfcheetah": {"env": "HalfCheetah-v5", **MUJOCO, "log_std_init": -1.0},
    "hopper": {
        "env": "Hopper-v5",
        **MUJOCO,
        "env_steps": 500_000,
        "ppo": {**MUJOCO["ppo"], "ent_coef": 0.01},
    },
}

CASES: Mapping[str, Case] = {
    "rollout-cartpole": Case("rollout", {"env": "CartPole-v1"}),
    "rollout-halfcheetah": Case("rollout", {"env": "HalfCheetah-v5"}),
    "bc": Case("bc", {"env": "HalfCheetah-v5"}),
    "ppo": Case("ppo", {"env": "HalfCheetah-v5"}),
    "sac-64": Case("sac", {"env": "Pendulum-v1", "width": 64}),
    "sac-256": Case("sac", {"env": "HalfCheetah-v5", "width": 256}),
    "reward-32": Case("reward", {"env": "HalfCheetah-v5", "width": 32}),
    "reward-64": Case("reward", {"env": "HalfCheetah-v5", "width": 64}),
    "dagger-cartpole": Case("dagger", {"env": "CartPole-v1", "batch_size": 32}, "cartpole"),
    "dagger-lunarlander": Case(
        "dagger", {"env": "LunarLander-v3", "batch_size": 32, "num_envs": 8}, "lunarlander"
    ),
    "dagger-halfcheetah": Case("dagger", {"env": "HalfCheetah-v5", "round_steps": 1000}, "halfcheetah"),
    "dagger-hopper": Case("dagger", {"env": "Hopper-v5", "round_steps": 1000}, "hopper"),
    **{
        f"preferences-{name}-{labels}": Case("preferences", {**settings, "labels": labels}, minutes=True)
        for name, settings in PREFERENCES.items()
        for labels in (350, 700)
    },
}

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class NoFigures(Exception):
    """A case has none: it needs a published expert and TUTELAGE_EXPERTS does not say where they are, or the
    peer ended with an error."""


def measure(name: str, *, seed: int = 0, expert: Path | None = None) -> dict[str, Any]:
    """Run a case in the peers' environment, on one thread; returns its figures.

    `expert` is a policy file of ours (.safetensors) or an `expert-mlp` file (.npz, with its .json beside it);
    default: the case's own in the folder that the environment variable TUTELAGE_EXPERTS names. Raises
    NoFigures where neither is there, and where the peer ends with an error.
    """
    case = CASES[name]
    settings = {**case.settings, "seed": seed}
    with tempfile.TemporaryDirectory() as scratch:
        if case.expert is not None:
            path = expert or _published(case.expert)
            ours = path.suffix == ".safetensors"
            settings["expert"] = str(convert(path, Path(scratch)) if ours else path.resolve())
        figures = _run(case.script, settings)
    return {"bench": "peers", "case": name, "seed": seed, **figures}


def _published(name: str) -> Path:
    folder = os.environ.get("TUTELAGE_EXPERTS")
    if folder is None:
        raise NoFigures(f"needs the expert {name!r}: set TUTELAGE_EXPERTS to the folder of published experts")
    return Path(folder).expanduser() / f"{name}.npz"


def _run(script: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object in the last line that a script prints."""
    command = [str(prepare()), str(HERE / "scripts" / f"{script}.py"), json.dumps(settings)]
    environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise NoFigures(f"the peer ended with an error (exit status {done.returncode}, see above)")
    return json.loads(done.stdout.splitlines()[-1])
