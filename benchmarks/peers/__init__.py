"""What `imitation` and Stable-Baselines3 take for the same work, in a virtual environment of their own.

`measure` runs one case and returns its figures; `python -m benchmarks.peers` prints them. What is in
`scripts/` runs on the peers' Python: nothing of ours is imported there, and nothing of theirs here.
"""

from benchmarks.peers.cases import CASES, measure
from benchmarks.peers.environment import prepare

__all__ = ["CASES", "measure", "prepare"]
