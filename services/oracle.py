"""What the commands of `tutelage oracle` do; they need no Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from expert_oracle import probing, server, workers
from expert_oracle.access import ServerAccess
from expert_oracle.loading import GRPC, OracleSpec
from expert_oracle.metrics import event, log_to_stderr
from expert_oracle.remote import RemoteOracle
from services.overrides import key_values
from tutelage.errors import ConfigError
from tutelage.types import Array

PATIENCE_S = 5.0


def serve_command(
    word: str,
    arguments: Sequence[str],
    *,
    address: str,
    processes: int,
    log_format: Literal["text", "json"],
    access: ServerAccess,
    metrics_address: str,
    **settings: Any,
) -> None:
    """`tutelage oracle serve`."""
    for option, value in {"--address": address, "--metrics-address": metrics_address}.items():
        _check_address(option, value)
    log_to_stderr(log_format)
    if warning := access.warning(address):
        event(warning, logging.WARNING)
    spec = OracleSpec(word, key_values(arguments))
    settings |= {"address": address, "name": word, "access": access, "metrics_address": metrics_address}
    if processes == 1:
        server.serve(spec.build(), **settings)
    else:
        workers.serve(spec.build, workers=processes, log_format=log_format, **settings)


def _check_address(option: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    if address and not (host and port.isdigit() and int(port) < 2**16):
        raise ConfigError(f"{option}: {address!r} is not of the form HOST:PORT")


def client(address: str, arguments: Sequence[str]) -> RemoteOracle:
    """A client of the service at `host:port`, with or without `grpc://` before it."""
    given = {"connect_timeout_s": PATIENCE_S} | key_values(arguments)
    oracle = OracleSpec(GRPC + address.removeprefix(GRPC), given).build()
    assert isinstance(oracle, RemoteOracle)
    return oracle


def ping_command(address: str, arguments: Sequence[str]) -> dict[str, Any]:
    """`tutelage oracle ping`."""
    said = probing.ping(client(address, arguments))
    print(f"{said['address']} is {said['name']} (version {said['version']}), {said['health']}")
    print(f"for {said['env'] or 'an environment it does not name'}")
    print(f"acts from {said['observation_space']} to {said['action_space']}")
    print(f"there and back: {said['p50_ms']:g} ms, one in a hundred {said['p99_ms']:g} ms")
    return said


def bench_command(
    address: str, arguments: Sequence[str], *, batches: Sequence[int], seconds: float, shape: str | None
) -> dict[str, Any]:
    """`tutelage oracle bench`."""
    oracle = client(address, arguments)
    rows = []
    print(f"{'rpc':8} {'batch':>6} {'in flight':>10} {'labels/s':>12} {'p50 ms':>9} {'p99 ms':>9}")
    for row in _bench(oracle, batches, seconds, shape):
        rows.append(row)
        figures = f"{row['labels_per_s']:12,.0f} {row['p50_ms']:9.3f} {row['p99_ms']:9.3f}"
        print(f"{row['rpc']:8} {row['batch']:6} {row['in_flight']:10} {figures}", flush=True)
    return {"address": oracle.addresses[0], "rows": rows}


def _bench(
    oracle: RemoteOracle, batches: Sequence[int], seconds: float, shape: str | None
) -> Iterator[dict[str, Any]]:
    observations = partial(probing.zeros, oracle.describe().observation_space)
    if shape is not None:
        observations = partial(_zeros, _axes(shape))
    return probing.bench(oracle, observations, batches=batches, seconds=seconds)


def _axes(shape: str) -> tuple[int, ...]:
    try:
        return tuple(int(axis) for axis in shape.split(","))
    except ValueError:
        raise ConfigError(f"--shape: {shape!r} is not of the form 17 or 84,84,3") from None


def _zeros(axes: tuple[int, ...], N: int) -> Array:
    return np.zeros((N, *axes), np.float32)
