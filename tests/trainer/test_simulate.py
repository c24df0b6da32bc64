"""The figures of `rankloop simulate`, on numbers that can be checked by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rankloop.cli import build
from trainer import simulate_cli
from trainer.simulate import SeedMarks
from trainer.simulate_cli import TRAINING, lines_of, server_environment, training_with, write
from trainer.simulate_exam import Marks, RewardMarks
from trainer.simulate_figures import Interval, LoopFigures, bootstrap, figures_of, pooled


def test_the_interval_resamples_prompts() -> None:
    """The percentile interval of a mean of 0s and 1s is that of a binomial share: 0.5 +- 1.96 sqrt(0.25 / 100)."""
    found = bootstrap([0.0, 1.0] * 50, random.Random(17))
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.402, abs=0.01)
    assert found.high == pytest.approx(0.598, abs=0.01)


def test_an_interval_of_equal_values_has_no_width() -> None:
    assert bootstrap([2.0] * 9, random.Random(17)) == Interval(2.0, 2.0, 2.0)


def test_what_all_seeds_say_of_one_prompt_is_one_value() -> None:
    assert pooled([{"p": 1.0, "q": 0.0}, {"p": 0.5}]) == [0.75, 0.0]


def marks(*wins: float) -> Marks:
    """An exam with one answer a prompt, each worth twice the share that it wins."""
    by_prompt = {str(number): share for number, share in enumerate(wins)}
    return Marks({prompt: [2 * share] for prompt, share in by_prompt.items()}, by_prompt, by_prompt)


def story(rounds: Sequence[Marks]) -> SeedMarks:
    """One seed: the ceiling is 0.9, the last reward model is right on 0.76 where the truth is right on 0.8."""
    return SeedMarks(
        sft=marks(0.5, 0.5),
        ceiling=marks(0.8, 1.0),
        best_of_16=marks(0.6, 0.8),
        rounds=rounds,
        rewards=[RewardMarks(0.7, 0.8), RewardMarks(0.76, 0.8)],
        kl=[2.0, 3.0],
        num_rankings=10,
    )


def two_seeds() -> LoopFigures:
    seeds = [story([marks(0.5, 0.6), marks(0.8, 0.8)]), story([marks(0.6, 0.7), marks(0.8, 0.96)])]
    return figures_of(seeds, seconds=12.0)


def test_the_room_is_that_between_one_half_and_the_ceiling() -> None:
    figures = two_seeds()
    assert figures.win_rate.mean == pytest.approx(0.84)
    assert figures.room == pytest.approx(0.34 / 0.4)
    assert figures.reward_share == pytest.approx(0.95)
    assert [found.win_rate for found in figures.rounds] == [0.6, 0.84]
    assert (figures.seeds, figures.num_prompts, figures.num_rankings) == (2, 2, 20)


def test_json_begins_with_the_final_figures_as_plain_numbers() -> None:
    found = json.loads(json.dumps(two_seeds().as_json()))
    assert list(found)[:6] == ["win_rate", "ceiling", "best_of_16", "kl", "room", "reward_share"]
    assert [found[name] for name in ("ceiling", "best_of_16", "kl", "room")] == [0.9, 0.7, 3.0, 0.85]
    assert found["intervals"]["ceiling"] == [0.8, 1.0]
    assert found["rounds"][0]["true_accuracy"] == 0.8


def test_what_is_known_is_written_down_after_each_seed(tmp_path: Path) -> None:
    """The processor time is known only when the server has ended."""
    file = tmp_path / "figures.json"
    for number in (1, 2):
        write(figures_of([story([marks(0.5, 0.6), marks(0.8, 0.8)])] * number, seconds=1.0), file)
        found = json.loads(file.read_text())
        assert (found["seeds"], found["cpu_seconds"]) == (number, None)


def test_the_last_line_says_the_processor_time() -> None:
    seeds = [story([marks(0.5, 0.6), marks(0.8, 0.8)])]
    *_, last = lines_of(figures_of(seeds, seconds=100.0, cpu_seconds=61.0))
    assert last.endswith("100 s (61 s of processor time)")


def test_the_table_has_a_line_a_round() -> None:
    printed = list(lines_of(two_seeds()))
    assert printed[3].split() == ["round", "2", "1.680", "84.0%", "3.00", "76.0%", "80.0%"]
    assert "85.0% of the room to the ceiling, at 3.00 nats an answer" in printed


def test_settings_reach_the_training_that_they_name() -> None:
    changed = training_with(["ppo.target_kl=5", "reward.num_heads=2"])
    assert changed["ppo"] == TRAINING["ppo"] | {"target_kl": 5}
    assert changed["reward"] == TRAINING["reward"] | {"num_heads": 2}
    assert "target_kl" not in TRAINING["ppo"], "a run's wishes don't stay for the next"


def test_the_own_server_has_a_database_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/people")
    found = server_environment(Path("models.json"))
    assert "DATABASE_URL" not in found
    assert found["RANKLOOP_MODELS"] == "models.json"


@pytest.mark.parametrize(("num_cores", "expected"), [(1, ("1", "1")), (2, ("2", "1")), (16, ("2", "8"))])
def test_its_worker_trains_in_two_processes_on_a_cpu(
    num_cores: int, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("RANKLOOP_PROCESSES", "RANKLOOP_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANKLOOP_DEVICE", "cpu")
    monkeypatch.setattr("os.cpu_count", lambda: num_cores)
    found = server_environment(Path("models.json"))
    assert tuple(found[name] for name in names) == expected
    monkeypatch.setenv("RANKLOOP_PROCESSES", "1")
    assert server_environment(Path("models.json"))["RANKLOOP_PROCESSES"] == "1"
    monkeypatch.delenv("RANKLOOP_PROCESSES")
    monkeypatch.setenv("RANKLOOP_DEVICE", "cuda")
    assert "RANKLOOP_PROCESSES" not in server_environment(Path("models.json"))


@pytest.mark.parametrize("pair", ["beta=0.05", "sample.k=4", "ppo.=1"])
def test_a_setting_without_a_training_is_refused_by_name(pair: str) -> None:
    with pytest.raises(ValueError, match=f"--set {pair.split('=', maxsplit=1)[0]}: begin with reward. or ppo."):
        training_with([pair])


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--set", "foo"], "foo"), (["--project", "demo", "--set", "ppo.beta=1"], "with --project, nothing is trained")],
)
def test_settings_are_checked_before_any_work(options: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("own_server", "rank_project"):
        monkeypatch.setattr(simulate_cli, name, lambda *_: pytest.fail("began to work"))
    result = CliRunner().invoke(build(), ["simulate", *options])
    assert result.exit_code == 1
    assert words in result.stderr
