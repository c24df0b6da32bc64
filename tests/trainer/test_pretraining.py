"""Text for PPO-ptx: what is learned of it, what is cut, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.tiny import make_tokenizer
from trainer.pretraining import Passage, encode_texts, hash_passages, passage_batches, read_texts

TOKENIZER = make_tokenizer()
EOS, A, B, C, D, USER, ASSISTANT = 1, 3, 4, 5, 6, 7, 8


def test_a_text_is_learned_from_its_second_token_to_its_end() -> None:
    assert encode_texts([{"text": "a b c"}], TOKENIZER, max_tokens=8) == ([Passage([A, B, C, EOS], 1)], [])


def test_a_long_text_is_cut_and_nothing_of_two_tokens_is_lost() -> None:
    passages, refused = encode_texts([{"text": "a b c d a b"}], TOKENIZER, max_tokens=3)
    # Seven tokens with the EOS: the last piece would be one token, which has nothing before it.
    assert [passage.tokens for passage in passages] == [[A, B, C], [D, A, B]]
    assert refused == []


def test_of_a_conversation_only_what_the_assistant_says_is_learned() -> None:
    turns = [("user", "a"), ("assistant", "b c"), ("user", "d"), ("assistant", "a")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    passages, _ = encode_texts([row], TOKENIZER, max_tokens=64)
    assert [passage.tokens[passage.num_given :] for passage in passages] == [[B, C, EOS], [A, EOS]]
    assert passages[0].tokens[: passages[0].num_given] == [USER, A, ASSISTANT]
    assert passages[1].tokens[: passages[1].num_given] == [USER, A, ASSISTANT, B, C, USER, D, ASSISTANT]
    assert [passage.num_learned for passage in passages] == [3, 2]


def test_what_cannot_be_learned_is_named() -> None:
    long = {"messages": [{"role": "user", "content": "a " * 9}, {"role": "assistant", "content": "b"}]}
    passages, refused = encode_texts([{"text": "a b"}, long, {"text": ""}], TOKENIZER, max_tokens=8)
    assert len(passages) == 1
    assert refused == [
        "Text 2 has 13 tokens in one conversation, over the limit of 8.",
        "Text 3 holds nothing to learn.",
    ]


@pytest.mark.parametrize(
    "row", [{}, {"text": 3}, {"messages": [{"role": "user", "content": "a"}]}, {"messages": 3}, {"messages": ["a"]}, []]
)
def test_a_row_of_another_shape_is_refused_by_its_number(row: Any) -> None:
    with pytest.raises(ValueError, match="Text 2 needs `text`, or `messages`"):
        encode_texts([{"text": "a b"}, row], TOKENIZER, max_tokens=8)


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "a"}) + "\n\n{\n")
    with pytest.raises(ValueError, match=r"texts.jsonl, line 3: not valid JSON"):
        read_texts(path)
    path.write_text(json.dumps({"text": "a"}) + "\n\n")
    assert read_texts(path) == [{"text": "a"}]


def test_batches_mark_what_is_learned_and_keep_to_the_limit() -> None:
    passages = [Passage([A, B, C, EOS], 2), Passage([C, EOS], 1), Passage([A, B, EOS], 1)]
    first, second = passage_batches(passages, tokens_per_forward=6, pad_id=0, device=torch.device("cpu"))
    assert first.tokens_BL.tolist() == [[C, EOS, 0], [A, B, EOS]]
    assert first.attention_BL.int().tolist() == [[1, 1, 0], [1, 1, 1]]
    assert first.learned_BT.int().tolist() == [[1, 0], [1, 1]]
    assert second.learned_BT.int().tolist() == [[0, 1, 1]]


def test_other_texts_have_another_hash() -> None:
    assert hash_passages([Passage([A, B], 1)]) != hash_passages([Passage([A, C], 1)])
