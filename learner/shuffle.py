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
        bounds = np.searchsorted(indices, self.bounds.astype(indices.dtype))
        for block, first, start, stop in zip(self.blocks, self.bounds, bounds, bounds[1:], strict=False):
            if start == stop:
                continue
            inside = indices[start:stop].astype(np.intp) - first
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
    shares = _shares(reader.rows, seed=seed, epochs=epochs, rank=rank, world=world)
    if reader.rows * reader.row_bytes <= MEMORY_BYTES:
        return _from_memory(memory.hold(reader), shares, rows)
    memory.clear()
    return _from_disk(reader, shares, rows, np.random.default_rng([seed, rank]))


def _shares(total: int, *, seed: int, epochs: int, rank: int, world: int) -> Iterator[Array]:
    """The row numbers of this rank for each epoch: its part of an order that all ranks know."""
    rows = total // world
    for epoch in range(epochs):
        order = permutation(np.random.default_rng([seed, epoch]), total)
        yield order[rank * rows : (rank + 1) * rows]


def permutation(rng: np.random.Generator, n: int) -> Array:
    """0 … n - 1 in random order [n], as the low bits of sorted random keys: for millions of rows that takes
    half the time of swapping them. Keys may tie (50 pairs among 10 million) and then keep their order."""
    bits = n.bit_length()
    keys = rng.integers(1 << (64 - bits), size=n, dtype=np.uint64)
    keys <<= np.uint64(bits)
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort()
    keys &= np.uint64((1 << bits) - 1)
    return keys.astype(np.uint32) if bits <= 32 else keys.view(np.int64)


def _from_memory(data: Mapping[str, Array], shares: Iterator[Array], rows: int) -> Iterator[dict[str, Array]]:
    for share in shares:
        for chunk in _split(share, rows):
            yield take(data, chunk)


def _from_disk(
    reader: Reader, shares: Iterator[Array], rows: int, rng: np.random.Generator
) -> Iterator[dict[str, Array]]:
    """A share in parts that fit into memory. The rows of a part are read in the order in which they lie on
    the disk, then shuffled among themselves, so the order stays uniform over all."""
    part_rows = rows * max(1, MEMORY_BYTES // (rows * reader.row_bytes))
    data = reader.empty(part_rows)
    for share in shares:
        for part in _split(share, part_rows):
            part.sort()
            reader.gather(part, data)
            for chunk in _split(permutation(rng, len(part)), rows):
                yield take(data, chunk)


def _split(array: Array, rows: int) -> Iterator[Array]:
    return (array[i : i + rows] for i in range(0, len(array), rows))


def take(data: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    """Rows [N] of every column, as new arrays."""
    return {name: np.take(array, rows, axis=0) for name, array in data.items()}
