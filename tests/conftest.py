"""What every test may ask for: a Ray, the published experts, pictures without a screen."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path

import pytest

# Before numpy, torch, MuJoCo or Ray is imported; Ray's workers inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
GL = "egl" if find_library("EGL") else "osmesa" if find_library("OSMesa") else None
if GL is not None:
    os.environ.setdefault("MUJOCO_GL", GL)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of this machine for all tests that need one; starting it takes seconds."""
    import ray

    from services.job import start_here

    start_here(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def experts() -> Path:
    """The folder of published experts (`NAME.npz`, `NAME.json`, `expert.py`) that TUTELAGE_EXPERTS names."""
    folder = os.environ.get("TUTELAGE_EXPERTS")
    if folder is None:
        pytest.skip("TUTELAGE_EXPERTS is not set: it names the folder of published experts")
    path = Path(folder).expanduser().resolve()
    assert path.is_dir(), f"TUTELAGE_EXPERTS: no such folder: {folder}"
    return path


@pytest.fixture(scope="session")
def offscreen_gl() -> str:
    """The value of MUJOCO_GL with which MuJoCo draws here."""
    if GL is None:
        pytest.skip("no OpenGL without a screen: install libegl1 and libgl1-mesa-dri, or libosmesa6")
    return os.environ["MUJOCO_GL"]
