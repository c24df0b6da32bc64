"""What a piece of writing holds, checked before it is sent for review: the text of an answer, or the parts of a prompt.

Prompts come in the three kinds of InstructGPT (2203.02155, appendix A.2): plain, few-shot (an instruction with pairs of
query and response, then a query), and user-style (after a use case that somebody asked for).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from app.errors import Invalid
from app.prompts.lines import Content, Label, Language, PromptLine, Strict
from app.prompts.models import PromptKind
from app.validation import explain
from app.writing.models import WritingKind

MAX_PAIRS = 8


class Demonstration(Strict):
    """An ideal answer."""

    text: Content


class Pair(Strict):
    """One worked example within a few-shot prompt."""

    query: Content
    response: Content


class WrittenPrompt(Strict):
    """A prompt in its parts. `query` and `pairs` belong to few-shot prompts, `use_case` to user-style ones."""

    kind: PromptKind = PromptKind.PLAIN
    language: Language = "en"
    instruction: Content
    pairs: list[Pair] = Field(default_factory=list, max_length=MAX_PAIRS)
    query: str = ""
    use_case: Label = ""

    def messages(self) -> list[dict[str, str]]:
        """The conversation that the model gets: few-shot pairs as turns, the instruction before the first query."""
        if self.kind != PromptKind.FEW_SHOT:
            return [{"role": "user", "content": self.instruction}]
        queries = [*(pair.query for pair in self.pairs), self.query]
        queries[0] = f"{self.instruction}\n\n{queries[0]}"
        turns = [{"role": "user", "content": query} for query in queries]
        answers = [{"role": "assistant", "content": pair.response} for pair in self.pairs]
        return [turn for pair in zip(turns, answers, strict=False) for turn in pair] + turns[-1:]

    def as_line(self) -> PromptLine:
        """As the import of prompts takes it, with its checks."""
        meta = {"use_case": self.use_case} if self.use_case else {}
        fields = {"messages": self.messages(), "kind": self.kind, "language": self.language, "source": "written"}
        return PromptLine.model_validate(fields | {"meta": meta})


def checked_body(kind: str, body: Mapping[str, Any]) -> Demonstration | WrittenPrompt:
    """What was written, if it can be sent for review.

    Raises:
        Invalid: something is missing or can't be stored; each field is named.
    """
    schema = Demonstration if kind == WritingKind.DEMONSTRATION else WrittenPrompt
    try:
        found = schema.model_validate(body)
        if isinstance(found, WrittenPrompt):
            require_few_shot(found)
            found.as_line()
    except ValidationError as error:
        fields = [explain(item, ".".join(str(part) for part in item["loc"])) for item in error.errors()]
        raise Invalid("; ".join(f"{item.field}: {item.rule}" for item in fields), errors=fields) from error
    return found


def require_few_shot(prompt: WrittenPrompt) -> None:
    """A few-shot prompt has a worked example and ends with a query.

    Raises:
        Invalid: one of them is missing.
    """
    if prompt.kind != PromptKind.FEW_SHOT:
        return
    if not prompt.pairs:
        raise Invalid.field("pairs", "A few-shot prompt needs at least one worked example.")
    if not prompt.query.strip():
        raise Invalid.field("query", "Write the query that the model should answer.")
