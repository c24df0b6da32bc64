"""What does each page cost in a large project?

    python benchmarks/pages.py [--quick] [--json FILE] [--size 1000000] [--keep FOLDER] [--only PART]

A project of a million tasks (--quick: 10,000), each with one ranking, every tenth and newest with a second one by
somebody else, lies in a durable PostgreSQL on this machine; one `rankloop serve` answers. Every page that a project has
is asked for by an admin, or by an annotator where it is theirs. Before each request somebody ranks one more task, so
that nothing can be answered from what was counted before. Printed is the CPU time of a request, web and database apart:
the median of five. With --keep, the database stays in FOLDER and is used again; --only takes the pages whose address
holds PART.
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
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import psycopg
from load.fill import SLUG, Site, make_site
from load.usage import Usage
from web import web

from app.accounts import service as accounts
from app.accounts import sessions
from app.accounts.models import Role, SignInMethod
from app.db import standalone_session
from app.embedded import EmbeddedPostgres
from app.migrate import upgrade

ROUNDS = 5
LIMIT_MS = 500
PROJECT = f"/projects/{SLUG}"
ADMIN = ["/"] + [
    PROJECT + path
    for path in (
        "",
        "/rounds",
        "/watch",
        "/versions",
        "/runs",
        "/prompts",
        "/prompts?split=train",
        "/tasks",
        "/tasks?state=waiting",
        "/tasks?state=done",
        "/reports",
        "/rankings",
        "/quality",
        "/quality/annotators",
        "/quality/bias",
        "/quality/reviews",
        "/quality/gold",
        "/datasets",
        "/datasets/new",
        "/comparisons",
        "/settings",
    )
]
ANNOTATOR = ["/", f"{PROJECT}/rank", f"{PROJECT}/mine", f"{PROJECT}/my-work"]

# Every tenth and newest task gets a second ranking: by the next person, the best answer and the second exchanged.
SECOND = {
    "leases": """
        insert into leases (task_id, annotator_id, state, display_order, seed, created_at, expires_at)
        select l.task_id,
            (%(people)s::uuid[])[1 + array_position(%(people)s::uuid[], l.annotator_id) %% %(num_people)s],
            'answered', l.display_order, l.seed, l.created_at, l.expires_at
        from tasks t join leases l on l.task_id = t.id
        where t.number > (select max(number) from tasks) - %(num)s and l.state = 'answered'""",
    "rankings": """
        insert into rankings (project_id, task_id, lease_id, annotator_id, source, body_hash, created_at)
        select %(project)s, l.task_id, l.id, l.annotator_id, 'api', sha256(l.id::text::bytea), now() - interval '1 hour'
        from leases l where state = 'answered' and not exists (select from rankings r where r.lease_id = l.id)""",
    "ranking_places": """
        insert into ranking_places (ranking_id, completion_id, task_id, place)
        select r.id, c.completion_id, c.task_id, (array[2, 1, 3, 4])[c.position + 1]
        from rankings r join task_completions c on c.task_id = r.task_id
        where not exists (select from ranking_places p where p.ranking_id = r.id)""",
    "tasks": """
        update tasks set round = 1,
            num_taken = 1 + (number > (select max(number) from tasks) - %(num)s)::int""",
    "ranking_changes": """
        insert into ranking_changes (project_id, ranking_id, kind)
        select project_id, id, 'stored' from rankings where created_at > now() - interval '2 hours'""",
    # What triggers would have counted.
    "tallies": """
        insert into tallies (project_id, round, split, num_prompts, num_tasks, num_places, num_ranked, num_rankings,
            num_learnable)
        select project_id, round, split, count(*), count(*), sum(num_places), sum(num_ranked), sum(num_rankings),
            sum(num_learnable)
        from task_tallies group by project_id, round, split""",
}


def fill(site: Site, size: int) -> None:
    """Tasks with rankings, a tenth of them with two."""
    site.add_tasks(size)
    values = {"project": site.project_id, "people": site.people, "num_people": len(site.people), "num": size // 10}
    with psycopg.connect(site.url, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")
        for statement in SECOND.values():
            connection.execute(statement, values if "%(" in statement else None)
        connection.execute("vacuum analyze")


def find_or_fill(server: EmbeddedPostgres, folder: Path, size: int) -> Site:
    """The filled database: the one that is in the folder, or a new one."""
    note = folder / "site.json"
    if note.exists():
        kept = json.loads(note.read_text())
        site = Site(server.url("pages"), kept["project"], kept["people"], folder / "people.json", kept["num_tasks"])
        upgrade(site.url)
        return site
    server.create_database("pages")
    upgrade(server.url("pages"))
    site = make_site(server.url("pages"), folder)
    started = time.monotonic()
    fill(site, size)
    print(f"{size:,} tasks written in {time.monotonic() - started:.0f} s", file=sys.stderr)
    kept = {"project": str(site.project_id), "people": [str(item) for item in site.people], "num_tasks": size}
    note.write_text(json.dumps(kept))
    return site


async def sign_in_admin(url: str) -> str:
    """The session of a new admin."""
    async with standalone_session(url) as session:
        user = await accounts.create_user(
            session, name="Admin", email=f"admin{time.time_ns()}@example.org", role=Role.ADMIN
        )
        return await sessions.start_session(session, user_id=user.id, method=SignInMethod.LINK)


def rank_one(client: httpx2.Client, site: Site, token: str) -> None:
    """Somebody ranks the next task."""
    headers = {"authorization": f"Bearer {token}"}
    asked = {"project_id": str(site.project_id)}
    lease = client.post("/api/v1/tasks:next", headers=headers, json=asked).raise_for_status().json()
    order = [[item["id"]] for item in lease["completions"]]
    sent = client.post(f"/api/v1/leases/{lease['lease_id']}/ranking", headers=headers, json={"order": order})
    sent.raise_for_status()


def measure(site: Site, base: str, usage: Usage, only: str) -> list[dict[str, Any]]:
    """Every page: what one request costs."""
    people = json.loads(site.credentials.read_text())
    cookies = {"admin": asyncio.run(sign_in_admin(site.url)), "annotator": people[0]["cookie"]}
    pages = [("admin", path) for path in ADMIN] + [("annotator", path) for path in ANNOTATOR]
    pages = [(who, path) for who, path in pages if only in path]
    with httpx2.Client(base_url=base, timeout=120) as client:

        def once(who: str, path: str) -> dict[str, float]:
            rank_one(client, site, people[1]["token"])
            before = usage.seconds()
            headers = {"accept": "text/html", "cookie": f"rl_session={cookies[who]}"}
            client.get(path, headers=headers).raise_for_status()
            return {name: 1000 * (now - before[name]) for name, now in usage.seconds().items()}

        rows = []
        for who, path in pages:
            once(who, path)
            found = [once(who, path) for _ in range(ROUNDS)]
            costs = {f"{name}_cpu_ms": round(median(one[name] for one in found)) for name in found[0]}
            rows.append({"who": who, "path": path, **costs, "cpu_ms": sum(costs.values())})
            print(f"{rows[-1]['cpu_ms']:6} ms  {who} {path}", file=sys.stderr)
        return rows


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, in a folder that is removed afterwards unless it is kept."""
    folder = options.keep or Path(tempfile.mkdtemp(prefix="rankloop-pages-"))
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    try:
        with EmbeddedPostgres(folder) as server, ExitStack() as stack:
            site = find_or_fill(server, folder, options.size)
            base, pid = stack.enter_context(web(site.url, folder, 1))
            pages = measure(site, base, Usage({"web": pid, "database": server.process_id}), options.only)
    finally:
        if options.keep is None:
            shutil.rmtree(folder)
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "num_tasks": site.num_tasks,
        "num_rankings": site.num_tasks + site.num_tasks // 10,
        "limit_ms": LIMIT_MS,
        "pages": pages,
    }


def show(found: dict[str, Any]) -> None:
    """The figures as a table, the dearest page first."""
    print(f"{found['num_tasks']:,} tasks, {found['num_rankings']:,} rankings, {found['hardware']}")
    print(f"{'CPU ms':>8}{'web':>6}{'db':>6}  page")
    for row in sorted(found["pages"], key=lambda row: -row["cpu_ms"]):
        mark = "  more than the limit" if row["cpu_ms"] > found["limit_ms"] else ""
        print(f"{row['cpu_ms']:8}{row['web_cpu_ms']:6}{row['database_cpu_ms']:6}  {row['who']} {row['path']}{mark}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small project")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--size", type=int, help="how many tasks")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the database there, or use the one there")
    parser.add_argument("--only", default="", metavar="PART", help="only pages whose address holds this")
    options = parser.parse_args(arguments)
    options.size = options.size or (10_000 if options.quick else 1_000_000)
    found = run(options)
    show(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
