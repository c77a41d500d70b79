"""What this machine can do, checked by doing it; every line that fails says what to do."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tutelage.errors import TutelageError

RAY = "2.60"  # its RLlib is what the three seams are written against
ORACLE_PORT = 50051  # where `tutelage oracle serve` listens unless told otherwise
GB = 1e9
ENVIRONMENTS = {
    "CartPole-v1": "pip install gymnasium",
    "LunarLander-v3": "pip install box2d pygame",
    "Hopper-v5": "pip install mujoco",
}


@dataclass(frozen=True)
class Check:
    """One finding. A failure is essential: training or what was asked for cannot work."""

    name: str
    level: Literal["ok", "warning", "failure"]
    found: str
    advice: str = ""


def doctor(
    *,
    oracle: str | None = None,
    dataset: Path | None = None,
    labeler: Path | None = None,
    store: str = "",
    start_ray: bool = False,
    runs: Path | str = "runs",
    console: Console | None = None,
) -> int:
    """Print all checks as a table; the exit status, 1 where something essential fails."""
    found = examine(
        oracle=oracle, dataset=dataset, labeler=labeler, store=store, start_ray=start_ray, runs=Path(runs)
    )
    return print_checks(found, console)


def print_checks(found: Iterator[Check], console: Console | None = None) -> int:
    """Do the checks and print them as a table; the exit status."""
    console, checks = console or Console(), list[Check]()
    with console.status("checking") as status:
        for check in found:
            checks.append(check)
            status.update(f"checked {check.name}")
    console.print(table(checks))
    return int(any(check.level == "failure" for check in checks))


def examine(
    *,
    oracle: str | None = None,
    dataset: Path | None = None,
    labeler: Path | None = None,
    store: str = "",
    start_ray: bool = False,
    runs: Path = Path("runs"),
) -> Iterator[Check]:
    """The checks, each as soon as it is done."""
    yield _checked("Python", python)
    yield _checked("torch", torch_build, "pip install torch")
    yield _checked("Ray", ray_version, f"pip install 'ray[rllib,default,tune]=={RAY}.*'")
    for env, install in ENVIRONMENTS.items():
        yield _checked(env, lambda env=env: environment(env), install)
    yield _checked("video", video)
    yield _checked("runs folder", lambda: writable(runs), "choose another --run, or change its permissions")
    yield _checked("disk", lambda: disk(runs))
    yield _checked("memory", memory)
    yield _checked("shared memory", shared_memory)
    yield _checked("gRPC", loopback, "allow connections to 127.0.0.1")
    yield _checked("expert's port", oracle_port)
    if start_ray:
        yield _checked("Ray starts", ray_starts)
    if oracle is not None:
        yield _checked(
            "expert", lambda: expert(oracle), "start it with `tutelage oracle serve`, or correct its name"
        )
    if dataset is not None:
        yield _checked("dataset", lambda: dataset_folder(dataset), "name a folder such as runs/NAME/dataset")
    if labeler is not None:
        yield from labeler_folder(labeler, store)


def _checked(name: str, check: Callable[[], Check], advice: str = "") -> Check:
    """The finding of `check`; its exception, whatever it is, is one too."""
    try:
        return check()
    except Exception as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        return Check(name, "failure", words[0], advice)


def table(checks: list[Check]) -> Table:
    marks = {"ok": Text("✓", "green"), "warning": Text("!", "yellow"), "failure": Text("✗", "bold red")}
    drawn = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for check in checks:
        words = Text(check.found)
        if check.advice and check.level != "ok":
            words.append(f"\n→ {check.advice}", style="yellow" if check.level == "warning" else "red")
        drawn.add_row(marks[check.level], Text(check.name, style="bold"), words)
    return drawn


# Software


def python() -> Check:
    found = f"{platform.python_version()} ({sys.executable})"
    advice = "install Python 3.11 or later and make a virtual environment"
    old = tuple(map(int, platform.python_version_tuple()[:2])) < (3, 11)
    return Check("Python", "failure" if old else "ok", found, advice)


def torch_build() -> Check:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    threads = torch.get_num_threads()
    return Check("torch", "ok", f"{torch.__version__}, {threads} threads, {', '.join(gpus) or 'no GPU'}")


def ray_version() -> Check:
    import ray

    if not ray.__version__.startswith(f"{RAY}."):
        return Check("Ray", "failure", f"{ray.__version__}, expected {RAY}", f"pip install 'ray=={RAY}.*'")
    return Check("Ray", "ok", ray.__version__)


def environment(name: str) -> Check:
    import gymnasium

    with gymnasium.make(name) as env:
        env.reset(seed=0)
        env.step(env.action_space.sample())
    return Check(name, "ok", f"steps (gymnasium {gymnasium.__version__})")


def video() -> Check:
    """Renders a few steps of a MuJoCo environment as `evaluate --video` does."""
    import numpy as np

    from actors.clips import gl_backend, render
    from tutelage.errors import TutelageError
    from tutelage.types import EnvRecipe

    with tempfile.TemporaryDirectory() as folder:
        try:
            render(
                EnvRecipe("Hopper-v5"), 0, np.zeros((2, 3), np.float32), Path(folder) / "clip.mp4", size=64
            )
        except TutelageError as error:
            return Check("video", "warning", str(error), "on Debian or Ubuntu: apt-get install libosmesa6")
    return Check("video", "ok", f"MuJoCo draws with {gl_backend()}")


def ray_starts() -> Check:
    code = "import ray; ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
    code += "assert ray.get(ray.remote(lambda: 42).remote(), timeout=60) == 42"
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | quiet
    advice = "see /tmp/ray/session_latest/logs; often memory, shared memory or proxies"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        return Check("Ray starts", "failure", "no answer within 120 s", advice)
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or ["no reason given"]
        return Check("Ray starts", "failure", words[-1], advice)
    return Check("Ray starts", "ok", "a worker answered")


# The machine


def writable(runs: Path) -> Check:
    """Writes a file where the runs go, or would go, and leaves nothing."""
    with tempfile.TemporaryFile(dir=_existing(runs)):
        return Check("runs folder", "ok", f"{runs.resolve()} can be written")


def _existing(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def disk(runs: Path) -> Check:
    places = {"runs": _existing(runs), "temporary files": Path(tempfile.gettempdir())}
    free = {name: shutil.disk_usage(path).free for name, path in places.items()}
    found = ", ".join(f"{size / GB:,.0f} GB free for {name}" for name, size in free.items())
    return _enough(
        "disk", min(free.values()), found, (0.5, 5), "free some space, or choose another --run or TMPDIR"
    )


def memory() -> Check:
    size = free_memory()
    found = f"{size / GB:.1f} GB free, {os.cpu_count()} cores"
    advice = "each rollout actor takes about 0.4 GB: use fewer (env_runners.num_env_runners)"
    return _enough("memory", size, found, (1, 3), advice)


def free_memory() -> float:
    """Bytes that processes may still take: of the machine, or of the container where that is less."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = (group / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        available = min(available, int(text) - int(used.read_text()))
    return float(available)


def shared_memory() -> Check:
    """Where Ray keeps its objects; containers often have 64 MB of it."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return Check("shared memory", "ok", "not used on this system")
    size = shutil.disk_usage(place).free
    advice = "run the container with --shm-size=2g, else Ray uses the disk, slowly"
    return _enough("shared memory", size, f"{size / GB:.1f} GB free in {place}", (0, 0.5), advice)


def _enough(name: str, size: float, found: str, limits: tuple[float, float], advice: str) -> Check:
    """`limits` in GB: a failure below the first, a warning below the second."""
    fatal, low = limits
    level = "failure" if size < fatal * GB else "warning" if size < low * GB else "ok"
    return Check(name, level, found, advice)


def loopback() -> Check:
    """A gRPC call to this machine, which goes through a proxy unless no_proxy names 127.0.0.1."""
    import grpc

    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=3)
    except grpc.FutureTimeoutError:
        names = [name for name in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(name)]
        found = f"gRPC does not reach this machine itself ({', '.join(names) or 'no proxy'} set)"
        advice = "for experts on this machine: export no_grpc_proxy=localhost,127.0.0.1"
        return Check("gRPC", "warning", found, advice)
    finally:
        server.stop(0)
    return Check("gRPC", "ok", "reaches this machine")


def oracle_port() -> Check:
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", ORACLE_PORT)) == 0
    return Check("expert's port", "ok", f"{ORACLE_PORT} {'has a listener' if taken else 'is free'}")


# What was asked for


def expert(word: str) -> Check:
    """Reach an expert service and ask what it is; make any other expert."""
    from expert_oracle.loading import OracleSpec
    from expert_oracle.remote import RemoteOracle

    patience = {"connect_timeout_s": 5.0} if word.startswith("grpc://") else {}
    oracle = OracleSpec(word, patience).build()
    if not isinstance(oracle, RemoteOracle):
        return Check("expert", "ok", f"{word} can be made")
    said = oracle.describe()
    oracle.close()
    return Check(
        "expert", "ok", f"{word} is {said.name}, for {said.env_id or 'an environment it does not name'}"
    )


def dataset_folder(path: Path) -> Check:
    from learner.dataset import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is lost is said below
        dataset = Dataset(path, writable=False)
    found = f"{len(dataset):,} rows"
    if dataset.lost:
        words = "; ".join([found, *dataset.lost])
        return Check(
            "dataset", "failure", words, "training goes on with the rest; restore the files from a copy"
        )
    return Check("dataset", "ok", found)


def labeler_folder(path: Path, store: str) -> Iterator[Check]:
    from services.labeler.repair import examine

    try:
        yield from examine(path, store)
    except TutelageError as error:
        yield Check("labeler", "failure", str(error), "name a folder such as runs/NAME/labeler")
