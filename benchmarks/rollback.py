"""How long does it take to go back to an earlier policy, and does the next sample use it?

    python benchmarks/rollback.py [--quick] [--json FILE] [--times 20]

A project with 10,000 prompts (--quick: 500) has two policies, the second delivered through the API as one that was
trained elsewhere. One `rankloop serve` answers, on a durable PostgreSQL on this machine. Again and again the second
one is live, and then the first is promoted back, over HTTP, as an admin's program does; then the next sample is asked
for, and a worker claims it. Printed is, each from the moment when the promotion was sent: its answer, and the
worker's run in hand, which must name the old version. The first time comes apart: it is the first request that a
fresh web process answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from web import web

from app.accounts import service as accounts
from app.accounts import tokens
from app.accounts.models import Role, Scope
from app.db import standalone_session
from app.embedded import EmbeddedPostgres
from app.migrate import upgrade
from trainer.client import Client

LIMIT_SECONDS = 5.0


async def make_token(url: str) -> str:
    """A token that may do everything."""
    async with standalone_session(url) as session:
        admin = await accounts.create_user(session, name="Admin", email="admin@example.org", role=Role.ADMIN)
        _, secret = await tokens.create_token(session, user_id=admin.id, name="bench", scopes=list(Scope))
        return secret


def make_project(client: Client, folder: Path, num_prompts: int) -> tuple[str, str, str]:
    """A project with two policies, the second one live: its id, the first one's, the second one's."""
    project = client.create_project(name="Rollback", slug="rollback", model_alias="pocket")["id"]
    client.import_prompts(project, [json.dumps({"prompt": f"Question {number}"}) for number in range(num_prompts)])
    weights = folder / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}", encoding="utf-8")
    second = client.register_version(project, weights, training={"framework": "none"})["id"]
    first = next(version["id"] for version in client.list_versions(project) if version["number"] == 1)
    client.promote_version(second, "it looked better")
    return project, first, second


def roll_back(client: Client, project: str, first: str) -> dict[str, float]:
    """Seconds from sending the promotion to its answer, and to the run that a worker holds."""
    started = time.monotonic()
    client.promote_version(first, "it was not")
    promoted = time.monotonic()
    client.start_sampling(project)
    claim = client.claim_run("bench", ["sample"])
    sampled = time.monotonic()
    if claim is None or claim["config"]["policy"]["version_id"] != first:
        sys.exit("the next sample does not use the version that was promoted back")
    client.claimed(claim).finish("cancelled", error="only measured")
    return {"promote": promoted - started, "sample": sampled - started}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure in a folder that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="rankloop-rollback-"))
    folder.chmod(0o777)
    try:
        with EmbeddedPostgres(folder) as server:
            server.create_database("rollback")
            url = server.url("rollback")
            upgrade(url)
            token = asyncio.run(make_token(url))
            with web(url, folder, 1) as (base, _), Client(base, token) as client:
                project, first, second = make_project(client, folder, options.prompts)
            with web(url, folder, 1) as (base, _), Client(base, token) as client:
                cold, rows = roll_back(client, project, first), []
                for _ in range(options.times):
                    client.promote_version(second, "it looked better")
                    rows.append(roll_back(client, project, first))
    finally:
        shutil.rmtree(folder)
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 1),
        "num_prompts": options.prompts,
        "limit_seconds": LIMIT_SECONDS,
        "first": {name: round(value, 3) for name, value in cold.items()},
        "median": {name: round(median(row[name] for row in rows), 3) for name in cold},
        "worst": {name: round(max(row[name] for row in rows), 3) for name in cold},
        "times": len(rows),
    }


def show(found: dict[str, Any]) -> None:
    """The figures as a table."""
    print(f"{found['num_prompts']:,} prompts, {found['hardware']}, load average {found['load_average']}")
    print(f"{'seconds':24}{'promoted back':>15}{'sample in hand':>16}")
    for name, title in (("first", "first"), ("median", f"median of {found['times']}"), ("worst", "worst of these")):
        print(f"{title:24}{found[name]['promote']:15.3f}{found[name]['sample']:16.3f}")
    slowest = max(found["first"]["promote"], found["worst"]["promote"])
    print("within" if slowest < found["limit_seconds"] else "MORE than", f"{found['limit_seconds']:.0f} s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small project, five times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--times", type=int, help="how often, after the first time")
    options = parser.parse_args(arguments)
    options.prompts = 500 if options.quick else 10_000
    options.times = options.times or (5 if options.quick else 20)
    found = run(options)
    show(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
