"""What people did where they took over from a policy, an episode a file (HG-DAgger).

    store(folder, obs=..., actions=..., rewards=..., by_expert=..., about={"checkpoint": ..., "seed": ...})

A file is `learner.demonstrations`' own kind: `method.demonstrations` takes it, its folder, or the run, and of
each episode learns the steps that were a person's.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tree
from safetensors import safe_open
from safetensors.numpy import save

from tutelage.disk import sync_folder
from tutelage.types import Array, Tree

FORMAT = "tutelage.corrections"
FOLDER = "corrections"  # in the labeler's


def store(
    folder: Path, *, obs: Tree, actions: Array, rewards: Array, by_expert: Array, about: Mapping[str, Any]
) -> Path:
    """Write an episode; it is on the disk when this returns. Raises OSError where it cannot be.

    obs: [T + 1, ...]; actions: [T, ...] as executed; rewards: [T]; by_expert: [T], the person's steps
    """
    arrays = {".".join(["obs", *map(str, path)]): leaf for path, leaf in tree.flatten_with_path(obs)}
    arrays |= {"acts": actions, "rewards": rewards, "by_expert": by_expert}
    packed = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data = save(packed, {"format": FORMAT, "about": json.dumps(dict(about))})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}.safetensors"
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(folder)
    return path


def about(path: Path) -> dict[str, Any]:
    """Where an episode comes from: checkpoint, recipe, seed, annotator, times."""
    with safe_open(path, framework="numpy") as file:
        return json.loads((file.metadata() or {})["about"])
