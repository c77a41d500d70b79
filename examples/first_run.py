"""The first run: DAgger on Hopper with an expert service in another process, beside BC with as many labels.

    make run        or        python -m examples.first_run [--env hopper] [--labels 8000] [--runs runs]

Starts `tutelage oracle serve` with the expert that comes with Tutelage, trains DAgger and then behaviour
cloning, two rollout actors each, and ends with a table of returns, learning curves, a summary and a video.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from actors.clips import record
from expert_oracle.checkpoint import load_checkpoint
from services import report
from services.job import execute, new_run
from services.overrides import load_config
from services.trainer import result_seeds
from tutelage.errors import TutelageError
from tutelage.types import EnvRecipe


@contextlib.contextmanager
def expert_service(expert: str, env: str) -> Iterator[str]:
    """An expert service in another process; its `grpc://` address."""
    command = [sys.executable, "-m", "services.cli", "oracle", "serve", expert, "--env", env]
    process = subprocess.Popen([*command, "--address", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise TutelageError(f"the expert service ended with status {process.wait()}")
        print(line.strip())
        yield line.split()[-1]
    finally:
        process.terminate()
        process.wait(timeout=20)


def train(preset: str, folder: Path, overrides: list[str]) -> Path:
    """One run to its end; its folder."""
    sections = load_config(preset, overrides)
    with new_run(sections, folder) as run:
        execute(run, sections, quiet=False)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="hopper", help="cartpole, lunarlander, hopper or halfcheetah")
    parser.add_argument("--labels", type=int, default=8_000, help="expert labels that each method may use")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folder is made")
    options = parser.parse_args()
    folder = options.runs / time.strftime("first-run-%Y%m%d-%H%M%S")
    env = load_config(f"dagger-{options.env}", [])["environment"]["env"]
    with expert_service(f"checkpoint:{options.env}", env) as address:
        common = [
            f"expert.oracle={address}",
            "env_runners.num_env_runners=2",
            "env_runners.rollout_fragment_length=500",
            "evaluation.evaluation_interval=2",
            "run.episodes=30",
            f"stop.expert_labels={options.labels}",
        ]
        dagger = train(f"dagger-{options.env}", folder / "dagger", common)
        bc = train(f"bc-{options.env}", folder / "bc", [*common, "run.baselines=false"])
    report.plot([dagger, bc], folder / "returns.png")
    Console().print(report.table(report.rows(report.read_groups([bc, dagger]))))
    print(f"learning curves: {folder / 'returns.png'}\nsummary:         {dagger / 'summary.json'}")
    try:
        video = folder / "dagger.mp4"
        record(load_checkpoint(str(dagger)).act, EnvRecipe(env), result_seeds(0, 1)[0], video)
        print(f"video:           {video}")
    except TutelageError as error:
        print(f"no video: {error}")


if __name__ == "__main__":
    main()
