"""Rows of many blocks in a uniformly random order, a bounded part of them in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from learner.blocks import Block
from tutelage.types import Array

MEMORY_BYTES = 128 << 20  # rows held at once


class Reader:
    """Gathers rows of some columns from blocks, numbered through."""

    def __init__(self, blocks: Sequence[Block], names: Sequence[str]) -> None:
        self.blocks = blocks
        self.names = names
        self.columns = {name: blocks[0].columns[name] for name in names}
        self.bounds = np.cumsum([0, *(block.rows for block in blocks)])
        self.rows = int(self.bounds[-1])
        self.row_bytes = sum(column.row_bytes for column in self.columns.values())

    def gather(self, indices: Array, out: Mapping[str, Array]) -> None:
        """Put rows by number into the first rows of `out`. `indices` ascend, so that each block is mapped
        once, read front to back and let go before the next."""
        bounds = np.searchsorted(indices, self.bounds)
        for block, first, start, stop in zip(self.blocks, self.bounds, bounds, bounds[1:], strict=False):
            if start == stop:
                continue
            inside = indices[start:stop] - first
            for name, array in block.arrays(self.names).items():
                np.take(array, inside, axis=0, out=out[name][start:stop], mode="clip")

    def empty(self, rows: int) -> dict[str, Array]:
        return {name: np.empty((rows, *column.shape), column.dtype) for name, column in self.columns.items()}


class Memory:
    """Columns of a small dataset in memory, which grow with it, so that no block is read twice."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.blocks: Sequence[Block] = ()
        self.rows = 0
        self.columns: dict[str, Array] = {}

    def hold(self, reader: Reader) -> dict[str, Array]:
        """All rows of the reader's columns."""
        if self.columns.keys() != set(reader.names) or self.blocks != reader.blocks[: len(self.blocks)]:
            self.clear()
            self.columns = reader.empty(0)
        self._reserve(reader)
        for block in reader.blocks[len(self.blocks) :]:
            for name, array in block.arrays(reader.names).items():
                self.columns[name][self.rows : self.rows + block.rows] = array
            self.rows += block.rows
        self.blocks = reader.blocks
        return {name: array[: self.rows] for name, array in self.columns.items()}

    def _reserve(self, reader: Reader) -> None:
        if reader.rows <= min(len(array) for array in self.columns.values()):
            return
        columns = reader.empty(max(reader.rows, 2 * self.rows))
        for name, array in self.columns.items():
            columns[name][: self.rows] = array[: self.rows]
        self.columns = columns


def chunks(
    reader: Reader, memory: Memory, *, rows: int, seed: int, epochs: int, rank: int, world: int
) -> Iterator[dict[str, Array]]:
    """Chunks of `rows` shuffled rows of this rank's share; see `Dataset.batches`."""
    share = reader.rows // world
    places = slice(rank * share, (rank + 1) * share)
    rngs = (np.random.default_rng([seed, epoch]) for epoch in range(epochs))
    if reader.rows * reader.row_bytes <= MEMORY_BYTES:
        return _from_memory(memory.hold(reader), places, rngs, rows)
    memory.clear()
    return _from_disk(reader, places, rngs, rows)


def _from_memory(
    data: Mapping[str, Array], places: slice, rngs: Iterator[np.random.Generator], rows: int
) -> Iterator[dict[str, Array]]:
    total = len(next(iter(data.values())))
    for rng in rngs:
        order = permutation(rng, total)[places]
        for start in range(0, len(order), rows):
            yield take(data, order[start : start + rows])


def _from_disk(
    reader: Reader, places: slice, rngs: Iterator[np.random.Generator], rows: int
) -> Iterator[dict[str, Array]]:
    """Parts that fit into memory, one after the other, and of each chunks in random order."""
    data = reader.empty(0)
    for rng in rngs:
        left = places.stop - places.start
        chunk, filled = reader.empty(min(rows, left)), 0
        for numbers, order in _parts(reader, places, rng):
            if len(numbers) > _length(data):
                data = reader.empty(len(numbers) * 101 // 100)  # parts differ by less
            reader.gather(numbers, data)
            while len(order):
                some, order = order[: _length(chunk) - filled], order[_length(chunk) - filled :]
                for name, out in chunk.items():
                    np.take(data[name], some, axis=0, out=out[filled : filled + len(some)], mode="clip")
                filled += len(some)
                if filled == _length(chunk):
                    yield chunk
                    left -= filled
                    chunk, filled = reader.empty(min(rows, left)), 0


def _parts(reader: Reader, places: slice, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """The rows at some places of a uniformly random order, as (their numbers, ascending; how to order them).

    Each row goes to a part by chance, and each part is put in random order by itself (Rao & Sandelius, 1961).
    That needs a byte per row where a permutation needs eight. All ranks draw the same order.
    """
    parts = -(-reader.rows * reader.row_bytes // MEMORY_BYTES)
    part_of = rng.integers(parts, size=reader.rows, dtype=np.uint8 if parts <= 256 else np.uint32)
    seeds = rng.integers(2**63, size=parts)
    start = 0
    for part, seed in enumerate(seeds):
        numbers = np.flatnonzero(part_of == part)
        wanted = slice(max(places.start - start, 0), max(places.stop - start, 0))
        start += len(numbers)
        rng = np.random.default_rng(seed)
        order = permutation(rng, len(numbers))[wanted]
        if 0 < len(order) < len(numbers):
            numbers = np.sort(numbers[order])
            order = permutation(rng, len(numbers))
        if len(order):
            yield numbers, order


def _length(columns: Mapping[str, Array]) -> int:
    return len(next(iter(columns.values())))


def permutation(rng: np.random.Generator, n: int) -> Array:
    """0 … n - 1 in random order [n], as the low bits of sorted random keys: for millions of rows that takes
    half the time of swapping them. Keys may tie (50 pairs among 10 million) and then keep their order."""
    bits = n.bit_length()
    keys = rng.integers(2**64, size=n, dtype=np.uint64)
    keys <<= np.uint64(bits)
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort()
    keys &= np.uint64((1 << bits) - 1)
    return keys.view(np.int64)


def take(data: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    """Rows [N] of every column, as new arrays."""
    return {name: np.take(array, rows, axis=0) for name, array in data.items()}
