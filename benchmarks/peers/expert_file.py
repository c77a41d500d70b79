"""Our policy files in the form that the peers' scripts read, `expert-mlp/1`: NAME.npz and NAME.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from expert_oracle.checkpoint import PolicyFile, load_policy
from tutelage.types import Array

OUTPUTS = {"categorical": "argmax", "gaussian": "clip"}


def convert(path: Path, folder: Path) -> Path:
    """Write the policy file `path` as `folder`/NAME.npz and NAME.json; the path of the former."""
    file = load_policy(path)
    if file.policy.distribution not in OUTPUTS:
        raise ValueError(f"{path}: the peers' experts cannot be {file.policy.distribution}")
    meta, arrays = _expert(file)
    target = folder / f"{path.stem}.npz"
    np.savez(target, allow_pickle=False, **arrays)
    target.with_suffix(".json").write_text(json.dumps(meta))
    return target


def _expert(file: PolicyFile) -> tuple[dict[str, Any], dict[str, Array]]:
    policy = file.policy
    arrays: dict[str, Array] = {f"W{i}": W for i, W in enumerate(policy.weights)}
    arrays |= {f"b{i}": b for i, b in enumerate(policy.biases)}
    last = len(policy.weights) - 1
    if policy.distribution == "gaussian" and policy.log_std is None:  # the second half is standard deviations
        means = len(policy.biases[-1]) // 2
        arrays |= {f"W{last}": policy.weights[-1][:, :means], f"b{last}": policy.biases[-1][:means]}
    normalised = policy.obs_mean is not None and policy.obs_std is not None
    if normalised:
        arrays |= {"obs_mean": np.asarray(policy.obs_mean), "obs_std": np.asarray(policy.obs_std)}
    activations = [policy.activation] * last + ["identity"]
    layers = [{"W": f"W{i}", "b": f"b{i}", "activation": name} for i, name in enumerate(activations)]
    meta = {
        "format": "expert-mlp/1",
        "name": file.name,
        "obs_dim": len(policy.weights[0]),
        "obs_norm": {"clip": policy.obs_clip} if normalised else None,
        "layers": layers,
        "output": OUTPUTS[policy.distribution],
    }
    return meta, arrays
