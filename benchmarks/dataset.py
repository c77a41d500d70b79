"""The aggregated dataset against numpy arrays: `python -m benchmarks.dataset --json --rows 10000000`.

Rows are as in HalfCheetah: 17 floats of observation, 6 of action. The array side draws a permutation and
takes its rows chunk by chunk with `numpy.take`, the fastest gather that numpy has.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.common import Bench, Row, cpu_seconds, interleaved, measured, row, show
from learner.dataset import Dataset
from tutelage.types import Array, Demonstrations

CHUNK = 65_536
BLOCK = 1_000_000
OBS, ACTIONS = 17, 6
SMALL_ROWS, MINIBATCH = 100_000, 256
RSS_MB = 1500  # 2 GB without what torch and Ray take

# A fresh process, so that its peak is that of reading alone (getrusage would add its parent's).
READ = """
import sys
from pathlib import Path
from learner.dataset import Dataset
for chunk in Dataset(Path(sys.argv[1]), writable=False).batches(rows=65_536, seed=0, epochs=1):
    pass
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def fill(path: Path, *, rows: int, block: int) -> Dataset:
    """A dataset of `rows` random rows in blocks of `block`."""
    dataset = Dataset(path)
    demonstrations = _random(block)
    for i in range(rows // block):
        dataset.append_demonstrations(demonstrations, key=str(i))
    return dataset


def _random(rows: int) -> Demonstrations:
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((rows, OBS), np.float32)
    return Demonstrations(obs, rng.standard_normal((rows, ACTIONS), np.float32), "random")


def read(dataset: Dataset) -> None:
    for _ in dataset.batches(rows=CHUNK, seed=0, epochs=1):
        pass


def read_arrays(obs: Array, actions: Array) -> None:
    order = np.random.default_rng(0).permutation(len(obs))
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        np.take(obs, chunk, axis=0)
        np.take(actions, chunk, axis=0)


def large(folder: Path, rows: int) -> Iterator[Row]:
    """Writing, reading and memory with as many rows as asked for."""
    demonstrations = _random(min(BLOCK, rows))
    size = f"{rows:,} rows"
    writing = cpu_seconds(lambda: fill(folder / "large", rows=rows, block=len(demonstrations)))
    plain = cpu_seconds(lambda: _write_plainly(folder / "plain", demonstrations, rows // len(demonstrations)))
    yield row(
        "dataset",
        f"append, {size}",
        ours=rows / writing,
        against="the two arrays to a file",
        reference=rows / plain,
        unit="rows/CPU-s",
    )
    dataset = Dataset(folder / "large", writable=False)
    copies = len(dataset) // len(demonstrations)
    copied = [np.tile(array, (copies, 1)) for array in (demonstrations.obs, demonstrations.actions)]
    ours, arrays = interleaved(lambda: read(dataset), lambda: read_arrays(*copied))
    yield row(
        "dataset",
        f"shuffled chunks, {size}",
        ours=len(dataset) / ours,
        against="numpy.take in memory",
        reference=len(dataset) / arrays,
        unit="rows/CPU-s",
        reach=0.8,
    )
    yield row(
        "dataset",
        f"peak memory of reading, {size}",
        ours=peak_mb(folder / "large"),
        against="limit",
        reference=RSS_MB,
        unit="MB",
        reach=1,
        smaller_is_better=True,
    )


def _write_plainly(path: Path, demonstrations: Demonstrations, times: int) -> None:
    with path.open("wb") as file:
        for _ in range(times):
            file.write(demonstrations.obs.data)
            file.write(demonstrations.actions.data)
    path.unlink()


def peak_mb(path: Path) -> float:
    done = subprocess.run([sys.executable, "-c", READ, path], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout) * 1024 / 1e6


def small(folder: Path) -> Iterator[Row]:
    """What an epoch over a small dataset costs beside training on it: at most a twentieth."""
    learn = behaviour_cloning(_random(SMALL_ROWS))
    for blocks in (1, 400):
        dataset = fill(folder / f"small-{blocks}", rows=SMALL_ROWS, block=SMALL_ROWS // blocks)
        ours, learning = interleaved(lambda dataset=dataset: read(dataset), learn, repeats=9)
        yield row(
            "dataset",
            f"an epoch of {SMALL_ROWS:,} rows in {blocks} blocks",
            ours=1e3 * ours,
            against="5 % of a bare torch epoch of minibatches of 256",
            reference=1e3 * learning / 20,
            unit="CPU-ms",
            reach=1,
            smaller_is_better=True,
        )


def behaviour_cloning(demonstrations: Demonstrations) -> Callable[[], None]:
    """An epoch of the plainest training loop there is, in rows as they come."""
    torch.set_num_threads(1)
    obs, actions = torch.from_numpy(demonstrations.obs), torch.from_numpy(demonstrations.actions)
    layers = [torch.nn.Linear(OBS, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh()]
    policy = torch.nn.Sequential(*layers, torch.nn.Linear(64, ACTIONS))
    optimiser = torch.optim.Adam(policy.parameters(), fused=True)

    def epoch() -> None:
        for start in range(0, len(obs), MINIBATCH):
            rows = slice(start, start + MINIBATCH)
            optimiser.zero_grad()
            torch.nn.functional.mse_loss(policy(obs[rows]), actions[rows]).backward()
            optimiser.step()

    return epoch


def main(
    rows: Annotated[int, typer.Option(help="Rows of the large dataset.")] = 10_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="tutelage-dataset-"))
    try:
        show(measured(_benches(folder, rows)), as_json=as_json)
    finally:
        shutil.rmtree(folder)


def _benches(folder: Path, rows: int) -> Iterable[Bench]:
    return (lambda: small(folder), lambda: large(folder, rows))


if __name__ == "__main__":
    typer.run(main)
