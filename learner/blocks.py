"""One block of the aggregated dataset: a file of rows in the Arrow IPC format, written once, then only read.

Columns have a fixed shape per row and lie contiguously and uncompressed, so a block is mapped as numpy arrays
without a copy, and any Arrow reader opens it. Booleans are stored as bytes. What the dataset must know
without reading rows (key, counts, moments, how nested observations are put together) is JSON in the metadata
of the schema, beside a checksum of it and of all rows.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tutelage.disk import sync_folder
from tutelage.errors import DatasetError
from tutelage.types import Array, Tree

METADATA = b"tutelage"
CHECKSUM = b"crc32"
STREAM_OFFSET = 8  # bytes of magic before the schema in an Arrow file
MOMENT_ROWS = 65_536  # rows whose float64 copy is held while moments are computed


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and variance of the rows of one column of vectors."""

    count: int
    mean: Array  # [D] float64
    var: Array  # [D] float64, of the population

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together (Chan et al., 1979)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        squares = self.var * self.count + other.var * other.count
        squares += delta**2 * (self.count * other.count / count)
        return Moments(count, mean, squares / count)


@dataclass(frozen=True)
class Header:
    """What a block says about its rows."""

    key: str  # of the append that wrote it, unique in a dataset
    steps: int  # of the environment, labelled or not; 0 for demonstrations
    round: int  # largest round among the rows; -1 for demonstrations
    source: str  # environment id, or where demonstrations came from
    structure: Mapping[str, Tree]  # how columns make up trees: {"obs": {"joints": "obs.joints"}, ...}
    attended: int = 0  # steps for which an expert had to be there
    takeovers: int = 0  # how often it began to act


@dataclass(frozen=True)
class Column:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]  # of one row
    offset: int = 0  # bytes from the start of the file

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Block:
    path: Path
    rows: int
    header: Header
    columns: Mapping[str, Column]
    moments: Mapping[str, Moments]  # of observation columns that are vectors of floats
    metadata: bytes  # the JSON that the checksum starts with
    checksum: int

    def arrays(self, names: Iterable[str]) -> dict[str, Array]:
        """Read-only arrays [rows, ...] on the mapped file, which is unmapped when the last of them dies."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        return {name: self._array(mapped, self.columns[name]) for name in names}

    def _array(self, mapped: mmap.mmap, column: Column) -> Array:
        items = self.rows * math.prod(column.shape)
        flat = np.frombuffer(mapped, column.dtype, items, column.offset)
        return flat.reshape(self.rows, *column.shape)

    def verify(self) -> None:
        """Read all rows; raises DatasetError where they are not what was written."""
        if _checksum(self.metadata, self.arrays(self.columns)) != self.checksum:
            raise DatasetError(f"{self.path.name}: the checksum does not match")


def write_block(path: Path, header: Header, arrays: Mapping[str, Array]) -> Block:
    """Write equally long C-contiguous arrays as a new file at `path`, all of it or nothing.

    The rows are on the disk when this returns. Raises DatasetError when they cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            _write(file, header, arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        rows = len(next(iter(arrays.values())))
        raise DatasetError(
            f"cannot write {path}: {error.strerror or error}; {rows:,} rows not stored"
        ) from error
    return read_block(path)


def _write(file: Any, header: Header, arrays: Mapping[str, Array]) -> None:
    metadata = json.dumps(_describe(header, arrays)).encode()
    checksum = str(_checksum(metadata, arrays)).encode()
    columns = {name: _to_arrow(array) for name, array in arrays.items()}
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    schema = pa.schema(fields, metadata={METADATA: metadata, CHECKSUM: checksum})
    with pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))


def _describe(header: Header, arrays: Mapping[str, Array]) -> dict[str, Any]:
    moments = {name: moments_of(array) for name, array in arrays.items() if _has_moments(name, array)}
    return {
        "key": header.key,
        "rows": len(next(iter(arrays.values()))),
        "steps": header.steps,
        "round": header.round,
        "source": header.source,
        "structure": header.structure,
        "attended": header.attended,
        "takeovers": header.takeovers,
        "columns": {name: [array.dtype.str, array.shape[1:]] for name, array in arrays.items()},
        "moments": {name: [m.count, m.mean.tolist(), m.var.tolist()] for name, m in moments.items()},
    }


def _has_moments(name: str, array: Array) -> bool:
    return name.split(".")[0] == "obs" and array.ndim == 2 and array.dtype.kind == "f"


def moments_of(array: Array) -> Moments:
    """Moments of vectors [N, D], in double precision."""
    mean = array.mean(axis=0, dtype=np.float64)
    parts = (array[i : i + MOMENT_ROWS] - mean for i in range(0, len(array), MOMENT_ROWS))
    squares = np.sum([np.einsum("nd,nd->d", part, part) for part in parts], axis=0)
    return Moments(len(array), mean, squares / len(array))


def _to_arrow(array: Array) -> pa.Array:
    array = array.view(np.uint8) if array.dtype == np.bool_ else array
    return pa.array(array) if array.ndim == 1 else pa.FixedShapeTensorArray.from_numpy_ndarray(array)


def _checksum(metadata: bytes, arrays: Mapping[str, Array]) -> int:
    value = zlib.crc32(metadata)
    for array in arrays.values():
        value = zlib.crc32(array.reshape(-1).view(np.uint8).data, value)
    return value


def read_block(path: Path) -> Block:
    """Read what a block says about itself; raises DatasetError, saying why, where it is not a whole block."""
    try:
        with pa.memory_map(str(path)) as source:
            return _parse(path, source)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(f"{path.name}: {reason}") from error


def _parse(path: Path, source: pa.MemoryMappedFile) -> Block:
    start = source.read_buffer().address
    reader = pa.ipc.open_file(source)
    metadata = reader.schema.metadata or {}
    said = json.loads(metadata[METADATA])
    batch = reader.get_batch(0)
    if batch.num_rows != said["rows"] or batch.schema.names != list(said["columns"]):
        raise ValueError("the rows are not those of the header")
    offsets = [column.buffers()[-1].address - start for column in batch.columns]
    described = zip(said["columns"].items(), offsets, strict=True)
    return Block(
        path=path,
        rows=said["rows"],
        header=_header(said),
        columns={name: Column(np.dtype(d), tuple(shape), offset) for (name, (d, shape)), offset in described},
        moments={name: Moments(n, np.array(m), np.array(v)) for name, (n, m, v) in said["moments"].items()},
        metadata=metadata[METADATA],
        checksum=int(metadata[CHECKSUM]),
    )


def _header(said: Mapping[str, Any]) -> Header:
    structure = {name: with_tuples(value) for name, value in said["structure"].items()}
    attended, takeovers = said.get("attended", said["steps"]), said.get("takeovers", 0)
    return Header(said["key"], said["steps"], said["round"], said["source"], structure, attended, takeovers)


def with_tuples(structure: Tree) -> Tree:
    """The structure with sequences as tuples, which JSON gives back as lists."""
    if isinstance(structure, Mapping):
        return {name: with_tuples(value) for name, value in structure.items()}
    return tuple(map(with_tuples, structure)) if isinstance(structure, list | tuple) else structure


def append_note(path: Path, header: Header) -> None:
    """Add what a block without rows would say, as a line; it is on the disk when this returns."""
    with path.open("ab") as file:
        torn = file.tell() and not path.read_bytes().endswith(b"\n")  # by a crash
        file.write(b"\n" * bool(torn) + json.dumps({**asdict(header), "structure": {}}).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_notes(path: Path) -> list[Header]:
    """The headers of such lines; one that a crash cut short is left out."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    headers = []
    for line in lines:
        with contextlib.suppress(ValueError):
            headers.append(Header(**json.loads(line)))
    return headers


def expected_rows(path: Path) -> str:
    """What a damaged block's header still says it held, in words."""
    try:
        said = json.loads(_leading_metadata(path)[METADATA])
        return f"{said['rows']:,} rows under the key {said['key']!r}"
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return "an unknown number of rows"


def _leading_metadata(path: Path) -> Mapping[bytes, bytes]:
    with pa.memory_map(str(path)) as source:
        source.seek(STREAM_OFFSET)
        return pa.ipc.read_schema(source).metadata or {}
