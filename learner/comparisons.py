"""Answered comparisons on the disk: as many as people give, whatever the memory.

    comparisons = Comparisons(run / "preferences")
    comparisons.add([(query, answer), ...])      # on the disk when it returns; one that is there adds nothing
    model.fit(comparisons.compared())

A column of the segments is a file of records, one after the other, and a line of `index.jsonl` says that a
comparison is whole: what a crash left behind the last line is overwritten. Rows are read as they are needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tree

from learner.reward_model import Compared
from tutelage.errors import DatasetError
from tutelage.types import Answer, Array, Query, Segment

INDEX = "index.jsonl"


class Comparisons:
    """Comparisons of K segments of L steps each, by one writer. Who could not tell is not among them."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._columns: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._structure: Any = None
        self._weights: list[list[float]] = []
        self._known: set[tuple[str, str]] = set()
        self._read()

    def __len__(self) -> int:
        return len(self._weights)

    def add(self, answered: Sequence[tuple[Query, Answer]]) -> int:
        """Returns how many were new. Raises DatasetError for segments unlike those before, or a full disk."""
        new = []
        for query, answer in answered:
            key = (query.id, answer.annotator)
            if key not in self._known and not answer.cannot_tell:
                self._known.add(key)
                new.append((query, answer))
        if new:
            try:
                self._append(new)
            except BaseException:
                self._known -= {(query.id, answer.annotator) for query, answer in new}
                raise
        return len(new)

    def compared(self) -> Compared:
        """All of them, read from the disk as they are indexed. Raises DatasetError where there are none."""
        if not len(self):
            raise DatasetError(f"{self.path} has no comparisons yet")
        arrays = {
            name: np.memmap(self._file(name), dtype, "r", shape=(len(self), *shape))
            for name, (dtype, shape) in self._columns.items()
        }
        obs = [array for name, array in arrays.items() if name.startswith("obs")]
        weights = np.array(self._weights, np.float32)
        structure = self._structure if self._structure is not None else obs[0]
        return Compared(
            tree.unflatten_as(structure, obs),
            arrays["actions"],
            weights,
            np.arange(len(self), dtype=np.int64),
        )

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.bin"

    # Writing

    def _append(self, new: Sequence[tuple[Query, Answer]]) -> None:
        rows = [self._row(query) for query, _ in new]
        if not self._columns:
            self._columns = {name: (array.dtype, array.shape) for name, array in rows[0].items()}
            self._structure = tree.map_structure(lambda _: 0, new[0][0].options[0].obs)
        for (query, answer), row in zip(new, rows, strict=True):
            if (found := {name: (x.dtype, x.shape) for name, x in row.items()}) != self._columns:
                raise DatasetError(f"{self.path}: query {query.id} is of {found}, the others {self._columns}")
            if len(answer.value) != len(query.options):
                raise DatasetError(
                    f"{self.path}: the answer to {query.id} has {len(answer.value)} weights for "
                    f"{len(query.options)} segments"
                )
        try:
            self._write(new, rows)
        except OSError as error:
            raise DatasetError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self._weights += [[float(weight) for weight in answer.value] for _, answer in new]

    def _row(self, query: Query) -> dict[str, Array]:
        """The columns of a query, [K, L, ...]."""
        segments = query.options
        if not all(isinstance(one, Segment) for one in segments):
            raise DatasetError(f"{self.path}: query {query.id} is not about segments")
        obs = tree.map_structure(lambda *parts: np.stack(parts), *(one.obs for one in segments))
        columns = {".".join(["obs", *map(str, path)]): x for path, x in tree.flatten_with_path(obs)}
        return {**columns, "actions": np.stack([one.actions for one in segments])}

    def _write(self, new: Sequence[tuple[Query, Answer]], rows: Sequence[dict[str, Array]]) -> None:
        for name, (dtype, shape) in self._columns.items():
            size = dtype.itemsize * int(np.prod(shape))
            self._put(self._file(name), b"".join(row[name].tobytes() for row in rows), len(self) * size)
        lines = [
            {
                "query": query.id,
                "annotator": answer.annotator,
                "weights": [float(weight) for weight in answer.value],
                "answered_at": answer.answered_at,
            }
            for query, answer in new
        ]
        if not len(self):
            lines[0]["columns"] = {
                name: [dtype.str, list(shape)] for name, (dtype, shape) in self._columns.items()
            }
            lines[0]["structure"] = self._structure
        index = self.path / INDEX
        size = self._index_size
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        self._put(index, data, size)
        self._index_size = size + len(data)

    def _put(self, path: Path, data: bytes, at: int) -> None:
        """`data` at this place of the file, and nothing behind it; on the disk."""
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(at)
            file.seek(at)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    # Reading

    def _read(self) -> None:
        self._index_size = 0
        index = self.path / INDEX
        if not index.exists():
            return
        with index.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # a crash cut it short
                try:
                    said = json.loads(line)
                    self._weights.append(said["weights"])
                    self._known.add((said["query"], said["annotator"]))
                except (ValueError, KeyError, TypeError) as error:
                    raise DatasetError(f"{index}, line {number}: {error!r}") from None
                if "columns" in said:
                    self._columns = {
                        name: (np.dtype(d), tuple(s)) for name, (d, s) in said["columns"].items()
                    }
                    self._structure = said["structure"]
                self._index_size += len(line)
