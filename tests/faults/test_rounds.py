"""Two rounds of the loop in which each part is killed once.

Four rounds with sixty kills are in tests/soak/test_rounds.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.embedded import EmbeddedPostgres
from tests.faults.rounds import Loop, open_loop
from tests.trainer.tiny import save_tiny

TRAINING = {
    "reward": {"rankings_per_batch": 1, "checkpoint_every": 1},
    "ppo": {"num_episodes": 24, "episodes_per_batch": 4, "minibatch_size": 4},
}


@pytest.mark.slow
async def test_two_rounds_lose_nothing_when_each_part_is_killed(
    durable_server: EmbeddedPostgres, durable_url: str, tmp_path: Path
) -> None:
    save_tiny(tmp_path / "tiny")
    project = {
        "model_alias": "tiny",
        "training": TRAINING,
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 6, "seed": 17},
    }
    prompts = ["a b", "b c d", "c", "d d a", "a c", "b b"]
    opened = open_loop(
        durable_server,
        durable_url,
        tmp_path,
        models={"tiny": str(tmp_path / "tiny")},
        prompts=prompts,
        num_people=3,
        project=project,
    )
    async with opened as loop:
        trouble = asyncio.create_task(kill_each_part(loop))
        for number in (1, 2):
            await loop.turn(number)
        await trouble
        await loop.rank(3)
        assert await loop.violations() == []
        assert await loop.ask_number("select count(*) from versions") == 1 + 2 * 2
        assert await loop.differences() == []
    assert loop.kills == {"web": 1, "database": 1, "worker": 1}


async def kill_each_part(loop: Loop) -> None:
    """The web while answers come in, the database while people rank, the worker between two checkpoints."""
    await loop.work_goes_on(5)
    await loop.kill("web")
    await loop.history.reach(5)
    await loop.kill("database")
    await loop.until(lambda: loop.ask_number("select count(*) from artifacts where name = 'checkpoint/manifest.json'"))
    await loop.kill("worker")
