"""What do those who rank feel while others misbehave?

    pip install psutil
    python benchmarks/crowd.py [--quick] [--json FILE] [--only PART] [--processes 1]

People rank ten tasks a second, two sign in a second in a browser that they used before, one in two seconds in another
one, and /health is asked five times, over HTTP against `rankloop serve` and a durable PostgreSQL on this machine:
alone, and beside each trouble of load/troubles.py, in turns within one run. Every request is due at its moment, and
waits count from there. Printed are p50, p95 and p99 in milliseconds, and p95 beside the trouble / p95 alone (the median
of three rounds); what was refused; and CPU seconds a second of web and database. FILE keeps the figures of troubles
that were not made now.

    aim    next and submit: p95 at most doubled; sign-in beside stalled exports: p95 below 500 ms; nothing refused
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import httpx2
from load.fill import Site, make_site
from load.troubles import TROUBLES, Place
from load.usage import Usage
from load.visitors import PASSWORD, Felt, Visitors
from web import web

from app.accounts import passwords, sessions, tokens
from app.accounts import service as accounts
from app.accounts.models import Role, Scope, SignInMethod
from app.db import standalone_session
from app.embedded import EmbeddedPostgres
from app.migrate import upgrade

NUM_MEMBERS = 20
NUM_TASKS = 12_000
NUM_BOMBED = 40
LETTERS = 99_990
# The dearest that are still rendered (app/markdown.py says where that ends), and longer ones.
BOMBS = (
    "[" * 1_000,
    "> " * 2_900,
    "*a_" * 900,
    "|a" * 900 + "|\n" + "|-" * 900 + "|\n",
    "- $$\n" * 990,
    "[" * LETTERS,
    "a\n" * (LETTERS // 2),
    "word " * (LETTERS // 5),
)


async def add_people(site: Site) -> tuple[list[str], str, str]:
    """Members with a password (their addresses), and the token and session of somebody known who makes trouble."""
    async with standalone_session(site.url) as session:
        members = []
        for number in range(NUM_MEMBERS):
            members.append(f"member{number}@example.org")
            user = await accounts.create_user(session, name="Member", email=members[-1], role=Role.ANNOTATOR)
            made = await passwords.make_hash(PASSWORD, name=user.name, email=user.email)
            await passwords.store(session, user.id, made)
        known = await accounts.create_user(session, name="Known", email="known@example.org", role=Role.ADMIN)
        scopes = [Scope.READ, Scope.WRITE, Scope.ADMIN]
        _, token = await tokens.create_token(session, user_id=known.id, name="trouble", scopes=scopes)
        cookie = await sessions.start_session(session, user_id=known.id, method=SignInMethod.LINK)
    return members, token, cookie


def prepare(site: Site, base: str, token: str, cookie: str) -> Place:
    """A dataset that is larger than what sockets hold, and a project whose answers are bombs, by the front door."""
    with httpx2.Client(base_url=f"{base}/api/v1", timeout=120, headers={"authorization": f"Bearer {token}"}) as client:
        frozen = client.post("/datasets", json={"project_id": str(site.project_id)}).raise_for_status().json()
        values = {"name": "Bombs", "model_alias": "pocket"}
        project = client.post("/projects", json=values).raise_for_status().json()
        lines = "\n".join(map(bombed, range(NUM_BOMBED)))
        client.post(f"/projects/{project['id']}/completions:import", content=lines).raise_for_status()
        prompts = client.get(f"/projects/{project['id']}/prompts?limit=200").raise_for_status().json()["items"]
    return Place(
        port=urlsplit(base).port or 80,
        export=f"/api/v1/datasets/{frozen['id']}/export",
        upload=f"/api/v1/projects/{site.project_id}/prompts:import",
        bombs=[f"/projects/{project['slug']}/prompts/{prompt['id']}" for prompt in prompts],
        token=token,
        cookie=cookie,
    )


def bombed(number: int) -> str:
    """A line of the import: a prompt with four answers, none of which was rendered before."""
    chosen = [BOMBS[(number + 2 * k) % len(BOMBS)] for k in range(4)]
    answers = [{"text": f"{number}-{k} {bomb}"} for k, bomb in enumerate(chosen)]
    return json.dumps({"prompt": f"Bomb {number}", "completions": answers})


@contextmanager
def trouble(name: str, place: Place, seconds: float, folder: Path) -> Iterator[Counter[str]]:
    """Somebody makes this trouble, in a process of their own; what they met with is there after the block."""
    met: Counter[str] = Counter()
    noted = folder / "met.json"
    asked = {"name": name, "place": asdict(place), "seconds": seconds, "noted": str(noted)}
    script = Path(__file__).with_name("load") / "troubles.py"
    process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(asked))
    process.stdin.close()
    try:
        yield met
    finally:
        process.wait()
    met.update(json.loads(noted.read_text(encoding="utf-8")))


def compare(name: str, visitors: Visitors, place: Place, usage: Usage, options: argparse.Namespace) -> dict[str, Any]:
    """Alone and beside one trouble, in turns."""
    rounds: dict[str, list[Felt]] = {"alone": [], "beside": []}
    spent: dict[str, dict[str, float]] = {}
    met: Counter[str] = Counter()
    for _ in range(options.rounds):
        rounds["alone"].append(spend(visitors, options.seconds, usage, spent.setdefault("alone", {})))
        # It begins before they come, and ends after them.
        with trouble(name, place, options.seconds + 4, options.folder) as one:
            time.sleep(3)
            rounds["beside"].append(spend(visitors, options.seconds, usage, spent.setdefault("beside", {})))
        met += one
    felt = {when: together(each) for when, each in rounds.items()}
    return {
        "trouble": name,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "met": met,
        "waits_ms": {when: one.summary() for when, one in felt.items()},
        "p95_ratio": p95_ratio(*rounds.values()),
        "refused": {when: one.refused for when, one in felt.items()},
        "cpu_seconds_a_second": {
            when: {part: seconds / options.rounds / options.seconds for part, seconds in parts.items()}
            for when, parts in spent.items()
        },
    }


def together(rounds: Sequence[Felt]) -> Felt:
    """What was felt in all of these rounds."""
    whole = Felt()
    for one in rounds:
        whole.add(one)
    return whole


def p95_ratio(alone: Sequence[Felt], beside: Sequence[Felt]) -> dict[str, float]:
    """p95 beside the trouble / p95 alone, of each request: the median of the rounds' ratios."""
    each = [(one.summary(), other.summary()) for one, other in zip(alone, beside, strict=True)]
    return {name: median(late[name]["p95"] / usual[name]["p95"] for usual, late in each) for name in each[0][0]}


def spend(visitors: Visitors, seconds: float, usage: Usage, spent: dict[str, float]) -> Felt:
    """What visitors feel, and what the server's parts spend meanwhile."""
    before = usage.seconds()
    felt = asyncio.run(visitors.visit(seconds))
    for part, now in usage.seconds().items():
        spent[part] = spent.get(part, 0.0) + now - before[part]
    return felt


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything in a folder that is removed afterwards."""
    options.folder = folder = Path(tempfile.mkdtemp(prefix="rankloop-crowd-"))
    folder.chmod(0o777)
    try:
        with EmbeddedPostgres(folder) as server, ExitStack() as stack:
            server.create_database("crowd")
            upgrade(server.url("crowd"))
            site = make_site(server.url("crowd"), folder)
            site.add_tasks(NUM_TASKS)
            base, pid = stack.enter_context(web(site.url, folder, options.processes))
            members, token, cookie = asyncio.run(add_people(site))
            place = prepare(site, base, token, cookie)
            visitors = Visitors(base, str(site.project_id), json.loads(site.credentials.read_text()), members)
            usage = Usage({"web": pid, "database": server.process_id})
            # What is new is slow: connections, plans, tables that were filled just now.
            asyncio.run(visitors.meet())
            asyncio.run(visitors.visit(options.seconds))
            names = [name for name in TROUBLES if options.only in name]
            rows = [compare(name, visitors, place, usage, options) for name in names]
    finally:
        shutil.rmtree(folder)
    return {
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, shared with visitors and trouble",
        "processes": options.processes,
        "rows": rows,
    }


def show(found: dict[str, Any]) -> None:
    """The figures as tables."""
    print(f"{found['processes']} web process(es), {found['hardware']}; p50, p95, p99 in ms")
    for row in found["rows"]:
        print(f"\n{row['trouble']}: {dict(row['met'])}")
        for name, ratio in row["p95_ratio"].items():
            times = [
                "{p50:.0f}, {p95:.0f}, {p99:.0f}".format(**row["waits_ms"][when][name]) for when in ("alone", "beside")
            ]
            print(f"  {name:14}alone {times[0]:18}beside {times[1]:18}p95 x {ratio:.2f}")
        parts = row["cpu_seconds_a_second"]
        told = [f"{when} " + ", ".join(f"{part} {spent:.2f}" for part, spent in parts[when].items()) for when in parts]
        print(
            f"  CPU s/s: {'; '.join(told)}. Refused: {dict(row['refused']['alone'])}, {dict(row['refused']['beside'])}"
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four seconds each, once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--only", default="", metavar="PART", help="only troubles whose name holds this")
    parser.add_argument("--processes", type=int, default=1, help="web processes")
    options = parser.parse_args(arguments)
    options.seconds, options.rounds = (4, 1) if options.quick else (10, 3)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    options = parse(arguments)
    found = run(options)
    show(found)
    if options.json is not None:
        options.json.write_text(json.dumps(beside_others(found, options.json), indent=2) + "\n", encoding="utf-8")


def beside_others(found: dict[str, Any], file: Path) -> dict[str, Any]:
    """These figures, and those of troubles that were not made now and stand in the file."""
    earlier = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    rows = {row["trouble"]: row for row in [*earlier, *found["rows"]]}
    return found | {"rows": [rows[name] for name in TROUBLES if name in rows]}


if __name__ == "__main__":
    main()
