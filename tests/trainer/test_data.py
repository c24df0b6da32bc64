"""Rankings in tokens: EOS only where an answer ended, what is too long is named, padding and grouping lose nothing."""

from dataclasses import replace

import torch

from tests.trainer.tiny import EOS, make_tokenizer
from trainer.data import (
    chunk_by_length,
    encode_answer,
    encode_rankings,
    group_by_tokens,
    right_pad,
    spread_over_rankings,
    stack_places,
    stack_weights,
)
from trainer.preferences import Answer, Ranking

TOKENIZER = make_tokenizer()
END = TOKENIZER.convert_tokens_to_ids(EOS)


def make_ranking(*texts: str, places: tuple[int | None, ...] | None = None) -> Ranking:
    answers = tuple(Answer(f"c{number}", text) for number, text in enumerate(texts))
    places = places or tuple(range(len(texts)))
    return Ranking("r1", "p1", [{"role": "user", "content": "a b"}], answers, places)


def test_an_answer_ends_with_eos_unless_its_length_cut_it() -> None:
    words = [TOKENIZER.convert_tokens_to_ids(word) for word in "ab"]
    assert encode_answer(TOKENIZER, Answer("x", "a b", "stop")) == [*words, END]
    assert encode_answer(TOKENIZER, Answer("x", "a b", None)) == [*words, END]
    assert encode_answer(TOKENIZER, Answer("x", "a b", "length")) == words


def test_text_that_looks_like_eos_does_not_end_an_answer() -> None:
    assert encode_answer(TOKENIZER, Answer("x", f"a {EOS} b")).count(END) == 1


def test_an_over_long_row_is_named() -> None:
    tasks, refused = encode_rankings(
        [make_ranking("a", "b c d a b c d a"), make_ranking("a", "b")], TOKENIZER, max_length=10, ties="drop"
    )
    assert len(tasks) == 1
    # "User: a b" and "Assistant:" are 4 tokens, the answer has 8, EOS is one.
    reason = "The answer c1 has 13 tokens with its prompt, over the limit of 10 (max_length)."
    assert refused == [{"ranking_id": "r1", "prompt_id": "p1", "reason": reason}]


def test_a_ranking_that_is_one_tie_is_named_unless_ties_count() -> None:
    tie = make_ranking("a", "b", places=(0, 0))
    assert len(encode_rankings([tie], TOKENIZER, max_length=64, ties="drop")[1]) == 1
    assert len(encode_rankings([tie], TOKENIZER, max_length=64, ties="half")[0]) == 1


def test_the_favourite_is_what_most_rankings_prefer_and_a_missing_place_prefers_nothing() -> None:
    people = [make_ranking("a", "b", "c", places=places) for places in [(1, 0, 2), (1, 2, 0), (0, 1, None)]]
    together = [replace(ranking, ranking_id=f"r{number}") for number, ranking in enumerate(people)]
    (task,), _ = encode_rankings(together, TOKENIZER, max_length=64, ties="drop")
    assert task.favourite == 0


def test_right_padding_masks_by_length_and_not_by_token() -> None:
    tokens, mask = right_pad([[5, 0], [7, 8, 9]], pad_id=0)
    assert tokens.tolist() == [[5, 0, 0], [7, 8, 9]]
    assert mask.tolist() == [[True, True, False], [True, True, True]]


def test_chunks_hold_every_row_once_and_keep_to_their_limit() -> None:
    lengths = [3, 90, 5, 4, 40, 4]
    chunks = chunk_by_length(lengths, 16)
    assert sorted(index for chunk in chunks for index in chunk) == list(range(6))
    assert all(len(chunk) == 1 or max(lengths[i] for i in chunk) * len(chunk) <= 16 for chunk in chunks)


def test_groups_keep_tasks_whole_and_in_order() -> None:
    texts = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")]
    tasks, _ = encode_rankings([make_ranking(*pair) for pair in texts], TOKENIZER, max_length=64, ties="drop")
    groups = group_by_tokens(tasks, 2 * tasks[0].num_tokens(shares_prompt=True), shares_prompt=True)
    assert [len(group) for group in groups] == [2, 2, 1]
    assert [task for group in groups for task in group] == tasks


def test_a_shared_prompt_counts_once() -> None:
    (task,), _ = encode_rankings([make_ranking("a", "b c", "")], TOKENIZER, max_length=64, ties="drop")
    assert task.num_tokens(shares_prompt=False) == sum(len(row) for row in task.rows)
    assert task.num_tokens(shares_prompt=True) == len(task.prompt) + 2 + 3 + 1
    assert [task.prompt + answer for answer in task.answers] == task.rows


def test_weights_are_padded_with_zeros() -> None:
    rankings = [make_ranking("a", "b"), make_ranking("a", "b", "c")]
    tasks, _ = encode_rankings(rankings, TOKENIZER, max_length=64, ties="drop")
    weights = stack_weights(tasks)
    assert weights.shape == (2, 3, 3)
    assert torch.equal(weights[0], torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))


def test_rankings_of_the_same_answers_are_one_task() -> None:
    first = make_ranking("a", "b", "c", places=(0, 1, None))
    # The same answers in another order, one more of them placed; and the same texts under another id.
    second = replace(first, ranking_id="r2", answers=first.answers[::-1], places=(0, 1, 2))
    other = replace(first, ranking_id="r3", answers=(*first.answers[:2], Answer("c9", "c")))
    tasks, refused = encode_rankings([first, other, second], TOKENIZER, max_length=64, ties="drop")
    assert not refused
    assert [[ranking.ranking_id for ranking in task.rankings] for task in tasks] == [["r1", "r2"], ["r3"]]
    assert stack_places(tasks).tolist() == [[0, 1, -1], [2, 1, 0], [0, 1, -1]]
    assert tasks[0].weights[1] == [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    assert spread_over_rankings(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), tasks)[:, 0].tolist() == [1, 1, 4]


def test_a_ranking_that_teaches_nothing_does_not_take_its_task_along() -> None:
    tie = replace(make_ranking("a", "b", places=(0, 0)), ranking_id="tie")
    tasks, refused = encode_rankings([tie, make_ranking("a", "b")], TOKENIZER, max_length=64, ties="drop")
    assert [row["ranking_id"] for row in refused] == ["tie"]
    assert [len(task.rankings) for task in tasks] == [1]
