"""What must hold for every file of a kind: the folders are walked, so a plug-in is tested as it arrives."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml

from expert_oracle.scripted import SCRIPTED
from learner.methods import method_class
from learner.methods._base import Method
from tutelage.plugins import discover

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tutelage", "expert_oracle", "actors", "learner", "services")
KNOW_RLLIB = {
    *("actors/env_runner.py", "services/trainer.py", "services/trainer_config.py"),
    *("learner/encoders.py", "learner/learner.py", "learner/nets.py"),
}
METHODS = discover("learner.methods")
PRESETS = sorted((ROOT / "services" / "presets").glob("*.yaml"))
HEAVY = {"ray", "torch", "gymnasium", "pandas", "scipy", "matplotlib", "pyarrow", "grpc"}


@pytest.mark.parametrize("package", PACKAGES)
def test_root_package_is_ours(package: str):
    """A foreign `learner` or `services` in site-packages would otherwise win silently."""
    assert Path(importlib.import_module(package).__path__[0]) == ROOT / package


def imported_by(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def test_only_six_files_know_rllib():
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    know = {str(path.relative_to(ROOT)) for path in files if any("ray.rllib" in n for n in imported_by(path))}
    assert know <= KNOW_RLLIB


def test_there_are_plugins():
    assert {"bc", "dagger", "ppo"} <= set(METHODS)
    assert PRESETS
    assert SCRIPTED


@pytest.mark.parametrize("name", METHODS)
def test_method_file_holds_one_method_with_a_paper(name: str):
    module = importlib.import_module(METHODS[name])
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    (cls,) = [value for value in own if isinstance(value, type) and issubclass(value, Method)]
    assert cls.__name__.lower() == name.replace("_", "")
    assert cls is method_class(name)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    cls()  # each setting has a default
    fields = {field.name for field in dataclasses.fields(cls)}
    assert {name for base in cls.__mro__ for name in vars(base).get("ranges", ())} <= fields
    first_paragraph = (module.__doc__ or "").split("\n\n")[0]
    assert re.search(r"\([^()]*\d{4}[^()]*\)", first_paragraph), "the module's docstring names no paper"


@pytest.mark.parametrize("name", METHODS)
def test_method_has_a_page(name: str):
    assert (ROOT / "docs" / "methods" / f"{name}.md").is_file()


@pytest.mark.parametrize("name", SCRIPTED)
def test_scripted_expert_acts_on_its_environment(name: str):
    expert = SCRIPTED[name]
    env = gymnasium.make(expert.env_id)
    obs = np.stack([env.reset(seed=seed)[0] for seed in range(8)])
    actions = np.asarray(expert.act(obs)).astype(env.action_space.dtype)
    assert len(actions) == len(obs)
    assert all(env.action_space.contains(action) for action in actions)
    env.close()


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_names_a_method_and_an_environment(path: Path):
    preset = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# "), "the first line says what the preset is"
    assert path.stem.split("-")[0] == preset["method"]["name"]
    settings = set(preset["method"]) - {"name"}
    assert settings <= {field.name for field in dataclasses.fields(method_class(preset["method"]["name"]))}
    assert gymnasium.spec(preset["environment"]["env"])


def modules_after(code: str) -> set[str]:
    """Root modules that a fresh interpreter holds after `code`."""
    script = f"import sys\n{code}\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_import_of_tutelage_is_light():
    assert not modules_after("import tutelage") & HEAVY


def test_help_is_light():
    run_help = "from services.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass"
    assert not modules_after(run_help) & HEAVY
