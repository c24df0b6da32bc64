"""How long is it from Enter to the next task on the screen?

    python benchmarks/workbench.py [--quick] [--json FILE]

It needs what the tests need: `make test` installs playwright, and says how a Chromium comes here. The browser,
headless, ranks tasks of four answers of about 150 words by keyboard, against the app and a durable PostgreSQL on this
machine. The annotator presses Enter once the next task has been fetched, as everybody who reads the answers does. What
is measured: from the time stamp of the key press to the end of the frame that shows the next task, in milliseconds.
Before that the ranking lies on the device (IndexedDB, durability "strict"); it is sent behind it. Beside that, with the
fetching ahead refused: the same when the page must send first and load the next one anew.

All of it shares the machine's cores, so that a busy machine shows larger figures than an annotator sees.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import platform
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from playwright.async_api import Page, async_playwright

from app.accounts.models import Role, User
from app.accounts.sessions import create_sign_in_link
from app.config import Settings
from app.db import make_engine, make_sessionmaker
from app.embedded import EmbeddedPostgres
from app.main import create_app
from app.migrate import upgrade
from app.projects.service import create_project
from app.prompts.models import Completion, Prompt, Split
from app.prompts.service import content_hash, root_hash, text_hash
from app.tasks.making import create_task

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.chromium import find_chromium  # the browser of the tests

K = 4
NUM_WORDS = 150
WARM_UP = 5
LIMIT_MS = 100
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
# Measures in the page itself: from the key's own time stamp to the task after the next frame.
STOPWATCH = """() => {
    window.times = [];
    const lease = () => document.getElementById("rank")?.dataset.lease;
    addEventListener("keydown", (event) => {
        if (event.key !== "Enter") return;
        const before = lease();
        const look = () => requestAnimationFrame(() => {
            if (lease() === before) look();
            else setTimeout(() => window.times.push(performance.now() - event.timeStamp));
        });
        look();
    }, true);
}"""


@contextmanager
def serving(url: str, folder: Path) -> Iterator[str]:
    """The app in a thread, on a port of its own; gives its address."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(Settings(data_dir=folder, database_url=url)), port=0, log_level="warning", ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


async def prepare(url: str, num_tasks: int, address: str) -> str:
    """A project with tasks, and an annotator; gives the link to sign in with."""
    engine = make_engine(url)
    draw = random.Random(17)
    words = ["answer", "because", "carefully", "different", "example", "follows", "question", "reason", "the", "which"]
    async with make_sessionmaker(engine).begin() as session:
        project = await create_project(session, name="Workbench", model_alias="pocket")
        annotator = User(name="Ada", email="ada@example.org", role=Role.ADMIN)
        session.add(annotator)
        for number in range(num_tasks):
            messages = [{"role": "user", "content": f"Question {number}?"}]
            hashes = {"root_hash": root_hash(messages), "content_hash": content_hash(messages)}
            prompt = Prompt(project_id=project.id, messages=messages, split=Split.TRAIN, **hashes)
            session.add(prompt)
            await session.flush()
            texts = [" ".join(draw.choices(words, k=NUM_WORDS)) for _ in range(K)]
            answers = [Completion(prompt_id=prompt.id, text=text, content_hash=text_hash(text)) for text in texts]
            session.add_all(answers)
            await session.flush()
            ids = [answer.id for answer in answers]
            await create_task(session, project=project, prompt_id=prompt.id, completion_ids=ids)
        link = await create_sign_in_link(session, user=annotator, public_url=address)
    await engine.dispose()
    return link


async def rank(page: Page, num: int) -> list[float]:
    """Rank so many tasks that are fetched ahead; gives the milliseconds from Enter to the next one."""
    async with page.expect_response("**/rank/ahead"):
        await page.goto("/projects/workbench/rank")
    await page.evaluate(STOPWATCH)
    for _ in range(num):
        async with page.expect_response("**/rank/ahead"):
            for key in ("2", "1", "2", "3", "Enter"):
                await page.keyboard.press(key)
    times: list[float] = await page.evaluate("window.times")
    return times


async def rank_without(page: Page, num: int) -> list[float]:
    """The same, but nothing is fetched ahead: the ranking is sent, and the next page is loaded."""
    await page.route("**/rank/ahead", lambda route: route.abort())
    times = []
    for _ in range(num):
        await page.goto("/projects/workbench/rank", wait_until="networkidle")
        lease = await page.locator("#rank").get_attribute("data-lease")
        for key in ("2", "1", "2", "3"):
            await page.keyboard.press(key)
        start = time.perf_counter()
        await page.keyboard.press("Enter")
        await page.locator(f'#rank:not([data-lease="{lease}"])').wait_for()
        times.append(1000 * (time.perf_counter() - start))
    return times


async def measure(url: str, address: str, num: int) -> tuple[list[float], list[float]]:
    """Both, in one browser."""
    num_without = max(5, num // 5)
    link = await prepare(url, num + num_without + WARM_UP + 2, address)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = await browser.new_page(base_url=address, viewport={"width": 1280, "height": 800})
        await page.goto(link)
        await page.locator("main button").first.click()
        await page.wait_for_url(f"{address}/")
        ahead = (await rank(page, num + WARM_UP))[WARM_UP:]
        without = await rank_without(page, num_without)
        await browser.close()
    return ahead, without


def summary(times: list[float]) -> dict[str, float]:
    """Median, 95th percentile and the slowest, in milliseconds."""
    ordered = sorted(times)
    worst = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    return {"num": len(ordered), "median": statistics.median(ordered), "p95": worst, "max": ordered[-1]}


def report(figures: dict[str, Any]) -> None:
    """The table."""
    print(f"{'Enter to the next task, ms':34}{'num':>6}{'median':>9}{'p95':>9}{'max':>9}")
    for name, row in figures["milliseconds"].items():
        print(f"{name:34}{row['num']:6.0f}{row['median']:9.1f}{row['p95']:9.1f}{row['max']:9.1f}")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="15 tasks in place of 100")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with EmbeddedPostgres(folder) as server:
            url = server.url("postgres")
            upgrade(url)
            with serving(url, folder) as address:
                ahead, without = asyncio.run(measure(url, address, 15 if arguments.quick else 100))
    figures = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "limit_ms": LIMIT_MS,
        "milliseconds": {"fetched ahead": summary(ahead), "sent first, then loaded": summary(without)},
    }
    report(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
