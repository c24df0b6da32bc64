"""The formats in which a dataset leaves: for each its columns, how a row becomes records, and what it can't hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec
import orjson

from app.formats.hh import hh_pairs
from app.formats.oasst import trees
from app.formats.preferences import are_plain, demonstrations, groups, pair_lines, pairs, unpaired
from app.formats.rows import Options, RankedRow, RawRow, json_fragment
from app.formats.tables import answers, ranking_columns

Format = Literal["rankings", "pairs", "groups", "kto", "sft", "hh", "oasst", "answers"]
Kind = Literal["text", "texts", "messages", "turns", "int", "ints", "float", "bool", "json"]
Columns = dict[str, Kind]
FORMATS: tuple[Format, ...] = get_args(Format)
read_raw = msgspec.json.Decoder(RawRow).decode

# What can't be held, in sentences for a person; the pages translate them.
NO_MARKS = "Labels, ratings, rationales and display orders are not in it."
NO_WORDS = "Rationales, denied labels, confidence, strength and what was said of all answers are not in it."
NO_TIES = "Ties are left out."
NO_MISSING = "Answers that nobody placed are left out."
NO_PEOPLE = "Who ranked, and when, is not in it unless you ask for ids."
NO_PEOPLE_AT_ALL = "Who ranked, and when, is not in it."
PAIRS_ONLY = "Which pairs belong to one ranking can't be told unless you ask for ids."
MARKERS = "A turn whose text itself holds “Human:” or “Assistant:” after an empty line can't be told from two turns."
LONG_PROMPTS = "A prompt of several turns is one text, with “Human:” and “Assistant:” before the turns."
HALVES = "Only which half of its ranking an answer stands in is kept; an answer in the middle is left out."
BEST_ONLY = "Only the best answer of each ranking is in it; a ranking in which all are tied is left out."
NO_VERSIONS = "Which model wrote an answer is not in it."
NO_SYSTEM = "A system prompt stands in a field of its own, which other readers of the format pass over."


@dataclass(frozen=True)
class ExportFormat:
    """One way to say a ranking."""

    name: Format
    title: str
    columns: Callable[[Options], Columns]
    records: Callable[[RankedRow], Iterable[Mapping[str, Any]]]
    loses: Callable[[Options], list[str]]


def turns_or_text(options: Options) -> Kind:
    """How a prompt or an answer is written."""
    return "messages" if options.style == "conversational" else "text"


def names(options: Options) -> Columns:
    """The columns of `ids`."""
    keys = ("ranking_id", "prompt_id", "split", "language", "annotator") if options.ids else ()
    return dict.fromkeys(keys, "text")


def pair_columns(options: Options) -> Columns:
    """Those of pairs."""
    kind = turns_or_text(options)
    columns: Columns = {"prompt": kind, "chosen": kind, "rejected": kind}
    if options.margin != "none":
        columns["margin"] = "float"
    if options.ties == "keep":
        columns["tie"] = "bool"
    return columns | names(options) | ({"weight": "float"} if options.ids else {})


def group_columns(options: Options) -> Columns:
    """Those of groups."""
    kind: Kind = "turns" if options.style == "conversational" else "texts"
    return {"prompt": turns_or_text(options), "completions": kind, "ranks": "ints"} | names(options)


def kto_columns(options: Options) -> Columns:
    """Those of unpaired answers."""
    kind = turns_or_text(options)
    columns: Columns = {"prompt": kind, "completion": kind, "label": "bool"}
    return columns | names(options)


def sft_columns(options: Options) -> Columns:
    """Those of demonstrations."""
    columns: Columns = {"messages": "messages"}
    return columns | names(options)


def ranking_kinds(_: Options) -> Columns:
    """Those of rankings."""
    return {
        "ranking_id": "text",
        "prompt_id": "text",
        "split": "text",
        "language": "text",
        "messages": "messages",
        "completions": "json",
        "order": "json",
        "annotator": "text",
        "labels": "json",
        "ratings": "json",
        "denied": "json",
        "rationale": "text",
        "confidence": "int",
        "all_bad": "bool",
        "strength": "int",
        "display_order": "texts",
        "created_at": "text",
        "more": "json",
    }


def answer_columns(_: Options) -> Columns:
    """Those of the table of answers."""
    names = ("ranking_id", "prompt_id", "split", "language", "annotator", "created_at", "prompt", "completion_id")
    texts: Columns = dict.fromkeys(names, "text")
    numbers: Columns = dict.fromkeys(("shown", "place", "rating"), "int")
    return texts | {"version_id": "text", "finish_reason": "text"} | numbers | {"labels": "texts", "text": "text"}


def tree_columns(_: Options) -> Columns:
    """Those of trees."""
    return {"message_tree_id": "text", "tree_state": "text", "prompt": "json", "system": "text"}


def style_loses(options: Options) -> list[str]:
    """What plain text loses."""
    return [LONG_PROMPTS, MARKERS] if options.style == "standard" else []


def people_loses(options: Options) -> list[str]:
    """What is lost without ids."""
    return [] if options.ids else [NO_PEOPLE]


def pairs_lose(options: Options) -> list[str]:
    """What pairs lose."""
    ties = [NO_TIES] if options.ties == "drop" else []
    grouping = [] if options.ids else [PAIRS_ONLY]
    return [*ties, NO_MISSING, NO_MARKS, NO_VERSIONS, *grouping, *people_loses(options), *style_loses(options)]


def others_lose(*sentences: str) -> Callable[[Options], list[str]]:
    """What other forms for trainers lose."""
    return lambda options: [*sentences, NO_MARKS, NO_VERSIONS, *people_loses(options), *style_loses(options)]


def hh_loses(options: Options) -> list[str]:
    """What transcripts lose."""
    ties = [] if options.ties == "both" else [NO_TIES]
    return [*ties, NO_MISSING, NO_MARKS, NO_VERSIONS, NO_PEOPLE_AT_ALL, MARKERS]


def trees_lose(_: Options) -> list[str]:
    """What trees lose."""
    return [NO_MARKS, NO_VERSIONS, NO_PEOPLE_AT_ALL, NO_SYSTEM]


def hh_columns(_: Options) -> Columns:
    """Those of transcripts."""
    return {"chosen": "text", "rejected": "text"}


def whole(ranking: RankedRow) -> Iterator[Mapping[str, Any]]:
    """A ranking as it is."""
    yield ranking_columns(ranking.row)


def nothing(_: Options) -> list[str]:
    """It holds all."""
    return []


def table_loses(_: Options) -> list[str]:
    """What the table of answers loses."""
    return [NO_WORDS, LONG_PROMPTS, MARKERS]


EXPORTS: dict[Format, ExportFormat] = {
    "rankings": ExportFormat("rankings", "Rankings", ranking_kinds, whole, nothing),
    "pairs": ExportFormat("pairs", "Pairs (TRL, DPO, reward models)", pair_columns, pairs, pairs_lose),
    "groups": ExportFormat("groups", "Groups of K answers with ranks", group_columns, groups, others_lose()),
    "kto": ExportFormat("kto", "Good and bad answers (KTO)", kto_columns, unpaired, others_lose(HALVES, NO_MISSING)),
    "sft": ExportFormat("sft", "Best answers (SFT)", sft_columns, demonstrations, others_lose(BEST_ONLY)),
    "hh": ExportFormat("hh", "Transcripts (Anthropic HH)", hh_columns, hh_pairs, hh_loses),
    "oasst": ExportFormat("oasst", "Trees (Open-Assistant)", tree_columns, trees, trees_lose),
    "answers": ExportFormat("answers", "A table of all answers", answer_columns, answers, table_loses),
}


def to_json_lines(form: ExportFormat, lines: Iterable[bytes], options: Options, split: str = "all") -> bytes:
    """Lines of a dataset as JSON lines of this format; what many records share is encoded once."""
    if form.name == "rankings":
        return b"".join(line + b"\n" for line in lines if is_of(split, line))
    if form.name == "pairs" and are_plain(options):
        rows = (read_raw(line) for line in lines)
        return b"".join(pair for row in rows if split in ("all", row.split) for pair in pair_lines(row, options))
    records = to_records(form, lines, options, split, encode=json_fragment)
    return b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)


def to_records(
    form: ExportFormat,
    lines: Iterable[bytes],
    options: Options,
    split: str = "all",
    *,
    encode: Callable[[Any], Any] = lambda value: value,
) -> Iterator[Mapping[str, Any]]:
    """Lines of a dataset as records, whose prompts and answers are encoded."""
    for line in lines:
        row = orjson.loads(line)
        if split in ("all", row["split"]):
            yield from form.records(RankedRow(row, options, encode))


def is_of(split: str, line: bytes) -> bool:
    """Whether a line stands in this split."""
    return split == "all" or read_raw(line).split == split
