"""Which rankings a dataset takes. A new condition is a field here and a line in `CONDITIONS`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import ColumnElement, Integer, and_, cast, func, or_, select
from sqlalchemy.orm import aliased

from app.errors import Invalid
from app.prompts.lines import Label, Language
from app.prompts.models import Completion, Prompt, Split
from app.quality.models import Rejection
from app.rankings.models import Ranking, RankingPlace
from app.rankings.service import is_current
from app.registry.models import Version
from app.tasks.models import Task, TaskCompletion
from app.validation import explain

PEOPLE = ("annotators", "annotator_names", "without_annotators")
SHARES = ("min_agreement", "max_annotator_share")
LEARNED_FROM = (Split.TRAIN, Split.VALIDATION)


class Form(Protocol):
    """What was sent by a form: a name may come several times."""

    def get(self, name: str, default: Any, /) -> Any:
        """One value."""
        ...

    def getlist(self, name: str, /) -> Sequence[Any]:
        """All of them."""
        ...


Round = Annotated[int, Field(ge=1, lt=2**31)] | Literal["imported"]
VersionNumber = Annotated[int, Field(ge=1, lt=2**31)]


class DatasetFilter(BaseModel):
    """Empty fields choose everything. Test prompts can't be chosen (design, rule 7)."""

    model_config = ConfigDict(extra="forbid")

    splits: Annotated[list[Literal["train", "validation"]], Field(min_length=1, max_length=2)] = ["train", "validation"]
    rounds: Annotated[list[Round], Field(max_length=1000)] = []
    """Numbers of rounds, and `imported` for what was ranked elsewhere."""
    languages: Annotated[list[Language], Field(max_length=100)] = []
    sources: Annotated[list[Literal["page", "api", "import"]], Field(max_length=3)] = []
    annotators: Annotated[list[uuid.UUID], Field(max_length=1000)] = []
    """Ids of people."""
    annotator_names: Annotated[list[Label], Field(max_length=1000)] = []
    """Those who made imported rankings, as their file named them; chosen beside `annotators`."""
    without_annotators: Annotated[list[uuid.UUID], Field(max_length=1000)] = []
    """Ids of people whose rankings stay out."""
    since: date | None = None
    """The first day, in UTC."""
    until: date | None = None
    """The last day, in UTC."""
    versions: Annotated[list[VersionNumber], Field(max_length=2)] = []
    """Only rankings that compare answers of these versions, by number: of one, or of both."""

    reviewed: bool = False
    """Only what a reviewer has settled: rankings of tasks on which people differed, as approved or corrected."""
    min_agreement: Annotated[float, Field(gt=0, le=1)] | None = None
    """Only tasks that two people or more ranked, and on which they say the same of at least this share of the pairs of
    answers; a tie is a third answer."""
    max_annotator_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of no one person more than this share of the rankings of either split; of k people, 2/k is always allowed. Over
    the API, the project's where it is not named; null: none. The one condition that looks at all that the others choose
    (app/datasets/caps.py)."""

    @model_validator(mode="after")
    def check_days(self) -> Self:
        """The first day is not after the last."""
        if self.since and self.until and self.since > self.until:
            raise PydanticCustomError("days_turned", "The first day is after the last one.")
        return self

    @classmethod
    def of_form(cls, form: Form) -> DatasetFilter:
        """What a form says: boxes that share a name, and lists with commas.

        Raises:
            Invalid: a field can't be understood.
        """
        values: dict[str, Any] = {
            name: form.getlist(name) for name in ("splits", "sources", *PEOPLE) if form.getlist(name)
        }
        values["reviewed"] = bool(form.get("reviewed", ""))
        for name in ("rounds", "languages", "versions"):
            values[name] = [part.strip() for part in str(form.get(name, "")).split(",") if part.strip()]
        values |= {name: form.get(name, "") for name in ("since", "until", *SHARES) if form.get(name, "")}
        try:
            return cls(**values)
        except ValidationError as error:
            first = {str(item["loc"][0] if item["loc"] else "until"): item for item in reversed(error.errors())}
            raise Invalid(errors=[explain(item, name) for name, item in first.items()]) from error

    def with_cap(self, share: float | None) -> DatasetFilter:
        """The same with the project's share, unless this says one of its own, or null for none."""
        if "max_annotator_share" in self.model_fields_set:
            return self
        return self.model_copy(update={"max_annotator_share": share})

    def takes_all(self) -> bool:
        """Whether no condition leaves a ranking out for what it is."""
        return self.model_copy(update={"max_annotator_share": None}) == DatasetFilter()

    def chosen(self) -> dict[str, Any]:
        """What was chosen, as it is stored: the fields that say something."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value}

    def conditions(self, project_id: uuid.UUID) -> list[ColumnElement[bool]]:
        """The filter as conditions on Ranking, Task and Prompt."""
        chosen = ((make, getattr(self, name)) for name, make in CONDITIONS.items())
        return [make(value, project_id) for make, value in chosen if value] + self._people()

    def _people(self) -> list[ColumnElement[bool]]:
        """The people who are named, either as users or as names of a file."""
        chosen = []
        if self.annotators:
            chosen.append(Ranking.annotator_id.in_(self.annotators))
        if self.annotator_names:
            chosen.append(Ranking.annotator_name.in_(self.annotator_names))
        return [or_(*chosen)] if chosen else []


def of_rounds(rounds: list[int | str], _: uuid.UUID) -> ColumnElement[bool]:
    """Rankings of these rounds; those made elsewhere belong to none."""
    numbers = [item for item in rounds if item != "imported"]
    return or_(Task.round.in_(numbers), Task.round.is_(None)) if "imported" in rounds else Task.round.in_(numbers)


def with_versions(numbers: list[int], project_id: uuid.UUID) -> ColumnElement[bool]:
    """Rankings whose task holds an answer of each of these versions."""
    return and_(
        *[
            select(TaskCompletion.task_id)
            .join(Completion, Completion.id == TaskCompletion.completion_id)
            .join(Version, Version.id == Completion.version_id)
            .where(
                TaskCompletion.task_id == Ranking.task_id, Version.project_id == project_id, Version.number == number
            )
            .exists()
            for number in set(numbers)
        ]
    )


def of_agreement(least: float, _: uuid.UUID) -> ColumnElement[bool]:
    """Rankings of tasks whose current rankings, two at a time, say the same of at least so many pairs of answers."""
    one, other = aliased(Ranking), aliased(Ranking)
    # Two answers of the task, as the one ranking and as the other places them.
    (one_a, one_b), (other_a, other_b) = [(aliased(RankingPlace), aliased(RankingPlace)) for _ in range(2)]
    is_same = func.sign(one_a.place - one_b.place) == func.sign(other_a.place - other_b.place)
    counted = (is_accepted(ranking) for ranking in (one, other))
    share = (
        select(func.avg(cast(is_same, Integer)))
        .select_from(one)
        .join(other, and_(other.task_id == one.task_id, other.number > one.number))
        .join(one_a, one_a.ranking_id == one.id)
        .join(one_b, and_(one_b.ranking_id == one.id, one_b.completion_id > one_a.completion_id))
        .join(other_a, and_(other_a.ranking_id == other.id, other_a.completion_id == one_a.completion_id))
        .join(other_b, and_(other_b.ranking_id == other.id, other_b.completion_id == one_b.completion_id))
        .where(one.task_id == Ranking.task_id, *counted)
    )
    return share.correlate(Ranking).scalar_subquery() >= least


def is_accepted(ranking: type[Ranking]) -> ColumnElement[bool]:
    """Current rankings that no reviewer rejected."""
    return and_(is_current(ranking), ~select(Rejection.ranking_id).where(Rejection.ranking_id == ranking.id).exists())


CONDITIONS: dict[str, Callable[[Any, uuid.UUID], ColumnElement[bool]]] = {
    "splits": lambda splits, _: Prompt.split.in_(splits),
    "rounds": of_rounds,
    "languages": lambda languages, _: Prompt.language.in_(languages),
    "sources": lambda sources, _: Ranking.source.in_(sources),
    "without_annotators": lambda ids, _: or_(Ranking.annotator_id.is_(None), Ranking.annotator_id.not_in(ids)),
    "since": lambda day, _: Ranking.created_at >= datetime.combine(day, time.min, UTC),
    "until": lambda day, _: Ranking.created_at <= datetime.combine(day, time.max, UTC),
    "versions": with_versions,
    "reviewed": lambda _, __: Ranking.number <= Task.settled_number,
    "min_agreement": of_agreement,
}
