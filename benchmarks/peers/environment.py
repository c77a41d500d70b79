"""The peers' virtual environment: made once, beside this file, from a list that pins every package.

`imitation` 1.0.1 asks for gymnasium 0.29 and Stable-Baselines3 2.2, but runs on the versions that Tutelage
uses. So each package is installed as pinned, without asking for its own requirements. Only PyTorch may bring
its own, which its CUDA builds need.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PYTHON = HERE / ".venv" / "bin" / "python"
STAMP = HERE / ".venv" / ".complete"
REQUIREMENTS = HERE / "requirements.txt"


def prepare() -> Path:
    """The peers' Python; makes their environment first where it is absent or older than the pins."""
    if STAMP.exists() and STAMP.stat().st_mtime >= REQUIREMENTS.stat().st_mtime:
        return PYTHON
    print("benchmarks.peers: making the peers' virtual environment (minutes, once)", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(PYTHON.parents[1])], check=True)
    (torch,) = [line for line in REQUIREMENTS.read_text().split() if line.startswith("torch==")]
    _pip_install(torch)
    _pip_install("--no-deps", "-r", str(REQUIREMENTS))
    STAMP.touch()
    return PYTHON


def _pip_install(*arguments: str) -> None:
    quiet = ["-qq", "--no-input", "--disable-pip-version-check"]
    subprocess.run([str(PYTHON), "-m", "pip", "install", *quiet, *arguments], check=True)
