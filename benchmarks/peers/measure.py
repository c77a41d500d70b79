"""The cases, and how one is run: a script, its settings, one JSON object back."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.environment import HERE, prepare


@dataclass(frozen=True)
class Case:
    """One script with its settings. `expert` is the name of a published expert, if it needs one."""

    script: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    expert: str | None = None


CASES: Mapping[str, Case] = {
    "rollout-cartpole": Case("rollout", {"env": "CartPole-v1"}),
    "rollout-halfcheetah": Case("rollout", {"env": "HalfCheetah-v5"}),
    "bc": Case("bc", {"env": "HalfCheetah-v5"}),
    "ppo": Case("ppo", {"env": "HalfCheetah-v5"}),
    "dagger-cartpole": Case("dagger", {"env": "CartPole-v1", "batch_size": 32}, "cartpole"),
    "dagger-lunarlander": Case(
        "dagger", {"env": "LunarLander-v3", "batch_size": 32, "num_envs": 8}, "lunarlander"
    ),
    "dagger-halfcheetah": Case("dagger", {"env": "HalfCheetah-v5", "round_steps": 1000}, "halfcheetah"),
    "dagger-hopper": Case("dagger", {"env": "Hopper-v5", "round_steps": 1000}, "hopper"),
}

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class NoExpert(Exception):
    """A case needs a published expert and TUTELAGE_EXPERTS does not say where they are."""


def measure(name: str, *, seed: int = 0, expert: Path | None = None) -> dict[str, Any]:
    """Run a case in the peers' environment, on one thread; returns its figures.

    `expert` is an `expert-mlp` file (NAME.npz with NAME.json beside it); default: the case's own in
    the folder that the environment variable TUTELAGE_EXPERTS names. Raises NoExpert where neither is there.
    """
    case = CASES[name]
    settings = {**case.settings, "seed": seed}
    if case.expert is not None:
        settings["expert"] = str(expert or _published(case.expert))
    command = [str(prepare()), str(HERE / "scripts" / f"{case.script}.py"), json.dumps(settings)]
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {"bench": "peers", "case": name, "seed": seed, **json.loads(done.stdout.splitlines()[-1])}


def _published(name: str) -> Path:
    folder = os.environ.get("TUTELAGE_EXPERTS")
    if folder is None:
        raise NoExpert(f"needs the expert {name!r}: set TUTELAGE_EXPERTS to the folder of published experts")
    return Path(folder).expanduser() / f"{name}.npz"
