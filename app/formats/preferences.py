"""Preferences as trainers read them: pairs, groups, unpaired answers, demonstrations, written and read.

The columns are TRL's: https://huggingface.co/docs/trl/dataset_formats
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from app.formats import items
from app.formats.items import Item, Misfit, Turn, about, ranked, turns_of
from app.formats.rows import Options, RankedRow, RawRow, as_text, better_pairs
from app.formats.transcripts import is_transcript, read_transcript

Record = dict[str, Any]


def pairs(ranking: RankedRow) -> Iterator[Record]:
    """`prompt`, `chosen`, `rejected`: what DPOTrainer and RewardTrainer take."""
    found = [*better_records(ranking), *tied_records(ranking)]
    if ranking.options.ids:
        more = ranking.names() | {"weight": 1 / len(found) if found else 0.0}
        found = [record | more for record in found]
    yield from found


def better_records(ranking: RankedRow) -> Iterator[Record]:
    """The pairs in which one is better."""
    keeps_ties, has_margin = ranking.options.ties == "keep", ranking.options.margin != "none"
    for better, worse, distance in ranking.better_pairs():
        record = pair(ranking, better, worse)
        if has_margin:
            record["margin"] = ranking.margin(better, worse, distance)
        if keeps_ties:
            record["tie"] = False
        yield record


def tied_records(ranking: RankedRow) -> Iterator[Record]:
    """The ties as asked for. In both directions, a loss on the difference draws the two together."""
    if ranking.options.ties == "drop":
        return
    more: Record = {} if ranking.options.margin == "none" else {"margin": 0.0}
    for one, other in ranking.tied_pairs():
        if ranking.options.ties == "keep":
            yield pair(ranking, one, other) | more | {"tie": True}
        else:
            yield pair(ranking, one, other) | more
            yield pair(ranking, other, one) | more


def pair(ranking: RankedRow, better: str, worse: str) -> Record:
    """One comparison."""
    return {"prompt": ranking.prompt, "chosen": ranking.answers[better], "rejected": ranking.answers[worse]}


def pair_lines(row: RawRow, options: Options) -> Iterator[bytes]:
    """The JSON lines of `pairs` where nothing but the pair was asked for, put together from parts of the row's line.

    Most downloads are these, and each answer stands in several of them: six times as fast, to the same bytes.
    """
    if options.style == "conversational":
        prompt, answer = bytes(row.messages), b'[{"role":"assistant","content":%b}]'
    else:
        prompt, answer = orjson.dumps(as_text(orjson.loads(bytes(row.messages)))), b"%b"
    answers = {one.id: answer % bytes(one.text) for one in row.completions}
    for better, worse, _ in better_pairs(row.order, options.pairs):
        yield b'{"prompt":%b,"chosen":%b,"rejected":%b}\n' % (prompt, answers[better], answers[worse])


def are_plain(options: Options) -> bool:
    """Whether pairs hold nothing but the prompt and the two answers, and no ties."""
    return options.ties == "drop" and options.margin == "none" and not options.ids


def groups(ranking: RankedRow) -> Iterator[Record]:
    """`prompt`, `completions` and their `ranks`: 1 is best, the same rank is a tie, null is an answer nobody placed."""
    ranks = {key: rank for rank, cell in enumerate(ranking.order, start=1) for key in cell}
    record = {
        "prompt": ranking.prompt,
        "completions": list(ranking.answers.values()),
        "ranks": [ranks.get(key) for key in ranking.answers],
    }
    yield record | ranking.names() if ranking.options.ids else record


def unpaired(ranking: RankedRow) -> Iterator[Record]:
    """`prompt`, `completion`, `label`: what KTOTrainer takes. True: better than more answers than it is worse than.

    An answer in the middle is neither, and is left out.
    """
    num_above, num_placed = 0, sum(map(len, ranking.order))
    for cell in ranking.order:
        num_below = num_placed - num_above - len(cell)
        for key in cell if num_above != num_below else ():
            record = {"prompt": ranking.prompt, "completion": ranking.answers[key], "label": num_below > num_above}
            yield record | ranking.names() if ranking.options.ids else record
        num_above += len(cell)


def demonstrations(ranking: RankedRow) -> Iterator[Record]:
    """`messages` that end with the best answer; one for each of several. All tied: nobody said that any is good."""
    if len(ranking.order) < 2:
        return
    for key in ranking.order[0]:
        record = {
            "messages": [*ranking.row["messages"], {"role": "assistant", "content": ranking.texts[key]}],
        }
        yield record | ranking.names() if ranking.options.ids else record


# Reading


def from_pairs(record: items.Record) -> Iterator[Item]:
    """Two answers of which one is better, or which are tied (`tie`)."""
    (before, better), (_, worse) = (said(record, name) for name in ("chosen", "rejected"))
    ranks = {"chosen": 1, "rejected": 1 if record.get("tie") is True else 2}
    asked = asked_in(record, before)
    yield about(
        record, ranked(asked, [("chosen", better), ("rejected", worse)], ranks, record.get("annotator", "pairs"))
    )


def from_groups(record: items.Record) -> Iterator[Item]:
    """K answers with their ranks; null is an answer that nobody placed."""
    answers = [answer_text(value) for value in items.list_of(record, "completions")]
    ranks = items.list_of(record, "ranks")
    if len(ranks) != len(answers) or not all(isinstance(rank, int | None) for rank in ranks):
        raise Misfit("`ranks` must hold a whole number or null for each of `completions`")
    named = {str(number): text for number, text in enumerate(answers)}
    placed = {key: rank for key, rank in zip(named, ranks, strict=True) if rank is not None}
    annotator = record.get("annotator", "groups")
    yield about(record, ranked(asked_in(record, []), list(named.items()), placed, annotator))


def from_completion(record: items.Record) -> Iterator[Item]:
    """A prompt with one answer: TRL's prompt-completion, or KTO's, whose label is not read."""
    yield about(record, {"messages": asked_in(record, []), "answer": answer_text(record.get("completion"))})


def asked_in(record: items.Record, before: list[Turn]) -> list[Turn]:
    """The prompt: its own field, or what stands before the last turn of the answers."""
    prompt = record.get("prompt")
    if isinstance(prompt, list):
        return turns_of(prompt)
    if before or prompt is None:
        return before
    if is_transcript(prompt):
        return read_transcript(prompt)[:-1]
    return [{"role": "user", "content": items.text_of(record, "prompt")}]


def said(record: items.Record, name: str) -> tuple[list[Turn], str]:
    """What stands before an answer in its field, and the answer."""
    value = record.get(name)
    if isinstance(value, list):
        turns = turns_of(value)
        if not turns or turns[-1]["role"] != "assistant":
            raise Misfit(f"`{name}` must end with the assistant's turn")
        return turns[:-1], turns[-1]["content"]
    return [], answer_text(value)


def answer_text(value: Any) -> str:
    """An answer, as text or as a conversation of one turn."""
    if isinstance(value, list) and len(value) == 1:
        return turns_of(value)[0]["content"]
    if not isinstance(value, str):
        raise Misfit("an answer must be a string, or an array of one message")
    return value
