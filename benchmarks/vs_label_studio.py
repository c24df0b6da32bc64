"""The same cycle, take the next task and rank it, against Label Studio 1.23.2 on PostgreSQL and against Rankloop.

    python -m venv .venv-ls && .venv-ls/bin/pip install -r benchmarks/requirements-label-studio.txt
    pip install -r benchmarks/requirements-load.txt
    python benchmarks/vs_label_studio.py --label-studio .venv-ls/bin/python [--postgres FOLDER] [--quick] [--json FILE]

Both on this machine, in turns, each on a durable PostgreSQL of its own and with as many web processes (Label Studio
under gunicorn), over their REST APIs with a token a person; k6 is the load tool. Each holds as many tasks of four
answers with one free place each. In a round, so many people work flat out for some seconds; the ratio is of the medians
of cycles a second, and of the CPU that a cycle costs the server, which a busy machine disturbs less.

Then both are audited by counting rows: tasks that more people ranked than were asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from load import k6
from load.audit import audit
from load.fill import make_site
from load.usage import Usage
from web import await_answer, web

from app.embedded import EmbeddedPostgres
from app.migrate import upgrade

SETUP = Path(__file__).parent / "load" / "label_studio_setup.py"
OVER_ASSIGNED = """
    select count(*) from (
        select c.task_id from task_completion c join task t on t.id = c.task_id
        where not c.was_cancelled group by c.task_id, t.overlap having count(*) > t.overlap) x"""


def label_studio_environment(server: EmbeddedPostgres, folder: Path) -> dict[str, str]:
    """Where Label Studio finds its database; nothing of it reports home."""
    settings = {
        "DJANGO_SETTINGS_MODULE": "core.settings.label_studio",
        "DJANGO_DB": "default",
        "POSTGRE_NAME": "label_studio",
        "POSTGRE_USER": "postgres",
        "POSTGRE_PASSWORD": "none",
        "POSTGRE_HOST": str(server.socket_folder),
        "POSTGRE_PORT": "5432",
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder / "data"),
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "LOG_LEVEL": "ERROR",
    }
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | settings


@contextmanager
def label_studio(options: argparse.Namespace, server: EmbeddedPostgres, folder: Path) -> Iterator[k6.Side]:
    """Label Studio with its project."""
    folder.mkdir()
    server.create_database("label_studio")
    environment = label_studio_environment(server, folder)
    python = str(options.label_studio.absolute())
    command = [python, str(SETUP), str(folder), str(options.tasks), str(options.people)]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if made.returncode:
        sys.exit(f"Label Studio could not be set up:\n{made.stderr[-3000:]}")
    port = random.randint(20000, 40000)
    command = [python, "-m", "gunicorn", "--workers", str(options.processes), "--threads", "4", "--timeout", "300"]
    command += ["--bind", f"127.0.0.1:{port}", "--log-level", "error", "core.wsgi:application"]
    project, root = made.stdout.split()[-2:]
    process = subprocess.Popen(command, env=environment, cwd=root)
    try:
        base = f"http://127.0.0.1:{port}"
        await_answer(f"{base}/health", seconds=180)
        target = k6.Target(base, "label_studio", project, folder / "people.json")
        yield k6.Side(target, folder, Usage({"web": process.pid, "database": server.process_id}))
    finally:
        process.terminate()
        process.wait()


@contextmanager
def rankloop(options: argparse.Namespace, server: EmbeddedPostgres, folder: Path) -> Iterator[k6.Side]:
    """Rankloop with its project."""
    folder.mkdir()
    server.create_database("rankloop")
    upgrade(server.url())
    site = make_site(server.url(), folder)
    site.add_tasks(options.tasks)
    with web(site.url, folder, options.processes) as (base, pid):
        target = k6.Target(base, "api", str(site.project_id), site.credentials)
        yield k6.Side(target, folder, Usage({"web": pid, "database": server.process_id}))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure both in turns, in a folder that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="rankloop-vs-"))
    folder.chmod(0o777)
    try:
        with ExitStack() as stack:
            theirs_db, ours_db = (
                stack.enter_context(EmbeddedPostgres(folder / name, programs=options.postgres))
                for name in ("pg-ls", "pg")
            )
            theirs = stack.enter_context(label_studio(options, theirs_db, folder / "label_studio"))
            ours = stack.enter_context(rankloop(options, ours_db, folder / "rankloop"))
            sides = {"label_studio": theirs, "rankloop": ours}
            rounds = measure(options, sides)
            with psycopg.connect(theirs_db.url("label_studio")) as connection:
                row = connection.execute(OVER_ASSIGNED).fetchone()
            over = {"label_studio": {"over_assigned": row[0] if row else None}}
            over["rankloop"] = audit(ours_db.url(), k6.acknowledged(ours.folder))
            return figures(options, rounds, over) | {
                "failures": {name: k6.failures(side.folder)[:3] for name, side in sides.items()}
            }
    finally:
        shutil.rmtree(folder)


def measure(options: argparse.Namespace, sides: dict[str, k6.Side]) -> dict[str, list[dict[str, Any]]]:
    """Both warmed up, then in turns."""
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for side in sides.values():
        side.load(options.k6, k6.one_by_one(options.people, people=2))
    for _ in range(options.rounds):
        for name, side in sides.items():
            rounds[name].append(side.load(options.k6, k6.for_seconds(options.seconds, people=options.people)))
    return rounds


def figures(
    options: argparse.Namespace, rounds: dict[str, list[dict[str, Any]]], over: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The ratios, and what they were made from."""
    rate = {name: median(one["cycles_a_second"] for one in found) for name, found in rounds.items()}
    cpu = {name: median(_server_cpu(one) for one in found) for name, found in rounds.items()}
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "hardware": f"{os.cpu_count()} cores, shared with the load tool",
        "people": options.people,
        "processes": options.processes,
        "ratio": rate["rankloop"] / rate["label_studio"],
        "cpu_ratio": cpu["label_studio"] / cpu["rankloop"],
        "over_assigned": over["rankloop"]["over_assigned"],
        "cycles_a_second": rate,
        "server_cpu_ms_a_cycle": cpu,
        "audit": over,
        "rounds": rounds,
    }


def _server_cpu(found: dict[str, Any]) -> float:
    return float(found["cpu_ms_a_cycle"]["web"] + found["cpu_ms_a_cycle"]["database"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--label-studio", type=Path, metavar="PYTHON", help="of the environment that has Label Studio")
    parser.add_argument(
        "--postgres",
        type=Path,
        metavar="FOLDER",
        help="of PostgreSQL's programs, for both sides: Label Studio wants pg_trgm, which the wheel of ours has not",
    )
    parser.add_argument("--k6", help="the load tool, where it is neither beside this Python nor on PATH")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="web processes of each side")
    options = parser.parse_args(arguments)
    options.tasks, options.people = (5_000, 8) if options.quick else (50_000, 16)
    options.seconds, options.rounds = (8, 1) if options.quick else (20, 3)
    options.k6 = k6.find_k6(options.k6)
    if options.label_studio is None or options.k6 is None:
        print("not compared: Label Studio and k6 are no part of Rankloop; the head of this script says how to get them")
        return
    found = run(options)
    for name in (
        "ratio",
        "cpu_ratio",
        "over_assigned",
        "cycles_a_second",
        "server_cpu_ms_a_cycle",
        "audit",
        "failures",
    ):
        print(f"{name}: {json.dumps(found[name])}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
