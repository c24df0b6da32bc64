"""Four rounds of the pocket model while web, worker and database are killed with -9, twenty times each."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from app.embedded import EmbeddedPostgres
from tests.faults.conftest import durable_server, durable_url
from tests.faults.rounds import Loop, open_loop
from trainer.pocket.build import build_pocket
from trainer.pocket.world import held_out_requests

__all__ = ["durable_server", "durable_url"]

KILLS = 20
ROUNDS = 4
NUM_PEOPLE = 8
NUM_PROMPTS = 60
MOST_WORK_BETWEEN = 40
"""Rankings, answers, points, lines: at most so much is stored between two kills; how much is drawn."""
TRAINING = {
    "reward": {"rankings_per_batch": 4, "checkpoint_every": 1},
    "ppo": {"num_episodes": 128, "episodes_per_batch": 16, "minibatch_size": 16},
}
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 32, "seed": 17}

pytestmark = pytest.mark.soak


async def test_four_rounds_and_60_kills_lose_no_ranking_and_change_no_model(
    durable_server: EmbeddedPostgres,
    durable_url: str,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    seed = time.time_ns() % 2**32
    record_property("seed", seed)
    await asyncio.to_thread(build_pocket, tmp_path / "pocket", progress=lambda *_: None, num_sampled_answers=8)
    opened = open_loop(
        durable_server,
        durable_url,
        tmp_path,
        models={"small": str(tmp_path / "pocket")},
        prompts=[request.prompt for request in held_out_requests(NUM_PROMPTS, seed=17)],
        num_people=NUM_PEOPLE,
        project={"model_alias": "small", "training": TRAINING, "sampling": SAMPLING},
        seed=seed,
    )
    async with opened as loop:
        trouble = asyncio.create_task(kill_at_random(loop, random.Random(seed)))
        num_rounds = 0
        while num_rounds < ROUNDS or not trouble.done():
            num_rounds += 1
            await loop.turn(num_rounds)
        await trouble
        await loop.rank(num_rounds + 1)
        found = await loop.violations()
        versions = await loop.ask_number("select count(*) from versions")
        attempts = await loop.ask("select kind, attempt from runs")
        differences = await loop.differences()
    record_property("kills", dict(loop.kills))
    record_property("rounds", num_rounds)
    record_property("requests", loop.history.num_sent)
    record_property("requests that got no answer and were sent again", loop.history.num_unanswered)
    record_property("rankings", len({answer.ranking for answer in loop.history.answers if answer.is_taken}))
    record_property("runs, by how often they were claimed", dict(Counter(row.attempt for row in attempts)))
    record_property("violations", found[:20])
    record_property("trainings done once more, and weights that differ", [2 * num_rounds, differences[:20]])
    assert found == []
    assert versions == 1 + 2 * num_rounds
    assert differences == []
    assert loop.kills == {"web": KILLS, "database": KILLS, "worker": KILLS}


async def kill_at_random(loop: Loop, chance: random.Random) -> None:
    """Each part so many times, in any order, whenever a random amount of work was stored since the last time."""
    victims = ["web", "database", "worker"] * KILLS
    chance.shuffle(victims)
    for victim in victims:
        await loop.work_goes_on(chance.randint(1, MOST_WORK_BETWEEN))
        await loop.kill(victim)
