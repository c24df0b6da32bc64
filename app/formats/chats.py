"""Conversations and instructions as others write them, read as items.

Alpaca https://github.com/tatsu-lab/stanford_alpaca · ShareGPT and `history` as in LLaMA-Factory's data/README.md ·
OpenAI https://platform.openai.com/docs/guides/fine-tuning · MOSS https://github.com/OpenMOSS/MOSS · ChatGLM's
`[Round n]` https://github.com/THUDM/ChatGLM2-6B · GSM8K https://github.com/openai/grade-school-math
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from app.formats.items import Item, Misfit, Record, Turn, about, conversation, list_of, text_of, turn, turns_of

MOSS_MARK = re.compile(r"^\s*(<\|?\w+\|?>|\[\w+\])\s*:\s?|\s*<eo[a-z]>\s*$")
MOSS_TURN = re.compile(r"\[(Human|MOSS)\]:\s?(.*?)<eo[a-z]>", re.DOTALL)
ROUND = re.compile(r"\[Round (\d+)\]\s*\n")
ROUND_PARTS = re.compile(r"\s*问：(?P<question>.*?)(?:\n+答：(?P<answer>.*))?\s*\Z", re.DOTALL)


def messages(record: Record) -> Iterator[Item]:
    """OpenAI's messages."""
    yield about(record, conversation(turns_of(list_of(record, "messages"))))


def openai_preference(record: Record) -> Iterator[Item]:
    """OpenAI's preference fine-tuning: `input.messages`, `preferred_output`, `non_preferred_output`."""
    asked = record.get("input")
    if not isinstance(asked, dict):
        raise Misfit("needs `input`, an object with `messages`")
    better, worse = (turns_of(list_of(record, name)) for name in ("preferred_output", "non_preferred_output"))
    if not better or not worse:
        raise Misfit("needs an answer in `preferred_output` and in `non_preferred_output`")
    answers = [{"id": "preferred", "text": better[-1]["content"]}, {"id": "other", "text": worse[-1]["content"]}]
    ranks = {"annotator": "openai", "ranks": {"preferred": 1, "other": 2}}
    yield {"messages": turns_of(list_of(asked, "messages")), "responses": answers, "annotations": [ranks]}


def sharegpt(record: Record) -> Iterator[Item]:
    """ShareGPT's conversations; with `chosen` and `rejected`, two answers to one."""
    turns = turns_of(list_of(record, "conversations"), "from", "value")
    system = record.get("system")
    if isinstance(system, str) and system:
        turns.insert(0, {"role": "system", "content": system})
    if "chosen" not in record:
        yield about(record, conversation(turns))
        return
    answers = [turns_of([record.get(name)], "from", "value")[0]["content"] for name in ("chosen", "rejected")]
    responses = [{"id": name, "text": text} for name, text in zip(("chosen", "rejected"), answers, strict=True)]
    ranks = {"annotator": "sharegpt", "ranks": {"chosen": 1, "rejected": 2}}
    yield about(record, {"messages": turns, "responses": responses, "annotations": [ranks]})


def alpaca(record: Record) -> Iterator[Item]:
    """Alpaca's `instruction`, `input`, `output`; with the `history` and `system` that LLaMA-Factory adds."""
    more = record.get("input")
    asked = text_of(record, "instruction") + (f"\n{more}" if isinstance(more, str) and more.strip() else "")
    turns = [*system_turn(record), *history(record), {"role": "user", "content": asked}]
    answer = {"answer": text_of(record, "output")} if record.get("output") is not None else {}
    yield about(record, {"messages": turns, **answer})


def chatglm(record: Record) -> Iterator[Item]:
    """ChatGLM's `prompt`, `response` and `history`; or rounds of it in one text."""
    asked = text_of(record, "prompt")
    if ROUND.match(asked.lstrip()):
        (item,) = rounds(asked)
        yield item | ({"answer": text_of(record, "response")} if record.get("response") is not None else {})
        return
    turns = [*system_turn(record), *history(record), {"role": "user", "content": asked}]
    yield about(record, {"messages": turns, "answer": text_of(record, "response")})


def system_turn(record: Record) -> list[Turn]:
    """The system prompt, if there is one."""
    system = record.get("system")
    return [{"role": "system", "content": system}] if isinstance(system, str) and system else []


def history(record: Record) -> Iterator[Turn]:
    """The turns before: pairs of question and answer."""
    for pair in record.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Misfit("`history` must hold pairs [question, answer]")
        yield turn("user", pair[0])
        yield turn("assistant", pair[1])


def moss(record: Record) -> Iterator[Item]:
    """MOSS's `chat` of turns, or its `plain_text`. Inner thoughts and tools are not read."""
    if isinstance(record.get("chat"), dict):
        chat = record["chat"]
        names = sorted(chat, key=lambda name: int(re.sub(r"\D", "", name) or 0))
        pairs = [(chat[name].get("Human"), chat[name].get("MOSS")) for name in names if isinstance(chat[name], dict)]
        turns = [
            turn(role, MOSS_MARK.sub("", MOSS_MARK.sub("", str(words))))
            for pair in pairs
            for role, words in zip(("user", "assistant"), pair, strict=True)
            if words
        ]
    else:
        found = MOSS_TURN.findall(text_of(record, "plain_text"))
        turns = [turn("user" if who == "Human" else "assistant", words.strip()) for who, words in found]
    if not turns:
        raise Misfit("holds no turn")
    system = record.get("meta_instruction") or record.get("prefix")
    start = [{"role": "system", "content": system.strip()}] if isinstance(system, str) and system.strip() else []
    yield about(record, conversation(start + turns))


def rounds(text: str) -> Iterator[Item]:
    """ChatGLM's `[Round n]` text. A number that does not grow begins another conversation."""
    _, *parts = ROUND.split(text)
    numbered = list(zip(map(int, parts[::2]), parts[1::2], strict=True))
    starts = 0
    marked = []
    for position, (number, words) in enumerate(numbered):
        starts += position == 0 or number <= numbered[position - 1][0]
        marked.append((starts, words))
    for _, group in groupby(marked, key=lambda pair: pair[0]):
        yield conversation([one for _, words in group for one in round_turns(words)])


def round_turns(words: str) -> Iterator[Turn]:
    """Question and answer of one round."""
    found = ROUND_PARTS.match(words)
    if found is None:
        raise Misfit("a round must hold 问： and 答：")
    yield {"role": "user", "content": found["question"].strip()}
    if found["answer"] and found["answer"].strip():
        yield {"role": "assistant", "content": found["answer"].strip()}


def checkable(record: Record) -> Iterator[Item]:
    """GSM8K: a question whose answer ends with `#### number`, which a program can check."""
    answer = text_of(record, "answer")
    asked = [{"role": "user", "content": text_of(record, "question")}]
    reasons, mark, value = answer.rpartition("####")
    check = {"meta": {"check": {"kind": "numeric", "value": value.strip().replace(",", "")}}} if mark else {}
    yield about(record, {"messages": asked, "answer": reasons.strip() if mark and reasons.strip() else answer, **check})
