"""The lines of a corpus file, checked: a text, or a conversation that ends with the answer to learn."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from app.corpora.models import CorpusKind
from app.prompts.lines import MAX_CHARACTERS, Content, Label, Language, Message, Meta, Strict, refuse


def check_example(messages: list[Message]) -> list[Message]:
    """Has a question and ends with an answer; a system prompt, if any, comes first; of a length that can be read."""
    if not messages or messages[-1].role != "assistant":
        raise refuse("must end with an assistant turn: the answer to learn")
    if not any(turn.role == "user" for turn in messages):
        raise refuse("needs a user turn before the answer")
    if any(turn.role == "system" for turn in messages[1:]):
        raise refuse("may have a system turn at the beginning only")
    total = sum(len(turn.content) for turn in messages)
    if total > MAX_CHARACTERS:
        raise refuse(f"has {total:,} characters in all; at most {MAX_CHARACTERS:,} are taken")
    return messages


class CorpusLine(Strict):
    """One line: `text`; or `messages`; or a `prompt` with its `completion`."""

    text: Content | None = None
    messages: Annotated[list[Message], AfterValidator(check_example)] | None = None
    prompt: Content | None = None
    completion: Content | None = None
    id: Label | None = None
    language: Language | None = None
    source: Label = ""
    meta: Meta = Field(default={})

    UNREAD: ClassVar = ("id", "language", "source", "meta")

    @model_validator(mode="after")
    def check_one_form(self) -> Self:
        """Exactly one of the three forms."""
        if (self.prompt is None) != (self.completion is None):
            raise refuse("a `prompt` needs its `completion`, and the other way round")
        if sum(form is not None for form in (self.text, self.messages, self.prompt)) != 1:
            raise refuse("needs one of `text`, `messages`, or `prompt` with `completion`")
        return self

    @property
    def kind(self) -> CorpusKind:
        """Which kind of corpus it belongs into."""
        return CorpusKind.TEXT if self.text is not None else CorpusKind.CONVERSATIONS

    def as_row(self) -> dict[str, Any]:
        """What is stored and what a worker reads: `{"text"}` or `{"messages"}`."""
        if self.text is not None:
            return {"text": self.text}
        if self.messages is not None:
            return {"messages": [{"role": turn.role, "content": turn.content} for turn in self.messages]}
        turns = (("user", self.prompt), ("assistant", self.completion))
        return {"messages": [{"role": role, "content": content} for role, content in turns]}
