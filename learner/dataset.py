"""The aggregated dataset D = ∪ D_i of DAgger (Ross et al., 2011): states and what the expert would do there.

A dataset is a folder of blocks, one for each append. A block is whole and on the disk before `append`
returns, or it is not there at all, so a crash loses nothing that was acknowledged. Rows are read shuffled
across the blocks, a bounded part in memory at a time, so D may outgrow the memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tree

from learner import shuffle
from learner.blocks import (
    Block,
    Column,
    Header,
    Moments,
    append_note,
    expected_rows,
    read_block,
    read_notes,
    write_block,
)
from learner.columns import joined, leaves, rows_of_demonstrations, rows_of_rollout, structure_of
from learner.shuffle import Reader
from tutelage.disk import sync_folder
from tutelage.errors import DatasetError
from tutelage.plugins import did_you_mean
from tutelage.types import Array, Demonstrations, Rollout, Tree

UNLABELLED = "unlabelled.jsonl"  # rounds in which nobody was asked
VERIFY_BYTES = 1 << 30  # of the newest blocks, compared with their checksum when a folder is opened


class Dataset:
    """Rows of (observation, expert action, how it came about), appended by one or more processes.

        dataset = Dataset(run / "dataset")
        dataset.append(rollouts, key=f"round-{i}")  # 0 rows where the key is already there
        for chunk in dataset.batches(rows=65_536, seed=i, epochs=4):
            chunk["obs"], chunk["actions"]          # trees of arrays [rows, ...], shuffled

    Columns are `obs` and `actions` (the expert's), trees of them as `obs.joints`, and `executed` (as chosen),
    `by_expert`, `reward`, `beta`, `version`, `round`, `runner`. Floats of 64 bits are stored with 32. `lost`
    has a line for each damaged file: its rows are gone, and the file is set aside as `*.corrupt`.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = Path(path)
        self.writable = writable
        self.lost: list[str] = []
        self._damaged: set[str] = set()
        self._blocks: tuple[Block, ...] = ()
        self._memory = shuffle.Memory()
        self._unlabelled: tuple[Header, ...] = ()
        self._open()

    def _open(self) -> None:
        if not self.writable:
            self._load(_newest(self._names(), VERIFY_BYTES))
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise DatasetError(f"{self.path} is a file; a dataset is a folder") from None
        with self._locked():
            for leftover in self.path.glob(".block-*.tmp"):
                leftover.unlink()
            self._load(_newest(self._names(), VERIFY_BYTES))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock, which ends with the process that holds it."""
        with (self.path / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _names(self) -> list[Path]:
        if not self.path.is_dir():
            raise DatasetError(f"there is no dataset in {self.path}")
        return sorted(self.path.glob("block-*.arrow"))

    def _load(self, verified: Collection[Path] = ()) -> None:
        known = {block.path: block for block in self._blocks}
        paths = [path for path in self._names() if path.name not in self._damaged]
        loaded = (known.get(path) or self._load_block(path, verify=path in verified) for path in paths)
        self._blocks = tuple(block for block in loaded if block is not None)
        self._unlabelled = tuple(read_notes(self.path / UNLABELLED))

    def _load_block(self, path: Path, *, verify: bool) -> Block | None:
        try:
            block = read_block(path)
            if verify:
                block.verify()
        except DatasetError as error:
            self._lose(path, error)
            return None
        return block

    def _lose(self, path: Path, error: DatasetError) -> None:
        line = f"{error}; {expected_rows(path)} lost"
        if self.writable:
            path.rename(path.with_name(f"{path.name}.corrupt"))
            sync_folder(self.path)
            line += f", set aside as {path.name}.corrupt"
        self._damaged.add(path.name)
        self.lost.append(line)
        warnings.warn(f"dataset {self.path}: {line}", stacklevel=2)

    def refresh(self) -> int:
        """See blocks that others have added since; returns the number of new rows."""
        before = len(self)
        self._load()
        return len(self) - before

    def __len__(self) -> int:
        return sum(block.rows for block in self._blocks)

    @property
    def labels(self) -> int:
        """Rows about which an expert was asked; demonstrations came with their actions."""
        return sum(block.rows for block in self._blocks if block.header.steps)

    @property
    def steps(self) -> int:
        """Environment steps that the rows were chosen from; demonstrations are none."""
        return sum(header.steps for header in self._headers())

    @property
    def attended(self) -> int:
        """Environment steps for which an expert had to be there."""
        return sum(header.attended for header in self._headers())

    @property
    def takeovers(self) -> int:
        """How often an expert began to act."""
        return sum(header.takeovers for header in self._headers())

    def _headers(self) -> list[Header]:
        return [*(block.header for block in self._blocks), *self._unlabelled]

    @property
    def rounds(self) -> int:
        """The largest round that is complete, plus one."""
        return 1 + max((header.round for header in self._headers()), default=-1)

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(header.key for header in self._headers())

    @property
    def sources(self) -> tuple[str, ...]:
        """Environments and demonstrations that the rows came from."""
        return tuple(sorted({block.header.source for block in self._blocks}))

    @property
    def obs_structure(self) -> Tree:
        """The observation with the name of a column in place of each leaf."""
        return self.structure["obs"]

    @property
    def structure(self) -> Mapping[str, Tree]:
        """What `batches` can give, by name, with the name of a column in place of each leaf."""
        return self._first().header.structure

    @property
    def columns(self) -> Mapping[str, Column]:
        """Type and shape of a row of each column."""
        return self._first().columns

    def _first(self) -> Block:
        if not self._blocks:
            raise DatasetError(f"the dataset in {self.path} is empty")
        return self._blocks[0]

    def moments(self) -> dict[str, Moments]:
        """Mean and variance of each observation column that is a vector of floats, over all rows."""
        total: dict[str, Moments] = {}
        for block in self._blocks:
            for name, part in block.moments.items():
                total[name] = total[name].merge(part) if name in total else part
        return total

    def append(self, rollouts: Sequence[Rollout], *, key: str, round: int | None = None) -> int:
        """Add the labelled rows of these rollouts as one block; returns how many there are.

        They are on the disk when this returns. `round` is the one that they complete, by default the last one
        in which any of them was asked for. A key that is already there adds nothing and returns 0. Raises
        DatasetError for rows without expert actions, or unlike those already here.
        """
        if not rollouts or key in self.keys:
            return 0
        parts = [rows_of_rollout(rollout) for rollout in rollouts]
        header = Header(
            key=key,
            steps=sum(rollout.env_steps() for rollout in rollouts),
            round=max(rollout.provenance.round for rollout in rollouts) if round is None else round,
            source=rollouts[0].provenance.recipe.id,
            structure=structure_of(parts[0]),
            attended=sum(rollout.attended_steps() for rollout in rollouts),
            takeovers=sum(rollout.takeovers() for rollout in rollouts),
        )
        return self._append(header, parts)

    def append_demonstrations(self, demonstrations: Demonstrations, *, key: str) -> int:
        """Add demonstrations as one block, like `append`."""
        rows = rows_of_demonstrations(demonstrations)
        header = Header(key, 0, -1, demonstrations.source, structure_of(rows))
        return self._append(header, [rows])

    def _append(self, header: Header, parts: Sequence[Mapping[str, Tree]]) -> int:
        if not self.writable:
            raise DatasetError(f"the dataset in {self.path} is open for reading only")
        arrays = joined(header.structure, parts)
        with self._locked():
            self._load()
            if header.key in self.keys:
                return 0
            if not len(arrays["beta"]):
                self._note(header)
                return 0
            if self._blocks:
                arrays = self._like_stored(header.structure, arrays)
            block = write_block(self._next_path(), header, arrays)
        self._blocks = (*self._blocks, block)
        return block.rows

    def _note(self, header: Header) -> None:
        """Keep what a round cost in which nobody was asked; it is on the disk when this returns."""
        if not header.steps:
            return
        append_note(self.path / UNLABELLED, header)
        self._unlabelled = (*self._unlabelled, header)

    def _next_path(self) -> Path:
        """A number never used before, by damaged blocks neither."""
        taken = (re.match(r"block-(\d+)\.arrow", path.name) for path in self.path.glob("block-*"))
        number = 1 + max((int(match[1]) for match in taken if match), default=-1)
        return self.path / f"block-{number:08d}.arrow"

    def _like_stored(self, structure: Mapping[str, Tree], arrays: Mapping[str, Array]) -> dict[str, Array]:
        for name, stored in self.structure.items():
            if structure[name] != stored:
                raise DatasetError(
                    f"{name}: leaves {leaves(structure[name])}, but the dataset in {self.path} holds "
                    f"{leaves(stored)}; other observations or actions need another dataset"
                )
        return {name: self._column_like_stored(name, array) for name, array in arrays.items()}

    def _column_like_stored(self, name: str, array: Array) -> Array:
        stored = self.columns[name]
        if array.shape[1:] == stored.shape and array.dtype == stored.dtype:
            return array
        if array.shape[1:] == stored.shape and array.dtype.kind in "iu" and stored.dtype.kind in "iu":
            cast = array.astype(stored.dtype)
            if np.array_equal(cast, array):
                return cast
        raise DatasetError(
            f"{name}: rows are {Column(array.dtype, array.shape[1:])}, but the dataset in {self.path} holds "
            f"{stored}; another environment or encoding needs another dataset"
        )

    def row_bytes(self, columns: Sequence[str] = ("obs", "actions")) -> int:
        """Bytes of one row of these columns; reading chunks takes the memory of two chunks at least."""
        return sum(self.columns[name].row_bytes for name in self._leaves_of(columns))

    def _leaves_of(self, columns: Sequence[str]) -> list[str]:
        for column in columns:
            if column not in self.structure:
                raise DatasetError(f"no column {column!r}{did_you_mean(column, self.structure)}")
        return [name for column in columns for name in leaves(self.structure[column])]

    def batches(
        self,
        *,
        rows: int,
        columns: Sequence[str] = ("obs", "actions"),
        seed: int,
        epochs: int,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[dict[str, Tree]]:
        """Chunks of `rows` rows (the last of an epoch may be shorter), every epoch in a new uniform order.

        The reader with a `rank` in a `world` of readers gets its share of the order that the seed gives.
        Shares are disjoint and equally long, so up to `world - 1` rows, others in each epoch, are left out.
        Arrays are new and writable. Rows appended meanwhile are not seen.
        """
        if rows < 1 or not 0 <= rank < world:
            raise ValueError(
                f"rows={rows}, rank={rank}, world={world}: expected rows ≥ 1 and 0 ≤ rank < world"
            )
        if len(self) < world:
            raise DatasetError(f"{len(self)} rows in {self.path} cannot be shared by {world} readers")
        reader = Reader(self._blocks, self._leaves_of(columns))
        structure = {column: self.structure[column] for column in columns}
        chunks = shuffle.chunks(
            reader, self._memory, rows=rows, seed=seed, epochs=epochs, rank=rank, world=world
        )
        return (_rebuilt(structure, chunk) for chunk in chunks)

    def take(self, indices: Array, columns: Sequence[str] = ("obs", "actions")) -> dict[str, Tree]:
        """Rows [N] by their number, in the order of `indices` [N]."""
        reader = Reader(self._blocks, self._leaves_of(columns))
        ascending, inverse = np.unique(indices, return_inverse=True)
        out = reader.empty(len(ascending))
        reader.gather(ascending, out)
        return _rebuilt({column: self.structure[column] for column in columns}, shuffle.take(out, inverse))

    def sample(
        self, rows: int, rng: np.random.Generator, columns: Sequence[str] = ("obs", "actions")
    ) -> dict[str, Tree]:
        """Rows drawn uniformly with replacement."""
        self._first()
        return self.take(rng.integers(len(self), size=rows), columns)


def _rebuilt(structure: Mapping[str, Tree], arrays: Mapping[str, Array]) -> dict[str, Tree]:
    """Trees with the arrays in place of their names."""
    return {column: tree.map_structure(arrays.__getitem__, names) for column, names in structure.items()}


def _newest(paths: Sequence[Path], limit: int) -> set[Path]:
    """The last file, and as many before it as hold at most `limit` bytes together."""
    sizes = np.cumsum([path.stat().st_size for path in reversed(paths)])
    return set(paths[len(paths) - max(1, int((sizes <= limit).sum())) :])
