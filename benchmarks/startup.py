"""Start-up: `python -m benchmarks.startup [--json]`. Wall seconds of whole processes, medians of five."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

from benchmarks.common import Row, row, run


def wall_seconds(command: Sequence[str], repeats: int = 5) -> float:
    """Median wall seconds of a process from its start to its end, after one run to warm the caches."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def startup() -> Iterable[Row]:
    """Seconds that may pass, over seconds that do."""
    bare = wall_seconds([sys.executable, "-c", "pass"])
    commands = {
        "tutelage --help": ([sys.executable, "-m", "services.cli", "--help"], 0.5, 0.0),
        "import tutelage": ([sys.executable, "-c", "import tutelage"], 0.2, bare),
    }
    for case, (command, allowed, base) in commands.items():
        yield row(
            "startup",
            case,
            ours=max(wall_seconds(command) - base, 1e-4),
            against="allowed",
            reference=allowed,
            unit="s",
            reach=1,
            smaller_is_better=True,
        )


if __name__ == "__main__":
    run({"startup": startup})
