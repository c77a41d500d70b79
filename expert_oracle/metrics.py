"""What an expert service counts, and how it is shown: figures for Prometheus, events as log lines.

The figures are plain numbers, counted in the event loop of the service; Prometheus' classes come in only when
somebody scrapes.
"""

from __future__ import annotations

import bisect
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tutelage.errors import OracleError

LOG = logging.getLogger("tutelage.oracle")

QUIET_S = 10.0
_quiet_until: dict[str, float] = {}

SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
ROWS = (1, 4, 16, 64, 256, 1024, 4096)


@dataclass
class Histogram:
    """How many values fell below each bound."""

    bounds: Sequence[float]
    total: float = 0.0
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Prometheus' cumulative buckets."""
        names, running = [*map(str, self.bounds), "+Inf"], 0
        cumulative: list[tuple[str, float]] = []
        for name, count in zip(names, self.counts, strict=True):
            running += count
            cumulative.append((name, running))
        return cumulative


@dataclass
class Figures:
    """What one process of the service has done, and what waits."""

    requests: Counter[str] = field(default_factory=Counter)  # by RPC
    refusals: Counter[str] = field(default_factory=Counter)  # by reason
    rows: int = 0  # observations that were asked
    repeats: int = 0  # questions that were asked again after a break and answered without the expert
    streams: int = 0  # open ones
    waiting_rows: int = 0
    waiting_bytes: int = 0
    batch_rows: Histogram = field(default_factory=lambda: Histogram(ROWS))  # of the expert's forwards
    forward_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))  # that they took
    latency_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))  # from question to answer


_COUNTERS = {
    "rows": "Observations that were asked.",
    "repeats": "Questions asked again after a break and answered without the expert.",
}
_LABELLED = {
    "requests": ("rpc", "Questions that arrived."),
    "refusals": ("reason", "Questions and streams that were refused."),
}
_GAUGES = {
    "streams": "Open streams.",
    "waiting_rows": "Observations that wait for the expert.",
    "waiting_bytes": "Their size.",
}
_HISTOGRAMS = {
    "batch_rows": ("batch_rows", "Observations in one forward of the expert."),
    "forward_s": ("forward_seconds", "Time that one forward takes."),
    "latency_s": ("latency_seconds", "Time from question to answer."),
}


@dataclass(eq=False)
class Collector:
    """`Figures` as Prometheus' client library collects them."""

    figures: Figures

    def collect(self) -> Iterator[Any]:
        from prometheus_client import core

        figures, prefix = self.figures, "tutelage_oracle_"
        for name, text in _COUNTERS.items():
            yield core.CounterMetricFamily(prefix + name, text, value=getattr(figures, name))
        for name, (label, text) in _LABELLED.items():
            family = core.CounterMetricFamily(prefix + name, text, labels=[label])
            for key, count in sorted(getattr(figures, name).copy().items()):
                family.add_metric([key], count)
            yield family
        for name, text in _GAUGES.items():
            yield core.GaugeMetricFamily(prefix + name, text, value=getattr(figures, name))
        for field_name, (name, text) in _HISTOGRAMS.items():
            values: Histogram = getattr(figures, field_name)
            buckets: Any = values.buckets()
            yield core.HistogramMetricFamily(prefix + name, text, buckets=buckets, sum_value=values.total)


def expose(figures: Figures, address: str) -> Any:
    """Answer Prometheus on `http://HOST:PORT/metrics`; returns the server."""
    import prometheus_client

    host, _, port = address.rpartition(":")
    registry = prometheus_client.CollectorRegistry()
    registry.register(Collector(figures))
    try:
        server, _ = prometheus_client.start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise OracleError(f"cannot answer Prometheus on {address}: {error.strerror}") from None
    return server


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, and what the event carries."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        return json.dumps(line | getattr(record, "carried", {}), default=str)


class TextFormatter(logging.Formatter):
    """`warning: expert failed (error=...)`."""

    def format(self, record: logging.LogRecord) -> str:
        carried = ", ".join(f"{key}={value}" for key, value in getattr(record, "carried", {}).items())
        return f"{record.levelname.lower()}: {record.getMessage()}" + (f" ({carried})" if carried else "")


def event(what: str, level: int = logging.INFO, **carried: Any) -> None:
    """Log what happened, once for each event and never for each request."""
    LOG.log(level, what, extra={"carried": carried})


def fault(what: str, **carried: Any) -> None:
    """Log what somebody did wrong, and not again for `QUIET_S`: who asks wrongly asks often."""
    now = time.monotonic()
    if now >= _quiet_until.get(what, 0.0):
        _quiet_until[what] = now + QUIET_S
        event(what, logging.WARNING, **carried)


def log_to_stderr(style: Literal["text", "json"]) -> None:
    """Text shows warnings only; JSON is for machines and has every event."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    LOG.handlers, LOG.propagate = [handler], False
    LOG.setLevel(logging.INFO if style == "json" else logging.WARNING)
