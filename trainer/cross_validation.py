"""How well a reward model predicts rankings of conversations that it never saw."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config import RewardConfig
from trainer.data import Task, all_rankings, for_each_ranking
from trainer.distributed import one_voice
from trainer.fitting import Keeper
from trainer.preferences import Accuracy, Ranking, make_folds, pairwise_accuracy, to_rankings
from trainer.reporting import Reporter, SilentReporter
from trainer.reward import Rows, encode_tasks, fit, make_reward_model, report_on
from trainer.scorer import Scorer, StateCache, pad_id_of
from trainer.weights import ModelSource, count_parameters, load_tokenizer


@dataclass(frozen=True)
class CrossValidation:
    """What held-out folds say."""

    accuracy: Accuracy
    """Over the held-out pairs of all folds; the interval resamples prompts."""
    accuracy_by_conversation: Accuracy
    """The same, resampling whole conversations: wider where prompts continue one another."""
    fold_accuracies: list[float]
    scores: list[list[float]]
    """Of the answers of each of `rankings`, by the model that had not seen its conversation."""
    rankings: list[Ranking]
    """The rankings that were used, those of a task together."""
    refused: list[dict[str, str]]
    report: dict[str, Any]
    """As `RewardResult.report`, on all rankings."""
    seconds: float


def cross_validate(
    rows: Rows,
    *,
    source: ModelSource,
    config: RewardConfig,
    folds: int = 5,
    report: Reporter | None = None,
    cache: StateCache | None = None,
    device: str = "cpu",
) -> CrossValidation:
    """Train `folds` reward models, each on all conversations but its fold's, and score every fold by its own model.

    Prompts of one conversation share a fold. The split of the rows plays no part. `cache` takes up what the frozen
    blocks say, for another call with the same model, adapters and rows. ValueError as in `train_reward`.
    """
    started = time.monotonic()
    report = one_voice(report or SilentReporter())
    pad_id = pad_id_of(load_tokenizer(source))
    config = config.for_model(count_parameters(source), device)
    tasks, refused = encode_tasks(to_rankings(rows), source, config)
    for row in refused:
        report.log("warning", f"Ranking {row['ranking_id']} was left out: {row['reason']}")
    config = config.for_rankings(len(all_rankings(tasks)) * (folds - 1) // folds, goes_on=False)
    cache = {} if cache is None else cache
    scores: list[list[float]] = [[] for _ in tasks]
    accuracies: list[float] = []
    for number, fold in enumerate(make_folds([task.rankings[0] for task in tasks], folds, seed=config.seed)):
        training, tested = _cut(tasks, fold)
        num_learned, num_tested = len(all_rankings(training)), len(all_rankings(tested))
        report.log("info", f"fold {number + 1} of {folds}: {num_learned} rankings to learn from, {num_tested} held out")
        scorer = Scorer(make_reward_model(source, config, device), pad_id=pad_id, config=config, cache=cache)
        fit(scorer, training, [], config, report, Keeper(None, {}, None, None))
        found_scores = scorer.score_tasks(tested)
        for index, task_scores in zip(fold, found_scores, strict=True):
            scores[index] = task_scores
        found = pairwise_accuracy(all_rankings(tested), for_each_ranking(tested, found_scores))
        accuracies.append(found.value if found else math.nan)
        report.log("info", f"fold {number + 1} of {folds}: accuracy {accuracies[-1]:.3f}")
    return _summarise(tasks, scores, accuracies, refused, started)


def _cut(tasks: Sequence[Task], fold: Sequence[int]) -> tuple[list[Task], list[Task]]:
    """(what is learned, what is held out)."""
    held_out = set(fold)
    return [task for index, task in enumerate(tasks) if index not in held_out], [tasks[index] for index in fold]


def _summarise(
    tasks: Sequence[Task],
    scores: Sequence[list[float]],
    accuracies: list[float],
    refused: list[dict[str, str]],
    started: float,
) -> CrossValidation:
    """ValueError when there is no pair to measure."""
    rankings, ranking_scores = all_rankings(tasks), for_each_ranking(tasks, scores)
    overall = pairwise_accuracy(rankings, ranking_scores)
    by_conversation = pairwise_accuracy(rankings, ranking_scores, cluster=_root_of)
    if overall is None or by_conversation is None:
        raise ValueError("There is no pair to measure: every ranking is one tie.")
    return CrossValidation(
        accuracy=overall,
        accuracy_by_conversation=by_conversation,
        fold_accuracies=accuracies,
        scores=ranking_scores,
        rankings=rankings,
        refused=refused,
        report=report_on(tasks, scores, tasks),
        seconds=time.monotonic() - started,
    )


def _root_of(ranking: Ranking) -> Hashable:
    return ranking.root
