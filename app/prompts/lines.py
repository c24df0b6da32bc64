"""What comes in from outside, checked: the lines of files, the answers of workers, and the report on an import."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from app.prompts.models import PromptKind
from app.validation import LANGUAGE

MAX_CHARACTERS = 100_000
MAX_META_DEPTH = 20
MAX_REFUSALS_SHOWN = 100
# Pydantic's kind of error -> our words, which say what to do.
RULES = {
    "extra_forbidden": "is not a known field; extras belong into `meta`",
    "missing": "is required",
    "string_type": "must be a string",
    "dict_type": "must be an object",
    "list_type": "must be an array",
}


def refuse(rule: str) -> PydanticCustomError:
    """A refusal whose message is the rule itself, without pydantic's own words before it."""
    return PydanticCustomError("rule", "{rule}", {"rule": rule})


def storable(value: str) -> str:
    """Text that PostgreSQL can keep."""
    if "\0" in value:
        raise refuse("holds a NUL byte, which can't be stored; remove it")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise refuse("holds a lone surrogate (half of a UTF-16 pair), which is no character; remove it")
    return value


def not_too_long(value: str) -> str:
    """Text of a length that people can still read."""
    if len(value) > MAX_CHARACTERS:
        raise refuse(f"has {len(value):,} characters; at most {MAX_CHARACTERS:,} are taken")
    return value


def not_blank(value: str) -> str:
    """Text with something in it."""
    if not value.strip():
        raise refuse("must not be empty")
    return value


def storable_json(value: dict[str, Any]) -> dict[str, Any]:
    """An object whose strings PostgreSQL can keep."""
    for text in strings_of(value):
        storable(text)
    return value


def strings_of(value: Any, depth: int = 0) -> Iterator[str]:
    """All keys and strings of a JSON value."""
    if depth > MAX_META_DEPTH:
        raise refuse(f"is nested deeper than {MAX_META_DEPTH} levels")
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_of(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from strings_of(item, depth + 1)


AnswerText = Annotated[str, AfterValidator(storable), AfterValidator(not_too_long)]
Content = Annotated[AnswerText, AfterValidator(not_blank)]
Label = Annotated[str, AfterValidator(storable), Field(max_length=200)]
Language = Annotated[str, Field(pattern=LANGUAGE, max_length=35)]
Meta = Annotated[dict[str, Any], AfterValidator(storable_json)]
# The order on this line is known to be right; `qualification`: and it is asked before real work only.
Gold = Literal[True, False, "qualification"] | None


class Strict(BaseModel):
    """An object without unknown fields."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Content


def check_messages(messages: list[Message]) -> list[Message]:
    """Ends with a user turn; a system prompt, if any, comes first; of a length that can be read."""
    if not messages or messages[-1].role != "user":
        raise refuse("must end with a user turn")
    if any(turn.role == "system" for turn in messages[1:]):
        raise refuse("may have a system turn at the beginning only")
    total = sum(len(turn.content) for turn in messages)
    if total > MAX_CHARACTERS:
        raise refuse(f"has {total:,} characters in all; at most {MAX_CHARACTERS:,} are taken")
    return messages


def settings_object(value: dict[str, Any] | str) -> dict[str, Any]:
    """Sampling settings; what is only described in words is kept as words."""
    return storable_json({"description": value} if isinstance(value, str) else value)


class PromptFields(Strict):
    """What describes a prompt in any file: `messages`, or one user turn as `prompt`."""

    id: Label | None = None
    prompt: Content | None = None
    messages: Annotated[list[Message], AfterValidator(check_messages)] | None = None
    kind: PromptKind = PromptKind.PLAIN
    language: Language | None = None
    lang: Language | None = None
    source: Label = ""
    meta: Meta = {}
    gold: Gold = None
    why: AnswerText = ""

    @model_validator(mode="after")
    def check_conversation(self) -> Self:
        """The conversation is one that a model can answer."""
        if self.prompt is not None and self.messages is not None:
            raise refuse("give `messages` or `prompt`, not both")
        return self

    def conversation(self) -> list[dict[str, str]]:
        """The turns as they are stored."""
        if self.prompt is not None:
            return [{"role": "user", "content": self.prompt}]
        return [{"role": turn.role, "content": turn.content} for turn in self.messages or []]

    def require_conversation(self) -> None:
        """There is a conversation at all."""
        if self.prompt is None and self.messages is None:
            raise refuse("needs `messages` (an array of {role, content}) or `prompt` (a string)")

    def require_no_gold(self) -> None:
        """Gold needs an order, and orders are not read here: it would be lost."""
        if self.gold:
            raise refuse("says `gold`, which is known by its order: import this file as rankings")


class PromptLine(PromptFields):
    """One line of a file of prompts. Answers and rankings that stand beside a prompt are not read here."""

    responses: Any = None
    annotations: Any = None
    aggregate: Any = None
    answer: Any = None

    UNREAD: ClassVar = ("responses", "annotations", "aggregate", "answer")

    @model_validator(mode="after")
    def check_prompt(self) -> Self:
        """There is a prompt."""
        self.require_no_gold()
        self.require_conversation()
        return self


class AnswerIn(Strict):
    """A ready answer in a file."""

    id: Label | None = None
    text: AnswerText
    model: Label | None = None
    sampling: Annotated[dict[str, Any] | str, AfterValidator(settings_object)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    finish_reason: Literal["stop", "length"] | None = None
    finished: bool | None = None
    num_tokens: int | None = Field(None, ge=0, lt=2**31)

    def how_it_ended(self) -> str | None:
        """`stop` or `length`, if the file says so."""
        if self.finish_reason is None and self.finished is not None:
            return "stop" if self.finished else "length"
        return self.finish_reason


def as_answer(value: Any) -> Any:
    """An answer may be just its text."""
    return {"text": value} if isinstance(value, str) else value


Answers = list[Annotated[AnswerIn, BeforeValidator(as_answer)]]


class CompletionsLine(PromptFields):
    """One line of a file of ready answers: which prompt, and what was answered."""

    prompt_id: uuid.UUID | None = None
    completions: Answers | None = None
    responses: Answers | None = None
    annotations: Any = None
    aggregate: Any = None
    answer: Any = None

    UNREAD: ClassVar = ("annotations", "aggregate", "answer")

    @model_validator(mode="after")
    def check_whole(self) -> Self:
        """There are a prompt and at least one answer."""
        self.require_no_gold()
        if self.prompt_id is None:
            self.require_conversation()
        elif self.prompt is not None or self.messages is not None:
            raise refuse("give `prompt_id`, or the prompt itself, not both")
        if self.completions is not None and self.responses is not None:
            raise refuse("give `completions` or `responses`, not both")
        if not self.answers():
            raise refuse("needs `completions`: an array with at least one {text}")
        return self

    def answers(self) -> list[AnswerIn]:
        """The answers, under either name."""
        return self.completions or self.responses or []


class RefusedLine(BaseModel):
    """Why a line was not taken."""

    line: int
    field: str
    rule: str


class ImportReport(BaseModel):
    """What an import took and what it refused."""

    num_lines: int = 0
    taken: int = 0
    """Prompts, completions or rankings that were new: what the import is of."""
    duplicates: int = 0
    """Those that were there already, or stood twice in the file."""
    new_prompts: int = 0
    new_completions: int = 0
    num_gold: int = 0
    """Tasks whose order is known from now on."""
    num_refused: int = 0
    """Lines that can't be taken."""
    refused: list[RefusedLine] = []
    """The first of them, each with the field and the rule."""
    unread: dict[str, int] = {}
    """Fields that this import does not read -> on how many lines they stood."""
    num_crowded_prompts: int = 0
    """Prompts that now have more different answers than the 9 that a task can show."""
    num_held_out: int = 0
    """Conversations of a corpus that begin with a question of the test split, and were left out."""
    num_unfit: int = 0
    """Records that hold nothing of this kind, such as a question without ranks where rankings are imported."""
    format: str = ""
    """How the file was read."""
    preview: list[dict[str, Any]] = []
    """The first lines as they were read, where nothing was to be stored."""
    is_dry_run: bool = False
    is_stored: bool = False

    def refuse(self, line: int, errors: Sequence[tuple[str, str]]) -> None:
        """Note a line that can't be taken, with each (field, rule)."""
        self.num_refused += 1
        room = MAX_REFUSALS_SHOWN - len(self.refused)
        self.refused += [RefusedLine(line=line, field=field, rule=rule) for field, rule in errors[: max(room, 0)]]

    def note_unread_of(self, line: BaseModel, fields: Sequence[str]) -> None:
        """Count those of a line's fields that say something and are not read."""
        self.note_unread([field for field in fields if getattr(line, field) not in (None, "", [], {})])

    def note_unread(self, fields: Sequence[str]) -> None:
        """Count fields that are not read."""
        for field in fields:
            self.unread[field] = self.unread.get(field, 0) + 1


def explain_errors(error: ValidationError) -> list[tuple[str, str]]:
    """Each (field, rule) that a line breaks."""
    return [(field_of(item), RULES.get(item["type"], item["msg"])) for item in error.errors(include_url=False)]


def field_of(item: ErrorDetails) -> str:
    """The path to a field, printable whatever its name is; `line` for the whole."""
    path = ".".join(str(part) for part in item["loc"]) or "line"
    return path.encode("utf-8", "backslashreplace").decode()[:200].replace("\0", "\\0")


class CompletionIn(Strict):
    """One answer that a worker delivers."""

    prompt_id: uuid.UUID
    index: int = Field(ge=0, le=8)
    text: AnswerText
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    finish_reason: Literal["stop", "length"] | None = None
    num_tokens: int | None = Field(None, ge=0, lt=2**31)
    sampling: Meta | None = None
