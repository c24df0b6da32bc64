"""Wire and form shapes of projects."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError

from app.errors import Invalid
from app.examples import shown
from app.projects.models import (
    Asked,
    CompareNew,
    Help,
    Layout,
    PolicyGate,
    PolicyStart,
    Project,
    RankNext,
    RewardGate,
    RewardStart,
)
from app.validation import ALIAS, LABEL_KEY, SLUG, explain

Schema = TypeVar("Schema", bound=BaseModel)
Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)]
ExampleText = Annotated[str, StringConstraints(strip_whitespace=True, max_length=20_000)]
MAX_LABELS = 40
MAX_EXAMPLES = 10
Alias = Annotated[str, StringConstraints(pattern=ALIAS)]


class Sampling(BaseModel):
    """How completions are drawn."""

    model_config = ConfigDict(extra="forbid")

    temperature: float = Field(1.0, gt=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(128, ge=1, le=8192)
    seed: int = Field(17, ge=0, lt=2**31)


class Label(BaseModel):
    """What an annotator may mark on an answer. `required`: a yes or a no is needed on every answer.

    A key stays for ever: a label that is `removed` is asked no more, and old rankings still show its name.
    """

    model_config = ConfigDict(extra="forbid")

    key: Annotated[str, StringConstraints(pattern=LABEL_KEY)]
    en: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
    zh: Text = ""
    required: bool = False
    removed: bool = False


def check_labels(labels: list[Label]) -> list[Label]:
    """Each key once, and no more labels than an answer has room for."""
    keys = [label.key for label in labels]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        raise PydanticCustomError("label_twice", "has the key {key} twice", {"key": twice})
    if sum(not label.removed for label in labels) > MAX_LABELS:
        raise PydanticCustomError("too_many_labels", "has more than {max} labels", {"max": MAX_LABELS})
    return labels


class Example(BaseModel):
    """A worked example in the guidelines: to one prompt a good and a bad answer, each with its reason."""

    model_config = ConfigDict(extra="forbid")

    prompt: ExampleText
    good: ExampleText
    good_why: ExampleText = ""
    bad: ExampleText = ""
    bad_why: ExampleText = ""


class Training(BaseModel):
    """Overrides of the trainer's defaults; the worker refuses a key that it does not know, by name."""

    model_config = ConfigDict(extra="forbid")

    reward: dict[str, Any] = {}
    ppo: dict[str, Any] = {}


class ProjectSettings(BaseModel):
    """What can be changed later."""

    model_config = ConfigDict(extra="forbid", strict=False)

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
    guidelines: Annotated[str, StringConstraints(max_length=100_000)] = ""
    k: int = Field(4, ge=2, le=9)
    ties_allowed: bool = True
    partial_allowed: bool = False
    labels: Annotated[list[Label], Field(max_length=200), AfterValidator(check_labels)] | None = None
    rationale: Asked = Asked.OPTIONAL
    min_rationale: int = Field(0, ge=0, le=2000)
    confidence: Asked = Asked.OFF
    asks_all_bad: bool = False
    examples: Annotated[list[Example], Field(max_length=MAX_EXAMPLES)] = []
    layout: Layout = Layout.SIDE_BY_SIDE
    has_review_step: bool = False
    writes_demonstrations: bool = False
    writes_prompts: bool = False
    allows_self_review: bool = False
    drafts_demonstrations: bool = False
    overlap: int = Field(1, ge=1, le=100)
    overlap_share: float = Field(1, ge=0, le=1)
    gold_share: float = Field(0, ge=0, le=0.5)
    compare_share: float = Field(0.25, ge=0, le=1)
    compare_new: CompareNew = CompareNew.OFF
    compare_prompts: int = Field(200, ge=1, le=2000)
    qualify_tasks: int = Field(0, ge=0, le=25)
    qualify_mark: float = Field(0.7, ge=0, le=1)
    qualify_tries: int = Field(2, ge=1, le=10)
    gold_window: int = Field(0, ge=0, le=100)
    review_above: float = Field(0.5, ge=0, le=1)
    max_annotator_share: float | None = Field(None, gt=0, le=1)
    lease_minutes: int = Field(60, ge=1, le=1440)
    sampling: Sampling = Sampling()
    training: Training = Training()
    train_threshold: int | None = Field(None, ge=1)
    train_every_hours: int | None = Field(None, ge=1, le=8760)
    rank_next: RankNext = RankNext.RANDOM
    random_share: float = Field(0.2, ge=0.1, le=1)
    help: Help = Help.NONE
    unassisted_share: float = Field(0.25, ge=0.1, le=1)
    reward_gate: RewardGate = RewardGate.HELD_OUT
    policy_gate: PolicyGate = PolicyGate.OFF
    policy_judge: int | None = Field(None, ge=2, lt=2**31)
    reward_start: RewardStart = RewardStart.SFT
    policy_start: PolicyStart = PolicyStart.ROUND
    is_paused: bool = False


class ProjectIn(ProjectSettings):
    """A new project."""

    model_config = ConfigDict(
        json_schema_extra=shown(
            name="Helpful answers",
            slug="helpful",
            model_alias="pocket",
            k=4,
            guidelines="Rank what helps first.",
            labels=[{"key": "rude", "en": "Rude", "zh": "粗鲁"}],
            overlap=2,
        )
    )

    slug: Annotated[str, StringConstraints(pattern=SLUG)] | None = None
    model_alias: Alias
    validation_share: float = Field(0.15, ge=0, lt=1)
    test_share: float = Field(0.1, ge=0, lt=1)
    seed: int = Field(17, ge=0, lt=2**31)


class ProjectOut(BaseModel):
    """A project as the API shows it."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    slug: str
    name: str
    model_alias: str
    guidelines: str
    k: int
    ties_allowed: bool
    partial_allowed: bool
    labels: list[Label]
    rationale: Asked
    min_rationale: int
    confidence: Asked
    asks_all_bad: bool
    examples: list[Example]
    layout: Layout
    has_review_step: bool
    writes_demonstrations: bool
    writes_prompts: bool
    allows_self_review: bool
    drafts_demonstrations: bool
    overlap: int
    overlap_share: float
    gold_share: float
    compare_share: float
    compare_new: CompareNew
    compare_prompts: int
    qualify_tasks: int
    qualify_mark: float
    qualify_tries: int
    gold_window: int
    review_above: float
    max_annotator_share: float | None
    lease_minutes: int
    sampling: Sampling
    training: Training
    train_threshold: int | None
    train_every_hours: int | None
    rank_next: RankNext
    random_share: float
    help: Help
    unassisted_share: float
    reward_gate: RewardGate
    policy_gate: PolicyGate
    policy_judge: int | None
    reward_start: RewardStart
    policy_start: PolicyStart
    validation_share: float
    test_share: float
    seed: int
    is_paused: bool
    created_at: datetime


def parse_object(field: str, value: Any) -> dict[str, Any]:
    """A form's field that holds a JSON object; an empty one when nothing was typed.

    Raises:
        Invalid: it doesn't parse, or is no object.
    """
    try:
        found = json.loads(value) if value else {}
    except ValueError as error:
        raise Invalid.field(field, "This is not JSON: {why}.", why=error) from error
    if not isinstance(found, dict):
        raise Invalid.field(field, 'This must be a JSON object, such as {"seed": 1}.')
    return found


def checked(schema: type[Schema], values: Mapping[str, Any]) -> Schema:
    """Values as the schema has them.

    Raises:
        Invalid: a field is unknown or breaks its rule; each is named.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        fields = [explain(item, ".".join(str(part) for part in item["loc"])) for item in error.errors()]
        raise Invalid("; ".join(f"{item.field}: {item.rule}" for item in fields), errors=fields) from error


def checked_changes(project: Project, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a project's settings, those that these values change.

    Raises:
        Invalid: a field is unknown, can't be changed later, or breaks its rule.
    """
    names = list(ProjectSettings.model_fields)
    before = ProjectSettings.model_validate({name: getattr(project, name) for name in names}).model_dump()
    after = checked(ProjectSettings, before | dict(values)).model_dump()
    return {name: after[name] for name in names if after[name] != before[name]}
