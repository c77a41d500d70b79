"""Speed as a ratio to a bare loop or a peer in the same run: `python -m benchmarks.NAME --json`."""
