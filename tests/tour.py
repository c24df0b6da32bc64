"""The pictures of the guided tours (docs/tour): `python -m tests.tour` turns two real rounds and walks through the app.

A server of its own, the pocket model, prompts of the pocket world and six simulated annotators, one of whom presses the
first card always; then every page of the tours in English and in Chinese. About ten minutes on two cores.
`--data-dir DIR` keeps the app's folder, and with a folder that is there already only takes the pictures again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from playwright.async_api import Page, ViewportSize, async_playwright

from tests.browser.conftest import FLAGS
from tests.chromium import find_chromium
from trainer.client import Client
from trainer.pocket.world import held_out_requests
from trainer.simulate import Annotators, rank_one
from trainer.simulate_cli import OwnServer, program, server_in

OUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "tour"
SLUG = "helpful"
NUM_PROMPTS = 160
ROUNDS = 2
PEOPLE = ("Ada", "Bashir", "Chen", "Dara", "Elif")
FIRST_CARD = "Max"
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PROJECT: dict[str, Any] = {
    "name": "Helpful short answers",
    "slug": SLUG,
    "model_alias": "pocket",
    "k": 4,
    "guidelines": "Prefer the answer that does what was asked, in the language of the question, politely.",
    "overlap": 3,
    "overlap_share": 0.5,
    "test_share": 0.2,
    # With so few held-out rankings the gate would keep a second reward model back; the tour shows whole rounds.
    "reward_gate": "off",
    "sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 128, "seed": 7},
    "training": {"ppo": {"num_episodes": 512, "learning_rate": 1e-4, "num_epochs": 2}},
}
# Picture -> its page; {ppo} is the newest run of PPO.
PICTURES = {
    "overview": "/projects/helpful",
    "people": "/projects/helpful/people",
    "import": "/projects/helpful/prompts/import",
    "quality": "/projects/helpful/quality",
    "annotators": "/projects/helpful/quality/annotators",
    "bias": "/projects/helpful/quality/bias",
    "reviews": "/projects/helpful/quality/reviews",
    "dataset-new": "/projects/helpful/datasets/new",
    "dataset": "/projects/helpful/datasets/1",
    "rounds": "/projects/helpful/rounds",
    "watch": "/projects/helpful/watch",
    "runs": "/projects/helpful/runs",
    "run": "/projects/helpful/runs/{ppo}",
    "versions": "/projects/helpful/versions",
    "version": "/projects/helpful/versions/3",
    "tokens": "/account/tokens",
    "webhooks": "/projects/helpful/webhooks",
}


def sign_in_link(app: OwnServer) -> str:
    """A link that signs the admin in, once."""
    command = [*program(), "user", "link", "admin@localhost", "--data-dir", str(app.data_dir)]
    link = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return app.url + link[link.index("/sign-in") :]


# The rounds


def turn_rounds(app: OwnServer) -> None:
    """Make the project and its people, and turn the rounds; where the project is there already, nothing."""
    with Client(app.url, app.token) as client:
        if client.list_projects():
            return
        project = client.create_project(**PROJECT)["id"]
        requests = held_out_requests(NUM_PROMPTS, 7)
        lines = [json.dumps({"prompt": asked.prompt, "language": asked.language}) for asked in requests]
        client.import_prompts(project, lines)
        people = {name: hire(client, project, name) for name in (*PEOPLE, FIRST_CARD)}
        run = client.start_sampling(project)["id"]
        for number in range(ROUNDS):
            wait_for(client, run)
            rank_all(app.url, people, project, number)
            client.start_training(project)
            for kind in ("reward", "ppo", "sample"):
                run = newest(client, project, kind)
                wait_for(client, run)
        # A third round is on its way: some of its tasks wait.
        rank_all(app.url, people, project, ROUNDS, most=60)


def hire(client: Client, project: str, name: str) -> str:
    """A simulated annotator of the project; their token."""
    user = client.create_user(name=name, email=f"{name.lower()}@example.org", is_simulated=True)
    client.set_member(project, user["id"], role="annotator")
    made = client.create_token(user_id=user["id"], name="tour", scopes=["annotate"], days=1)
    return str(made["token"])


def newest(client: Client, project: str, kind: str) -> str:
    return str(next(run["id"] for run in client.list_runs(project) if run["kind"] == kind))


def wait_for(client: Client, run_id: str) -> None:
    """Wait for a run's good end."""
    while (run := client.get_run(run_id))["state"] != "finished":
        assert run["state"] not in {"failed", "cancelled"}, run["error"]
        time.sleep(0.5)


def rank_all(url: str, people: dict[str, str], project: str, seed: int, most: int = 10_000) -> None:
    """Everybody takes turns until nothing waits for anybody, or `most` rankings are there."""
    clients = {name: Client(url, token) for name, token in people.items()}
    rngs = {name: random.Random(f"{name} {seed}") for name in people}
    waiting, done = list(people), 0
    while waiting and done < most:
        for name in list(waiting):
            rank = rank_first_card if name == FIRST_CARD else rank_honestly
            if rank(clients[name], project, rngs[name]):
                done += 1
            else:
                waiting.remove(name)
    for client in clients.values():
        client.close()


def rank_honestly(client: Client, project: str, rng: random.Random) -> bool:
    return rank_one(client, project, rng, Annotators(noise=0.4))


def rank_first_card(client: Client, project: str, rng: random.Random) -> bool:
    """What a careless person does: the cards in the order in which they came."""
    lease = client.next_task(project)
    if lease is None:
        return False
    client.submit_ranking(lease["lease_id"], {"order": [[card["id"]] for card in lease["completions"]]})
    return True


# The pictures


async def take_pictures(app: OwnServer, link: str, out: Path, names: list[str]) -> None:
    """Sign in once, then every page in both languages."""
    with Client(app.url, app.token) as client:
        ppo = newest(client, client.get_project(SLUG)["id"], "ppo")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = await browser.new_page(viewport=DESKTOP)
        await page.goto(link)
        await page.locator("main").get_by_role("button").click()
        for name in names:
            for language in ("en", "zh"):
                address = app.url + PICTURES[name].format(ppo=ppo)
                await take_picture(page, address, out / f"{name}.{language}.png", language)
        await browser.close()


async def take_picture(page: Page, address: str, file: Path, language: str) -> None:
    await page.context.add_cookies([{"name": "rl_language", "value": language, "url": urljoin(address, "/")}])
    answer = await page.goto(address)
    assert answer is not None
    assert answer.ok, address
    await page.screenshot(path=file, animations="disabled")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the pictures")
    parser.add_argument("--data-dir", type=Path, help="keep the app's folder here")
    parser.add_argument("--pages", nargs="+", choices=PICTURES, default=list(PICTURES))
    asked = parser.parse_args()
    for folder in filter(None, (asked.out, asked.data_dir)):
        folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="rankloop-tour-", ignore_cleanup_errors=True) as folder,
        server_in(asked.data_dir or Path(folder)) as app,
    ):
        turn_rounds(app)
        asyncio.run(take_pictures(app, sign_in_link(app), asked.out, asked.pages))


if __name__ == "__main__":
    main()
