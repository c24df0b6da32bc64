"""What reward models say of held-out rankings, so that the app can compare them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainer.tiny import Recorder, save_tiny
from trainer.judging import judge, num_right
from trainer.preferences import Answer, to_rankings
from trainer.reporting import RunCancelled
from trainer.reward_model import RewardModel
from trainer.scorer import score
from trainer.weights import ModelSource, load_tokenizer

MESSAGES = [{"role": "user", "content": "a b"}]
TEXTS = ["c", "a a a", "d b c a", "b"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[ModelSource]:
    """A reward model, and the same with its scores turned round."""
    base = save_tiny(tmp_path_factory.mktemp("models") / "tiny")
    model = RewardModel.from_sft(ModelSource(base), None, seed=3)
    made = []
    for name in ("one", "other"):
        folder = tmp_path_factory.mktemp("models") / name
        model.save(folder)
        made.append(ModelSource(base, folder))
        with torch.no_grad():
            model.head.weight.neg_()
    return made


def row(number: int, order: list[list[int]], *, split: str = "validation", text: str = "") -> dict[str, Any]:
    return {
        "ranking_id": f"r{number}",
        "prompt_id": f"p{number}",
        "split": split,
        "messages": MESSAGES,
        "completions": [{"id": str(index), "text": text or words} for index, words in enumerate(TEXTS)],
        "order": [[str(index) for index in cell] for cell in order],
    }


def test_a_model_is_right_on_its_own_order_and_its_opposite_is_wrong(sources: list[ModelSource]) -> None:
    """Four answers in the order of the first model's scores: six pairs; two of them tied leave five."""
    asked = [(MESSAGES, Answer("", text, "stop")) for text in TEXTS]
    scores = score(RewardModel.load(sources[0]), load_tokenizer(sources[0]), asked)
    order = sorted(range(4), key=lambda index: -scores[index])
    rows = [row(1, [[index] for index in order]), row(2, [order[:2], order[2:3], order[3:]])]
    rows.append(row(3, [[0], [1], [2], [3]], split="train"))
    found = judge(rows, sources, report=Recorder())
    assert found["rankings"] == [
        {"ranking_id": "r1", "num_pairs": 6, "num_right": [6.0, 0.0]},
        {"ranking_id": "r2", "num_pairs": 5, "num_right": [5.0, 0.0]},
    ]
    assert found["refused"] == []


def test_equal_scores_are_half_right() -> None:
    (ranking,) = to_rankings([row(1, [[0], [1], [2, 3]])])
    assert num_right(ranking, [1.0, 1.0, 0.0, 9.0]) == 0.5 + 1 + 0 + 1 + 0


def test_what_cannot_be_read_whole_is_named(sources: list[ModelSource]) -> None:
    long = row(1, [[0], [1], [2], [3]])
    long["completions"][0]["text"] = "a " * 100
    found = judge([long], sources, report=Recorder())
    assert found["rankings"] == []
    assert [item["ranking_id"] for item in found["refused"]] == ["r1"]


def test_it_stops_when_it_is_told(sources: list[ModelSource]) -> None:
    with pytest.raises(RunCancelled):
        judge([row(1, [[0], [1], [2], [3]])], sources, report=Recorder(stop_at=0))
