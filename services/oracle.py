"""What the commands of `tutelage oracle` do; they need no Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from expert_oracle import probing, server, workers
from expert_oracle.access import ServerAccess
from expert_oracle.loading import GRPC, OracleSpec, arguments_by_name
from expert_oracle.metrics import event, log_to_stderr
from expert_oracle.remote import RemoteOracle
from services.doctor import print_checks
from services.examination import examine, first_answer
from services.overrides import key_values
from tutelage.errors import ConfigError
from tutelage.protocols import Oracle
from tutelage.types import Array, EnvRecipe

PATIENCE_S = 5.0


def serve_command(
    word: str,
    arguments: Sequence[str],
    *,
    address: str,
    env_id: str,
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
    spec, env = OracleSpec(word, key_values(arguments)), EnvRecipe(env_id) if env_id else None
    settings |= {"address": address, "name": word, "access": access, "metrics_address": metrics_address}
    with arguments_by_name():
        if processes == 1:
            server.serve(_tried(spec, env), env_id=env_id, **settings)
        else:
            make = partial(_tried, spec, env)
            workers.serve(make, workers=processes, log_format=log_format, env_id=env_id, **settings)


def _tried(spec: OracleSpec, env: EnvRecipe | None) -> Oracle:
    """The expert. With an environment it has answered for a first state, so a broken one is found at once."""
    oracle = spec.build(env)
    if env is not None and not spec.asks_people:
        first_answer(oracle, env, spec.oracle)
    return oracle


def _check_address(option: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    if address and not (host and port.isdigit() and int(port) < 2**16):
        raise ConfigError(f"{option}: {address!r} is not of the form HOST:PORT")


def check_command(word: str, arguments: Sequence[str], *, env_id: str, states: int) -> int:
    """`tutelage oracle check`: a table, and the exit status."""
    with arguments_by_name():
        return print_checks(
            examine(OracleSpec(word, key_values(arguments)), EnvRecipe(env_id), states=states)
        )


def client(address: str, arguments: Sequence[str]) -> RemoteOracle:
    """A client of the service at `host:port`, with or without `grpc://` before it."""
    given = {"connect_timeout_s": PATIENCE_S} | key_values(arguments)
    with arguments_by_name():
        oracle = OracleSpec(GRPC + address.removeprefix(GRPC), given).build()
    assert isinstance(oracle, RemoteOracle)
    return oracle


def ping_command(address: str, arguments: Sequence[str]) -> dict[str, Any]:
    """`tutelage oracle ping`."""
    said = probing.ping(client(address, arguments))
    version = f" (version {said['version']})" if said["version"] else ""
    print(f"{said['address']} is {said['name']}{version}, health: {said['health']}")
    print(f"for {said['env'] or 'an environment it does not name'}")
    print(f"acts from {said['observation_space']} to {said['action_space']}")
    print(f"there and back: {said['p50_ms']:g} ms, one in a hundred {said['p99_ms']:g} ms")
    if said["needless_token"]:
        print(f"it asks for no token, and was sent that of {said['needless_token']}")
    return said


def bench_command(
    address: str, arguments: Sequence[str], *, batches: Sequence[int], seconds: float, shape: str | None
) -> dict[str, Any]:
    """`tutelage oracle bench`."""
    oracle = client(address, arguments)
    rows = []
    for row in _bench(oracle, batches, seconds, shape):
        if not rows:
            print(f"{'rpc':8} {'batch':>6} {'in flight':>10} {'labels/s':>12} {'p50 ms':>9} {'p99 ms':>9}")
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
