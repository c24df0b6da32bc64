"""The figures of `rankloop simulate`, on numbers that can be checked by hand."""

from __future__ import annotations

import json
import random

import pytest
from typer.testing import CliRunner

from rankloop.cli import build
from trainer import simulate_cli
from trainer.simulate import Interval, LoopResult, bootstrap, mean_utility, pooled, share_of_wins
from trainer.simulate_cli import TRAINING, report, training_with


def test_wins_are_counted_over_all_pairs_and_a_tie_is_half_a_win() -> None:
    assert share_of_wins(after=[3.0, 1.0], before=[1.0, 2.0]) == (1 + 1 + 0.5 + 0) / 4


def test_the_interval_resamples_prompts() -> None:
    """The percentile interval of a mean of 0s and 1s is that of a binomial share: 0.5 +- 1.96 sqrt(0.25 / 100)."""
    found = bootstrap([0.0, 1.0] * 50, random.Random(17))
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.402, abs=0.01)
    assert found.high == pytest.approx(0.598, abs=0.01)


def test_an_interval_of_equal_values_has_no_width() -> None:
    assert bootstrap([2.0] * 9, random.Random(17)) == Interval(2.0, 2.0, 2.0)


def test_answers_of_all_seeds_to_one_prompt_are_one_unit() -> None:
    together = pooled([{"p": [1.0, 2.0], "q": [0.0]}, {"p": [6.0]}])
    assert together == {"p": [1.0, 2.0, 6.0], "q": [0.0]}
    assert mean_utility([{"p": [1.0, 2.0], "q": [0.0]}]) == 0.75


def test_settings_reach_the_training_that_they_name() -> None:
    changed = training_with(["ppo.beta=0.05", "reward.num_epochs=2"])
    assert changed["ppo"] == TRAINING["ppo"] | {"beta": 0.05}
    assert changed["reward"] == {"num_epochs": 2}
    assert "beta" not in TRAINING["ppo"], "a run's wishes don't stay for the next"


@pytest.mark.parametrize("pair", ["beta=0.05", "sample.k=4", "ppo.=1"])
def test_a_setting_without_a_training_is_refused_by_name(pair: str) -> None:
    with pytest.raises(ValueError, match=f"--set {pair.split('=', maxsplit=1)[0]}: begin with reward. or ppo."):
        training_with([pair])


def test_json_ends_with_the_final_figures(capsys: pytest.CaptureFixture[str]) -> None:
    interval = Interval(1.0, 0.5, 1.5)
    utility = {"sft": Interval(0.5, 0.0, 1.0), "final": Interval(1.5, 1.0, 2.0), "gain": interval}
    result = LoopResult(1, 1, 10, 20, utility, Interval(0.75, 0.7, 0.8), 2.5, [0.5, 1.5], [0.8], 12.0)
    assert list(result.as_json())[-3:] == ["win_rate", "utility", "kl"]
    assert json.loads(json.dumps(result.as_json()))["utility"]["gain"] == {"mean": 1.0, "low": 0.5, "high": 1.5}
    report(result, None)
    printed = capsys.readouterr().out
    assert "round 1" in printed
    assert "+1.000" in printed
    assert "75.0%" in printed


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
