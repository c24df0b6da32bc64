"""How fast does data leave and come in, and do the annotators notice?

    python benchmarks/export.py [--quick] [--rankings N] [--json FILE] [--formats pairs,rankings,...]

A database of its own, durable, with 1,000,000 rankings of four answers (--quick: 10,000) in the real tables; one web
process, `rankloop serve`, freezes them; curl downloads each format into a file.

    of_copy       bytes a second of the download / bytes a second of `copy (select line …) to '<file>'`: the server's
                  own copy of the same lines, from a table that holds each of them as a row, in the same run
    of_rows       the same in rankings a second: what the conversion costs
    first_byte    until the first byte is there, in seconds (curl's time_starttransfer)
    web_mb        the most resident memory of the web process so far, in MB
    freeze        seconds
    annotators    50 who each take a task and rank it every 4 s, while it freezes, exports, or does nothing else
    import        prompts a second, from JSON lines over HTTP, and the same twice as many conversations as a corpus
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import orjson
import psycopg
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import service as accounts
from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from app.db import standalone_session
from app.embedded import EmbeddedPostgres
from app.loop import subscriptions
from app.migrate import upgrade
from app.projects.models import Project
from app.projects.service import create_project

NUM_ANNOTATORS = 50
SECONDS_A_RANKING = 4.0
K = 4
DEFAULT_FORMATS = (
    "rankings,pairs,groups,kto,sft,hh,oasst,answers,pairs-parquet,pairs-folder,pairs-gzip,pairs-zstd,answers-csv"
)
WORDS = [f"word{number}" for number in range(300)] + ["你好", "机器", "学习", "🙂"]


@dataclass
class Bench:
    """One run: where things are, and what was measured."""

    folder: Path
    url: str
    database: str
    pid: int
    token: str
    num_rankings: int
    project: Project
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def as_admin(self) -> dict[str, Any]:
        """What a request of the admin sends, and how long it may take."""
        return {"headers": {"Authorization": f"Bearer {self.token}"}, "timeout": 3600}


def make_texts(num: int, num_words: int, seed: int) -> list[str]:
    """Texts that repeat, but not soon."""
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=num_words)) for _ in range(num)]


# Straight into the tables, past triggers and foreign keys: what they would check is so by the way it is made. Ids are
# as random as those of real rows, so that reading them costs what it costs.
FILL = """
insert into prompts (id, project_id, messages, split, root_hash, content_hash)
    select md5('prompt' || n)::uuid, %(project)s,
        jsonb_build_array(jsonb_build_object('role', 'user', 'content', n || ': ' || t.words)),
        case when n %% 7 = 0 then 'validation' else 'train' end, sha256(int4send(n)), sha256(int4send(n))
    from generate_series(1, %(num)s) n join bench_prompts t on t.number = n %% 997 order by n;
insert into completions (id, prompt_id, text, content_hash, finish_reason)
    select md5('answer' || n || '-' || k)::uuid, md5('prompt' || n)::uuid, t.words, sha256(int4send(n * 4 + k)), 'stop'
    from generate_series(1, %(num)s) n cross join generate_series(0, 3) k
    join bench_answers t on t.number = (n * 5 + k) %% 4999 order by n, k;
insert into tasks (id, project_id, prompt_id, overlap, num_taken, round)
    select md5('task' || n)::uuid, %(project)s, md5('prompt' || n)::uuid, 1, 1, 1 + n %% 5
    from generate_series(1, %(num)s) n;
insert into task_completions (task_id, completion_id, position)
    select md5('task' || n)::uuid, md5('answer' || n || '-' || k)::uuid, k
    from generate_series(1, %(num)s) n cross join generate_series(0, 3) k;
insert into leases (id, task_id, annotator_id, state, display_order, seed, expires_at)
    select md5('lease' || n)::uuid, md5('task' || n)::uuid, (%(people)s::uuid[])[1 + n %% 50], 'answered',
        array(select md5('answer' || n || '-' || (k + n) %% 4)::uuid from generate_series(0, 3) k), n, now()
    from generate_series(1, %(num)s) n;
insert into rankings (id, project_id, task_id, lease_id, annotator_id, source, body_hash, created_at)
    select md5('ranking' || n)::uuid, %(project)s, md5('task' || n)::uuid, md5('lease' || n)::uuid,
        (%(people)s::uuid[])[1 + n %% 50], 'page', sha256(int4send(n)), now() - make_interval(secs => %(num)s - n)
    from generate_series(1, %(num)s) n;
insert into ranking_places (ranking_id, task_id, completion_id, place, rating, labels)
    select md5('ranking' || n)::uuid, md5('task' || n)::uuid, md5('answer' || n || '-' || k)::uuid,
        case when n %% 10 = 0 then least((k + n) %% 4, 2) else (k + n) %% 4 end + 1, 1 + (n + k) %% 7,
        case when (n + k) %% 40 = 0 then '{opinion}' else '{}' end::text[]
    from generate_series(1, %(num)s) n cross join generate_series(0, 3) k;
"""


INDEXES_REST = "update pg_index set indisready = false, indisvalid = false where indrelid = any (%s::regclass[])"


def fill(database: str, project_id: uuid.UUID, num: int) -> None:
    """So many rankings of four answers, by 50 people, each of its own prompt."""
    with psycopg.connect(database, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("set session_replication_role = replica")
        for name, texts in (("bench_prompts", make_texts(997, 20, 1)), ("bench_answers", make_texts(4999, 40, 2))):
            cursor.execute(sql.SQL("create temporary table {} (number int, words text)").format(sql.Identifier(name)))
            cursor.executemany(
                sql.SQL("insert into {} values (%s, %s)").format(sql.Identifier(name)), list(enumerate(texts))
            )
        people = [row[0] for row in cursor.execute("select id from users where role = 'annotator'")]
        tables = re.findall(r"insert into (\w+)", FILL)
        # Indexes of random ids are built at once, which takes a tenth of the time of growing them.
        cursor.execute(INDEXES_REST, [tables])
        for statement in FILL.split(";\n")[:-1]:
            cursor.execute(statement, {"project": project_id, "num": num, "people": people})
        for name in tables:
            cursor.execute(sql.SQL("reindex table {}").format(sql.Identifier(name)))
        cursor.execute("vacuum analyze")


# Measuring


AS_TEXT = "(format csv, delimiter e'\\x01', quote e'\\x02')"


def make_rows(bench: Bench, dataset_id: uuid.UUID) -> None:
    """The lines of the dataset as rows of a table, for COPY: as they would be stored if they were not in pieces."""
    with psycopg.connect(bench.database, autocommit=True) as connection:
        connection.execute("create table bench_lines (position serial primary key, line text not null)")
        with (
            connection.cursor().copy(f"copy bench_lines (line) from stdin {AS_TEXT}") as copy,
            httpx2.stream("GET", f"{bench.url}/api/v1/datasets/{dataset_id}/rows", **bench.as_admin) as answer,
        ):
            for chunk in answer.iter_bytes():
                copy.write(chunk)
        connection.execute("vacuum analyze bench_lines")


def bare_copy(bench: Bench) -> tuple[float, int]:
    """Seconds and bytes of the server's own COPY of the lines to a file."""
    target = bench.folder / "copy.jsonl"
    lines = sql.SQL("copy (select line from bench_lines order by position) to {} {}")
    statement = lines.format(str(target), sql.SQL(AS_TEXT))
    with psycopg.connect(bench.database, autocommit=True) as connection:
        started = time.monotonic()
        connection.execute(statement)
        seconds = time.monotonic() - started
    size = target.stat().st_size
    target.unlink()
    return seconds, size


def download(bench: Bench, dataset_id: uuid.UUID, query: str) -> dict[str, float]:
    """Fetch one file with curl."""
    target = bench.folder / "download"
    address = f"{bench.url}/api/v1/datasets/{dataset_id}/export?{query}"
    command = ["curl", "-sS", "-f", "-o", str(target), "-H", f"Authorization: Bearer {bench.token}"]
    command += ["-w", "%{time_starttransfer} %{time_total} %{size_download}", address]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    first, total, size = (float(part) for part in answer.split())
    target.unlink()
    return {"first_byte": first, "seconds": total, "bytes": size}


def query_of(name: str) -> str:
    """`pairs-gzip` as choices."""
    form, _, way = name.partition("-")
    kind = "compression" if way in {"gzip", "zstd"} else "file"
    return f"format={form}" + (f"&{kind}={way}" if way else "")


def peak_megabytes(pid: int) -> float:
    """The most memory that the process ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure_exports(bench: Bench, dataset_id: uuid.UUID, names: list[str]) -> None:
    """Each format after a warm-up of the disk's cache, and COPY before and after, of which the faster counts."""
    make_rows(bench, dataset_id)
    bare_copy(bench)
    before = bare_copy(bench)
    measured = {
        name: download(bench, dataset_id, query_of(name)) | {"web_mb": peak_megabytes(bench.pid)} for name in names
    }
    seconds, size = min(before, bare_copy(bench))
    copied = size / seconds
    bench.figures["copy_mb_s"] = copied / 1e6
    bench.figures["of_copy"] = {name: one["bytes"] / one["seconds"] / copied for name, one in measured.items()}
    bench.figures["of_rows"] = {name: seconds / one["seconds"] for name, one in measured.items()}
    bench.figures["exports"] = measured


def measure_imports(bench: Bench, num: int) -> None:
    """Prompts and a corpus over HTTP."""
    prompts, answers = make_texts(997, 20, 3), make_texts(997, 40, 4)
    questions = b"".join(orjson.dumps({"prompt": f"{i}: {prompts[i % 997]}"}) + b"\n" for i in range(num))
    examples = b"".join(
        orjson.dumps({"prompt": f"{i}: {prompts[i % 997]}", "completion": answers[i % 997]}) + b"\n" for i in range(num)
    )
    found = {}
    for noun, body in (("prompts", questions), ("corpora", examples)):
        started = time.monotonic()
        address = f"{bench.url}/api/v1/projects/{bench.project.id}/{noun}:import"
        answer = httpx2.post(address, content=body, **bench.as_admin)
        answer.raise_for_status()
        found[noun] = num / (time.monotonic() - started)
    bench.figures["import"] = found


# Annotators at work


@contextlib.contextmanager
def annotators_at_work(bench: Bench, tokens: list[str], *, during: str) -> Iterator[None]:
    """People who take a task and rank it, each every few seconds, until the block ends."""
    stopping = threading.Event()
    seconds: list[float] = []
    people = [threading.Thread(target=rank, args=(bench, token, stopping, seconds), daemon=True) for token in tokens]
    for person in people:
        person.start()
    try:
        yield
    finally:
        stopping.set()
        for person in people:
            person.join()
        if seconds:
            seconds.sort()
            bench.figures.setdefault("annotators", {})[during] = {
                "requests": len(seconds),
                "p50_ms": 1000 * seconds[len(seconds) // 2],
                "p95_ms": 1000 * seconds[int(len(seconds) * 0.95)],
            }


def rank(bench: Bench, token: str, stopping: threading.Event, seconds: list[float]) -> None:
    """One person's work."""
    headers = {"Authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=f"{bench.url}/api/v1", headers=headers, timeout=60) as http:
        while not stopping.wait(random.uniform(0, 2 * SECONDS_A_RANKING)):
            started = time.monotonic()
            task = http.post("/tasks:next", json={"project_id": str(bench.project.id)})
            seconds.append(time.monotonic() - started)
            if task.status_code != 200:
                continue
            lease = task.json()
            order = [[answer["id"]] for answer in lease["completions"]]
            started = time.monotonic()
            http.post(f"/leases/{lease['lease_id']}/ranking", json={"order": order}).raise_for_status()
            seconds.append(time.monotonic() - started)


async def make_people(session: AsyncSession) -> tuple[str, list[str]]:
    """An admin's token, and one for each annotator."""
    admin = await accounts.create_user(session, name="Admin", email="admin@example.org", role=Role.ADMIN)
    scopes = [Scope.READ, Scope.WRITE]
    _, token = await create_token(session, user_id=admin.id, name="bench", scopes=scopes)
    tokens = []
    for number in range(NUM_ANNOTATORS):
        person = await accounts.create_user(
            session, name=f"P{number}", email=f"p{number}@example.org", role=Role.ANNOTATOR
        )
        made = await create_token(session, user_id=person.id, name="bench", scopes=[Scope.ANNOTATE])
        tokens.append(made[1])
    return token, tokens


def give_work(bench: Bench, num_tasks: int) -> None:
    """Tasks of four answers."""
    answers = make_texts(997, 40, 5)
    lines = b"".join(
        orjson.dumps({"prompt": f"Task {i}?", "completions": [f"{k}: {answers[(i + k) % 997]}" for k in range(K)]})
        + b"\n"
        for i in range(num_tasks)
    )
    address = f"{bench.url}/api/v1/projects/{bench.project.id}/completions:import"
    httpx2.post(address, content=lines, **bench.as_admin).raise_for_status()


# All of it


async def prepare(database: str) -> tuple[Project, str, list[str]]:
    """Project, with its first round, and people."""
    subscriptions.subscribe()
    async with standalone_session(database) as session:
        project = await create_project(session, name="Bench", slug="bench", model_alias="pocket")
        return (project, *await make_people(session))


def measure_freezing(bench: Bench) -> uuid.UUID:
    """Freeze all rankings over HTTP."""
    started = time.monotonic()
    answer = httpx2.post(
        f"{bench.url}/api/v1/datasets",
        json={"project_id": str(bench.project.id)},
        **bench.as_admin,
    )
    answer.raise_for_status()
    bench.figures["freeze"] = {"rankings": answer.json()["num_rows"], "seconds": time.monotonic() - started}
    return uuid.UUID(answer.json()["id"])


@contextlib.contextmanager
def web_process(folder: Path, database: str) -> Iterator[tuple[str, int]]:
    """`rankloop serve` on a free port: its address and its process."""
    port = random.randint(20000, 40000)
    command = [sys.executable, "-m", "rankloop", "serve", "--port", str(port), "--data-dir", str(folder / "data")]
    process = subprocess.Popen(command, env=os.environ | {"DATABASE_URL": database})
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            with contextlib.suppress(httpx2.TransportError):
                httpx2.get(f"{address}/sign-in")
                break
            time.sleep(0.1)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait()


def run(num_rankings: int, formats: list[str], *, num_imported: int) -> dict[str, Any]:
    """Measure everything in a folder that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="rankloop-bench-"))
    folder.chmod(0o777)
    try:
        with EmbeddedPostgres(folder) as server:
            database = server.url("postgres")
            upgrade(database)
            project, token, tokens = asyncio.run(prepare(database))
            started = time.monotonic()
            fill(database, project.id, num_rankings)
            print(f"filled in {time.monotonic() - started:.0f} s", file=sys.stderr)
            with web_process(folder, database) as (url, pid):
                bench = Bench(folder, url, database, pid, token, num_rankings, project)
                give_work(bench, min(num_rankings // 5, 20_000))
                with annotators_at_work(bench, tokens, during="freeze"):
                    dataset_id = measure_freezing(bench)
                print(f"frozen in {bench.figures['freeze']['seconds']:.0f} s", file=sys.stderr)
                measure_exports(bench, dataset_id, formats)
                with annotators_at_work(bench, tokens, during="export"):
                    download(bench, dataset_id, "format=pairs")
                    time.sleep(5)
                with annotators_at_work(bench, tokens, during="nothing"):
                    time.sleep(20)
                measure_imports(bench, num_imported)
                bench.figures["web_mb"] = peak_megabytes(pid)
            return {"num_rankings": num_rankings, **bench.figures}
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def show(figures: dict[str, Any]) -> None:
    """The figures as a table."""
    print(f"{'format':16}{'MB/s':>8}{'of_copy':>9}{'of_rows':>9}{'first_byte':>12}{'web_mb':>8}")
    for name, one in figures["exports"].items():
        speed = one["bytes"] / one["seconds"] / 1e6
        shares = f"{figures['of_copy'][name]:9.2f}{figures['of_rows'][name]:9.2f}"
        print(f"{name:16}{speed:8.1f}{shares}{one['first_byte']:12.3f}{one['web_mb']:8.0f}")
    for name in ("copy_mb_s", "annotators", "freeze", "import", "web_mb"):
        print(name, json.dumps(figures.get(name)))


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10,000 rankings")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--formats", default=DEFAULT_FORMATS, help="which, separated by commas")
    parser.add_argument("--rankings", type=int, metavar="N", help="instead of 1,000,000")
    options = parser.parse_args()
    num_rankings, num_imported = (10_000, 2_000) if options.quick else (options.rankings or 1_000_000, 50_000)
    figures = run(num_rankings, options.formats.split(","), num_imported=num_imported)
    show(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
