"""Comparisons on the disk, asked and answered: as many as people give, whatever the memory.

    comparisons = Comparisons(run / "preferences")
    comparisons.ask(queries)             # the segments are on the disk when it returns
    comparisons.hear(answers)            # and so are the answers, each annotator's last one to a question
    model.fit(comparisons.compared())

A column of the segments is a file of records, one after the other, and so are the actions of their episodes
before them and the pictures that were kept of them, as many as there are. A line of `index.jsonl` says that a
question is whole, or what somebody answered: what a crash left behind the last line is overwritten. Rows are
read as they are needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import tree

from learner.blocks import with_tuples
from learner.reward_model import Compared
from tutelage.errors import DatasetError, TrainingError
from tutelage.types import Answer, Array, EnvRecipe, Query, Segment, Tree

INDEX = "index.jsonl"
PREFIXES, PICTURES = "prefixes.bin", "pictures.bin"  # of segments, of any length


class Comparisons:
    """Comparisons of K segments of L steps each, by one writer. Who cannot tell teaches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._columns: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._structure: Any = None
        self._rows: dict[str, int] = {}  # question -> its row, in order
        self._lines: list[int] = []  # where in the index is what makes a row a question again
        self._sizes = {PREFIXES: 0, PICTURES: 0}
        self._answers: dict[tuple[str, str], list[float] | None] = {}  # (question, annotator) -> weights
        self._replied: set[str] = set()  # questions
        self._first: dict[tuple[str, str], int] = {}  # the same -> `heard` before it said which is better
        self.heard = 0  # answers that ever came, those that took the place of others too
        self._read()

    def __len__(self) -> int:
        """Answers from which something is learnt."""
        return sum(weights is not None for weights in self._answers.values())

    @property
    def asked(self) -> int:
        """Questions."""
        return len(self._rows)

    @property
    def answered(self) -> int:
        """Answers, also of those who could not tell."""
        return len(self._answers)

    @property
    def unanswered(self) -> int:
        """Questions to which nobody has said anything. Others may have several answers."""
        return len(self._rows) - len(self._replied)

    def ask(self, queries: Sequence[Query]) -> None:
        """Keep the segments of new questions. Raises DatasetError for some unlike those before, or a full
        disk."""
        new = [query for query in queries if query.id not in self._rows]
        if new:
            self._append(new)

    def hear(self, answers: Iterable[Answer]) -> int:
        """Keep answers; one that comes again takes the place of the first. Returns how many were new.

        Of several by one annotator to a question the last one counts, so a service may say all again. Answers
        to questions that were not asked here are passed over. Raises TrainingError for one that is no weights
        of the question's options.
        """
        last: dict[tuple[str, str], dict[str, Any]] = {}
        for answer in answers:
            if answer.query_id not in self._rows:
                continue
            key = answer.query_id, answer.annotator
            last.pop(key, None)  # so that the newest come last
            last[key] = {
                "query": answer.query_id,
                "annotator": answer.annotator,
                "weights": None if answer.cannot_tell else self._weights(answer),
                "answered_at": answer.answered_at,
            }
        before = len(self._answers)
        new = {key: line for key, line in last.items() if self._answers.get(key, ()) != line["weights"]}
        if new:
            self._write({}, list(new.values()))
            for key, line in new.items():
                self._hear(key, line["weights"])
        return len(self._answers) - before

    def _weights(self, answer: Answer) -> list[float]:
        (options, *_) = self._columns["actions"][1]
        weights = np.asarray(answer.value, np.float64)
        if weights.shape != (options,) or not (weights >= 0).all() or abs(weights.sum() - 1) > 1e-3:
            raise TrainingError(
                f"feedback: {answer.annotator or 'somebody'} answered question {answer.query_id} with "
                f"{np.asarray(answer.value).tolist()!r}; expected {options} weights that sum to 1"
            )
        return weights.tolist()

    def open(self) -> list[Query]:
        """Questions that nobody has answered, as they were asked."""
        return [self._query(id, row) for id, row in self._rows.items() if id not in self._replied]

    def new_since(self, heard: int) -> Compared | None:
        """The comparisons that came after so many answers, corrections of earlier ones left out; None: there
        are none."""
        new = [key for key in self._decided() if self._first[key] >= heard]
        return self._compared(new) if new else None

    def compared(self) -> Compared:
        """All of them, read from the disk as they are indexed. Raises DatasetError where there are none."""
        return self._compared(list(self._decided()))

    def annotators(self) -> list[str]:
        """Who answered, an entry for each comparison of `compared()`."""
        return [annotator for _, annotator in self._decided()]

    def segments(self) -> tuple[Tree, Array]:
        """Observations and actions [Q, K, L, ...] of all questions, answered or not."""
        arrays = self._arrays()
        return self._obs(arrays), arrays["actions"]

    def rewards(self) -> Array:
        """The environment's own [Q, K, L] in the segments of all questions: to report, not to learn from."""
        return self._arrays()["rewards"]

    def _decided(self) -> Iterable[tuple[str, str]]:
        return (key for key, weights in self._answers.items() if weights is not None)

    def _compared(self, keys: Sequence[tuple[str, str]]) -> Compared:
        if not keys:
            raise DatasetError(f"{self.path} has no comparisons yet")
        arrays = self._arrays()
        return Compared(
            self._obs(arrays),
            arrays["actions"],
            np.array([self._answers[key] for key in keys], np.float32),
            np.array([self._rows[query] for query, _ in keys], np.int64),
            arrays["ended"],
        )

    def _arrays(self) -> dict[str, Array]:
        return {
            name: np.memmap(self._file(name), dtype, "r", shape=(len(self._rows), *shape))
            for name, (dtype, shape) in self._columns.items()
        }

    def _obs(self, arrays: Mapping[str, Array]) -> Any:
        obs = [array for name, array in arrays.items() if name.startswith("obs")]
        return obs[0] if self._structure is None else tree.unflatten_as(self._structure, obs)

    def _query(self, id: str, row: int) -> Query:
        arrays, said = self._arrays(), self._said(row)
        options = [
            Segment(
                obs=tree.map_structure(lambda x, k=k: np.array(x[row, k]), self._obs(arrays)),
                actions=np.array(arrays["actions"][row, k]),
                recipe=EnvRecipe(**one["recipe"]),
                seed=one["seed"],
                prefix=self._prefix(*one["prefix"]),
                rewards=np.array(arrays["rewards"][row, k]) if one["rewards"] else None,
                played=one["played"],
                pictures=self._pictures(*one["pictures"]) if one.get("pictures") else None,
            )
            for k, one in enumerate(said["options"])
        ]
        return Query(id, said["kind"], options, said["context"], said["priority"], said["wanted"])

    def _said(self, row: int) -> Mapping[str, Any]:
        """The index's line about a row."""
        with (self.path / INDEX).open("rb") as file:
            file.seek(self._lines[row])
            return json.loads(file.readline())

    def _prefix(self, at: int, steps: int) -> Array:
        """The actions [steps, ...] that lie there."""
        dtype, (_, _, *shape) = self._columns["actions"]
        if not steps:
            return np.zeros((0, *shape), dtype)  # the file may not be there
        flat = np.fromfile(self.path / PREFIXES, dtype, steps * int(np.prod(shape, dtype=int)), offset=at)
        return flat.reshape(steps, *shape)

    def _pictures(self, at: int, sizes: Sequence[int]) -> tuple[bytes, ...]:
        """Those of these sizes that lie there."""
        with (self.path / PICTURES).open("rb") as file:
            file.seek(at)
            return tuple(file.read(size) for size in sizes)

    def _file(self, name: str) -> Path:
        return self.path / f"{quote(name, safe='')}.bin"  # names of observations may have a slash

    # Writing

    def _append(self, new: Sequence[Query]) -> None:
        rows = [self._row(query) for query in new]
        if not self._columns:
            self._columns = {name: (array.dtype, array.shape) for name, array in rows[0].items()}
            structure = tree.map_structure(lambda _: 0, new[0].options[0].obs)
            self._structure = structure if tree.is_nested(structure) else None
        for query, row in zip(new, rows, strict=True):
            if (found := {name: (x.dtype, x.shape) for name, x in row.items()}) != self._columns:
                raise DatasetError(f"{self.path}: query {query.id} is of {found}, the others {self._columns}")
        data = {name: b"".join(row[name].tobytes() for row in rows) for name in self._columns}
        dtype, _ = self._columns["actions"]
        segments = [one for query in new for one in query.options]
        loose = {
            PREFIXES: [np.asarray(one.prefix, dtype).tobytes() for one in segments],
            PICTURES: [b"".join(one.pictures or ()) for one in segments],
        }
        starts = (np.cumsum([self._sizes[name], *map(len, parts)]).tolist() for name, parts in loose.items())
        places = zip(*starts, strict=True)
        lines = [_asked(query, places) for query in new]
        if not self._rows:
            columns = {name: [dtype.str, list(shape)] for name, (dtype, shape) in self._columns.items()}
            lines[0] |= {"columns": columns, "structure": self._structure}
        self._lines += self._write(data, lines, {name: b"".join(parts) for name, parts in loose.items()})
        for query in new:
            self._rows[query.id] = len(self._rows)

    def _row(self, query: Query) -> dict[str, Array]:
        """The columns of a query, [K, L, ...]."""
        segments = query.options
        if not all(isinstance(one, Segment) for one in segments):
            raise DatasetError(f"{self.path}: query {query.id} is not about segments")
        obs = tree.map_structure(lambda *parts: np.stack(parts), *(one.obs for one in segments))
        columns = {".".join(["obs", *map(str, path)]): x for path, x in tree.flatten_with_path(obs)}
        nothing = np.zeros(len(segments[0].actions), np.float32)
        return {
            **columns,
            "actions": np.stack([one.actions for one in segments]),
            "rewards": np.stack([nothing if one.rewards is None else one.rewards for one in segments]).astype(
                np.float32
            ),
            "ended": np.stack([one.ended for one in segments]),
        }

    def _write(
        self,
        columns: Mapping[str, bytes],
        lines: Sequence[Mapping[str, Any]],
        loose: Mapping[str, bytes] = {},
    ) -> list[int]:
        """Returns where each line is in the index."""
        said = [json.dumps(line).encode() + b"\n" for line in lines]
        try:
            for name, data in columns.items():
                dtype, shape = self._columns[name]
                size = dtype.itemsize * int(np.prod(shape))
                self._put(self._file(name), data, len(self._rows) * size)
            for name, data in loose.items():
                if data:
                    self._put(self.path / name, data, self._sizes[name])
            self._put(self.path / INDEX, b"".join(said), self._index_size)
        except OSError as error:
            raise DatasetError(f"{self.path} cannot be written: {error.strerror or error}") from error
        *starts, self._index_size = np.cumsum([self._index_size, *map(len, said)]).tolist()
        for name, data in loose.items():
            self._sizes[name] += len(data)
        return starts

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
                    self._take(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise DatasetError(f"{index}, line {number}: {error!r}") from None
                self._index_size += len(line)

    def _take(self, said: Mapping[str, Any]) -> None:
        """A line of the index."""
        if "columns" in said:
            self._columns = {name: (np.dtype(d), tuple(s)) for name, (d, s) in said["columns"].items()}
            self._structure = with_tuples(said["structure"])
        if "asked" in said:
            self._rows[said["asked"]] = len(self._rows)
            self._lines.append(self._index_size)
            dtype, (_, _, *shape) = self._columns["actions"]
            last = said["options"][-1]
            at, steps = last["prefix"]
            self._sizes[PREFIXES] = at + steps * dtype.itemsize * int(np.prod(shape, dtype=int))
            if last.get("pictures"):
                at, sizes = last["pictures"]
                self._sizes[PICTURES] = at + sum(sizes)
        else:
            self._hear((said["query"], said["annotator"]), said["weights"])

    def _hear(self, key: tuple[str, str], weights: list[float] | None) -> None:
        self._answers.pop(key, None)  # so that the newest come last
        self._answers[key] = weights
        self._replied.add(key[0])
        if weights is not None:
            self._first.setdefault(key, self.heard)
        self.heard += 1


def _asked(query: Query, places: Iterator[tuple[int, int]]) -> dict[str, Any]:
    """What a line of the index says of a question, besides its columns; `places`, where prefix and pictures
    of its segments begin."""
    options = [
        {
            "recipe": {
                "id": one.recipe.id,
                "kwargs": dict(one.recipe.kwargs),
                "backend": one.recipe.backend,
                "versions": dict(one.recipe.versions),
            },
            "seed": int(one.seed),
            "prefix": [prefix, len(one.prefix)],
            "pictures": [pictures, [len(picture) for picture in one.pictures]] if one.pictures else None,
            "played": one.played,
            "rewards": one.rewards is not None,
        }
        for one, (prefix, pictures) in zip(query.options, places, strict=False)
    ]
    return {
        "asked": query.id,
        "kind": query.kind,
        "context": dict(query.context),
        "priority": query.priority,
        "wanted": query.answers_wanted,
        "options": options,
    }
