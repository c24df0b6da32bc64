"""The formats that can come in: how each is told from its first record, and how its records become our lines."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from app.formats import chats, hh, oasst, preferences, tools
from app.formats.items import Item, Record

Kind = Literal["prompts", "completions", "rankings", "corpus"]
Recognise = Callable[[Record], bool]
# Fields that say where a record is from; `about` reads them, or they say nothing that we keep.
ALWAYS_READ = frozenset({"id", "lang", "language", "source"})


@dataclass(frozen=True)
class ImportFormat:
    """One way in which others write records."""

    name: str
    title: str
    is_one: Recognise
    items: Callable[[Record], Iterator[Item]]
    reads: frozenset[str]
    """The fields that are read; others are counted in the report."""


def has(*names: str) -> Recognise:
    """Records with all these fields."""
    return lambda record: all(name in record for name in names)


def has_list(name: str) -> Recognise:
    """Records with an array in this field."""
    return lambda record: isinstance(record.get(name), list)


def is_tree(record: Record) -> bool:
    """Open-Assistant's: the prompt is a message with replies."""
    return isinstance(record.get("prompt"), dict) and "text" in record["prompt"]


def is_hh(record: Record) -> bool:
    """Anthropic's: two transcripts and no prompt."""
    both = (record.get("chosen"), record.get("rejected"))
    return "prompt" not in record and all(isinstance(text, str) and "\n\nHuman:" in text for text in both)


def is_moss(record: Record) -> bool:
    """MOSS's `chat` of numbered turns, or `plain_text` with its marks."""
    return isinstance(record.get("chat"), dict) or "<eo" in str(record.get("plain_text", ""))


def is_conversation(record: Record) -> bool:
    """Messages that end with an answer; ours end with a question."""
    turns = record.get("messages")
    return (
        isinstance(turns, list) and bool(turns) and isinstance(turns[-1], dict) and turns[-1].get("role") not in ASKING
    )


ASKING = ("user", "human", "prompter", None)


def is_chatglm(record: Record) -> bool:
    """A prompt and its `response`."""
    return isinstance(record.get("prompt"), str) and "response" in record


def is_checkable(record: Record) -> bool:
    """GSM8K's question and answer."""
    return isinstance(record.get("question"), str) and isinstance(record.get("answer"), str)


def entry(
    name: str, title: str, is_one: Recognise, items: Callable[[Record], Iterator[Item]], *reads: str
) -> ImportFormat:
    """A line of the list below."""
    return ImportFormat(name, title, is_one, items, ALWAYS_READ | frozenset(reads))


# In this order: the first that knows a record reads the file.
IMPORTS: dict[str, ImportFormat] = {
    one.name: one
    for one in (
        entry(
            "oasst",
            "Open-Assistant trees",
            is_tree,
            oasst.from_tree,
            "prompt",
            "system",
            "message_tree_id",
            "tree_state",
        ),
        entry(
            "label-studio",
            "Label Studio (Ranker, Pairwise)",
            has("data", "annotations"),
            tools.label_studio,
            "data",
            "annotations",
        ),
        entry("argilla", "Argilla records", has("fields", "responses"), tools.argilla, "fields", "responses", "status"),
        entry(
            "moss",
            "MOSS",
            is_moss,
            chats.moss,
            "chat",
            "plain_text",
            "meta_instruction",
            "prefix",
            "num_turns",
            "conversation_id",
        ),
        entry(
            "sharegpt",
            "ShareGPT",
            has_list("conversations"),
            chats.sharegpt,
            "conversations",
            "system",
            "chosen",
            "rejected",
        ),
        entry(
            "openai-preference",
            "OpenAI preferences",
            has("input", "preferred_output"),
            chats.openai_preference,
            "input",
            "preferred_output",
            "non_preferred_output",
        ),
        entry("hh", "Transcripts (Anthropic HH)", is_hh, hh.from_hh, "chosen", "rejected"),
        entry(
            "pairs",
            "Pairs (TRL, DPO, reward models)",
            has("chosen", "rejected"),
            preferences.from_pairs,
            "prompt",
            "chosen",
            "rejected",
            "tie",
            "annotator",
        ),
        entry(
            "groups",
            "Groups of K answers with ranks",
            has("completions", "ranks"),
            preferences.from_groups,
            "prompt",
            "completions",
            "ranks",
            "annotator",
        ),
        entry(
            "alpaca", "Alpaca", has("instruction"), chats.alpaca, "instruction", "input", "output", "history", "system"
        ),
        entry("chatglm", "ChatGLM", is_chatglm, chats.chatglm, "prompt", "response", "history", "system"),
        entry(
            "gsm8k", "Questions whose answer ends with #### number", is_checkable, chats.checkable, "question", "answer"
        ),
        entry("messages", "Messages (OpenAI)", is_conversation, chats.messages, "messages"),
        entry(
            "completion",
            "Prompts with one completion",
            has("prompt", "completion"),
            preferences.from_completion,
            "prompt",
            "completion",
        ),
    )
}
OWN = "rankloop"
"""Our own lines, which are read as they are."""
TEXT = "text"
"""Plain text: a prompt a line, or a text of a corpus between empty lines."""
ROUNDS = "chatglm-rounds"
"""ChatGLM's conversations as plain text."""
TITLES = {
    OWN: "Our own lines",
    TEXT: "Plain text",
    ROUNDS: "ChatGLM’s [Round n] text",
    **{name: one.title for name, one in IMPORTS.items()},
}


def recognise(record: Record) -> str:
    """The format of a file by its first record."""
    if "order" in record and "completions" in record:
        return OWN
    return next((name for name, one in IMPORTS.items() if one.is_one(record)), OWN)


def unread_of(name: str, record: Record) -> list[str]:
    """The fields that say something and are not read."""
    one = IMPORTS.get(name)
    return (
        []
        if one is None
        else [key for key, value in record.items() if key not in one.reads and value not in (None, "", [], {})]
    )


def lines_of(name: str, record: Record, kind: Kind) -> Iterator[dict[str, Any] | None]:
    """The lines that an import of this kind takes; None for what holds nothing of the kind.

    Raises:
        Misfit: the record is not what its format says.
    """
    one = IMPORTS.get(name)
    if one is None:
        yield own_line(dict(record), kind)
        return
    for item in one.items(record):
        yield as_line(item, kind)


def own_line(line: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """Our own line; where it holds a prompt with its `answer`, as the import has it."""
    if isinstance(line.get("answer"), str):
        asked = line.get("messages") or [{"role": "user", "content": line.get("prompt")}]
        if kind == "corpus":
            rest = {key: value for key, value in line.items() if key not in {"prompt", "messages", "answer", "lang"}}
            return rest | {"messages": [*asked, {"role": "assistant", "content": line["answer"]}]}
        if kind == "completions" and not line.get("responses") and not line.get("completions"):
            return line | {"completions": [{"text": line["answer"]}], "answer": None}
    return line


def as_line(item: Item, kind: Kind) -> dict[str, Any] | None:
    """An item as a line of one kind."""
    if kind == "rankings":
        return item if item.get("annotations") else None
    if kind == "corpus":
        if "answer" not in item:
            return None
        return {"messages": [*item["messages"], {"role": "assistant", "content": item["answer"]}]}
    line = {key: value for key, value in item.items() if key not in {"annotations", "answer", "responses"}}
    if kind == "prompts":
        return line if item.get("messages") else None
    answers = item.get("responses") or ([{"text": item["answer"]}] if "answer" in item else [])
    return line | {"completions": answers} if answers else None


# Cells of tables, which are text


STRUCTURED = {
    "messages", "completions", "order", "labels", "ratings", "denied", "display_order", "more", "ranks",
    "conversations", "history", "responses", "annotations", "aggregate", "meta", "fields", "data", "chat", "input",
    "preferred_output", "non_preferred_output",
}  # fmt: skip
MAYBE_MESSAGES = {"prompt", "chosen", "rejected", "completion"}
FLAGS = {"tie", "all_bad", "label", "gold"}
NUMBERS = {"confidence", "strength", "margin", "weight"}
KEPT_WHEN_EMPTY = {"chosen", "rejected", "completion", "output", "answer", "text", "response"}


def from_cells(row: Record) -> dict[str, Any]:
    """A row of a table as a record: cells of JSON are read, empty ones left out, `more` is spread out."""
    record: dict[str, Any] = {}
    for name, value in row.items():
        if value is None or (value == "" and name not in KEPT_WHEN_EMPTY):
            continue
        record[name] = from_cell(name, value) if isinstance(value, str) else value
    more = record.pop("more", None)
    return {**record, **more} if isinstance(more, dict) else record


def from_cell(name: str, text: str) -> Any:
    """What a cell holds."""
    if name in FLAGS and text.lower() in {"true", "false"}:
        return text.lower() == "true"
    if name in NUMBERS or (name in STRUCTURED and text[:1] in "[{"):
        return json_or(text, lambda value: True)
    if name in MAYBE_MESSAGES and text.startswith(('[{"role"', '[{"content"')):
        return json_or(text, lambda value: isinstance(value, list))
    return text


def json_or(text: str, fits: Callable[[Any], bool]) -> Any:
    """The value that a text is in JSON, if it fits; else the text."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return value if fits(value) else text


KNOWN_COLUMNS = (
    STRUCTURED | MAYBE_MESSAGES | {"instruction", "question", "text", "ranking_id", "response", "answer", "plain_text"}
)


def table_delimiter(header: str) -> str | None:
    """The delimiter of a table by its first line; None where it is no header that we know."""
    for delimiter in ",;\t":
        names = next(csv.reader([header], delimiter=delimiter), [])
        if len(names) > 1 and set(names) & KNOWN_COLUMNS:
            return delimiter
    return "," if header.strip() in KNOWN_COLUMNS else None
