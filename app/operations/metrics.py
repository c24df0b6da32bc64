"""Metrics for Prometheus: how requests go, and what only the database knows. No label holds anything that a person
wrote: a route is its pattern, never its address.

Each web process counts for itself. Where several share a socket, PROMETHEUS_MULTIPROC_DIR names a folder in which the
library keeps all their counts, and whichever process is asked answers for all.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPMethod
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
METHODS = frozenset(HTTPMethod)
access = logging.getLogger("app.access")

FACTS = {
    "rankloop_runs_queued": ("Runs that wait for a worker.", "select count(*) from runs where state = 'queued'"),
    "rankloop_runs_running": ("Runs that a worker holds.", "select count(*) from runs where state = 'running'"),
    "rankloop_oldest_queued_run_seconds": (
        "How long the oldest waiting run has waited.",
        "select coalesce(extract(epoch from now() - min(created_at)), 0) from runs where state = 'queued'",
    ),
    "rankloop_rankings": (
        "Rankings, as PostgreSQL estimates them.",
        "select greatest(reltuples, 0) from pg_class where oid = 'rankings'::regclass",
    ),
    "rankloop_database_bytes": ("Size of the database.", "select pg_database_size(current_database())"),
    "rankloop_database_connections": (
        "Connections to the database, of all programs.",
        "select count(*) from pg_stat_activity where datname = current_database()",
    ),
}
"""Name -> what it means, and the query of one number."""


class Metrics:
    """The counts of one web process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "rankloop_http_requests", "Answers.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "rankloop_http_request_seconds",
            "Time to an answer's last byte.",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self, facts: Mapping[str, float]) -> bytes:
        """All of it in Prometheus' text format."""
        registry = self.registry
        if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            registry.register(Siblings(Path(folder)))
        asked = CollectorRegistry()
        asked.register(Facts(facts))
        return generate_latest(registry) + generate_latest(asked)


@dataclass(frozen=True, eq=False)
class Siblings(Collector):
    """Memory, CPU and file descriptors of each living process that counts in a folder, by its number."""

    folder: Path

    def collect(self) -> Iterator[Metric]:
        """As the library wants them."""
        found: dict[str, Metric] = {}
        for process in sorted({path.stem.rpartition("_")[2] for path in self.folder.glob("counter_*.db")}):
            # Of a process that has ended there is nothing to read.
            for family in ProcessCollector(pid=partial(int, process), registry=None).collect():
                named = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    named.add_sample(sample.name, {"pid": process}, sample.value)
        yield from found.values()


@dataclass(frozen=True, eq=False)
class Facts(Collector):
    """Numbers that were asked for just now."""

    values: Mapping[str, float]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """As the library wants them."""
        yield GaugeMetricFamily("rankloop_database_up", "Whether the database answers.", float(bool(self.values)))
        for name, value in self.values.items():
            yield GaugeMetricFamily(name, FACTS[name][0], value)


async def ask(session: AsyncSession) -> dict[str, float]:
    """What only the database knows, in one question."""
    columns = ", ".join(f"({query}) as {name}" for name, (_, query) in FACTS.items())
    row = (await session.execute(text(f"select {columns}"))).one()
    return {name: float(getattr(row, name)) for name in FACTS}


class Observed:
    """Counts every answer, and writes a line about it: method, pattern of the address, status, milliseconds."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, api: str) -> None:
        self.app = app
        self._metrics = metrics
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and count."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def send_noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        finally:
            self._note(scope, status, time.perf_counter() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = pattern(scope, self._api)
        self._metrics.note(method, route, status, seconds)
        facts = {"method": method, "route": route, "status": status, "milliseconds": round(1000 * seconds, 1)}
        access.info("%s %s %s", method, route, status, extra=facts)


def pattern(scope: Scope, api: str) -> str:
    """The address with its gaps unfilled: what fills them can be a person's word."""
    route = getattr(scope.get("route"), "path", "")
    if not route:
        return "/static" if scope["path"].startswith("/static/") else "unknown"
    return f"{api}{route}" if scope["path"].startswith(api) and not route.startswith(api) else str(route)
