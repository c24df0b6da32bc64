"""Data cards: who ranked, how, how well they agree, which biases show, under which licence; as JSON and Markdown.

After "Datasheets for Datasets" (Gebru et al., 2021), with the front matter that `datasets.load_dataset` reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from app.projects.models import Project

NO_LICENCE = "unknown"
MAX_PEOPLE_SHOWN = 50


@dataclass
class Biases:
    """What can be counted of biases while rows pass."""

    num_decided: int = 0
    first_shown_won: int = 0
    expected_by_chance: float = 0.0
    num_of_different_length: int = 0
    longer_won: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one ranking: whether the first card won, and how often the longer answer did."""
        order, shown = row["order"], row["display_order"]
        if len(order) > 1 and len(order[0]) == 1:
            self.num_decided += 1
            self.first_shown_won += order[0][0] == shown[0]
            self.expected_by_chance += 1 / len(shown)
        lengths = {answer["id"]: len(answer["text"]) for answer in row["completions"]}
        cells = [[lengths[key] for key in cell] for cell in order]
        for position, cell in enumerate(cells):
            for worse in cells[position + 1 :]:
                for length in cell:
                    self.num_of_different_length += sum(length != other for other in worse)
                    self.longer_won += sum(length > other for other in worse)

    def as_json(self) -> dict[str, Any]:
        """Shares of [0, 1], with what they are shares of."""
        return {
            "first_shown_wins": share(self.first_shown_won, self.num_decided),
            "first_shown_would_win_by_chance": share(self.expected_by_chance, self.num_decided),
            "num_decided": self.num_decided,
            "longer_wins": share(self.longer_won, self.num_of_different_length),
            "num_pairs_of_different_length": self.num_of_different_length,
        }


@dataclass
class Contents:
    """What a card says of the rows, counted while they are frozen."""

    people: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    biases: Biases = field(default_factory=Biases)
    num_with_rating: int = 0
    num_with_gaps: int = 0
    first: str = ""
    last: str = ""

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row."""
        self.people[row["annotator"]] += 1
        self.languages[row["language"]] += 1
        self.labels.update(key for keys in row["labels"].values() for key in keys)
        self.versions.update({answer["version_id"] or "elsewhere" for answer in row["completions"]})
        self.biases.add(row)
        self.num_with_rating += bool(row["ratings"])
        self.num_with_gaps += sum(map(len, row["order"])) < len(row["completions"])
        self.first = min(self.first or row["created_at"], row["created_at"])
        self.last = max(self.last, row["created_at"])

    def as_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "annotators": dict(self.people.most_common(MAX_PEOPLE_SHOWN)),
            "languages": dict(self.languages.most_common()),
            "labels": dict(self.labels.most_common()),
            "answers_of": dict(self.versions.most_common(MAX_PEOPLE_SHOWN)),
            "biases": self.biases.as_json(),
            "num_with_rating": self.num_with_rating,
            "num_with_gaps": self.num_with_gaps,
            "first_ranking_at": self.first,
            "last_ranking_at": self.last,
        }


def share(part: float, whole: int) -> float | None:
    """A share, or None of nothing."""
    return round(part / whole, 4) if whole else None


def task_of(project: Project) -> dict[str, Any]:
    """What was asked of the annotators."""
    return {
        "project": project.name,
        "guidelines": project.guidelines,
        "k": project.k,
        "overlap": project.overlap,
        "overlap_share": project.overlap_share,
        "ties_allowed": project.ties_allowed,
        "partial_allowed": project.partial_allowed,
        "labels": project.labels,
        "model": project.model_alias,
        "sampling": project.sampling,
    }


# Markdown


def card_markdown(card: Mapping[str, Any], splits: Sequence[str], not_held: Sequence[str] = ()) -> str:
    """The card as the README of a dataset folder. `splits`: those that have a file; `not_held`: by its format."""
    sections = [front_matter(card, splits), f"# {one_line(card['title'])}", about(card), contents(card), people(card)]
    sections += [task(card), biases(card)]
    if not_held:
        sections.append("## What this format does not hold\n\n" + bullets(not_held))
    sections.append("## Licence\n\n" + (one_line(card["licence"]) or "Not stated. Ask whoever gave you the data."))
    return "\n\n".join(section for section in sections if section) + "\n"


def front_matter(card: Mapping[str, Any], splits: Sequence[str]) -> str:
    """YAML for `load_dataset`, written as JSON, which YAML contains."""
    files = [{"split": split, "path": f"data/{split}.jsonl"} for split in splits]
    values = {
        "license": card["licence"] or NO_LICENCE,
        "language": sorted(card.get("languages", {})),
        "pretty_name": card["title"],
        "tags": ["rlhf", "preference"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    lines = [f"{name}: {orjson.dumps(value).decode()}" for name, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def about(card: Mapping[str, Any]) -> str:
    """Where it comes from."""
    return bullets(
        [
            f"Project: {one_line(card['project'])}, dataset {card['number']}, frozen at {card['created_at']}",
            f"SHA-256 of its lines: `{card['sha256']}`",
            f"Chosen: `{orjson.dumps(card['filter']).decode().replace('`', ' ')}`",
        ]
    )


def contents(card: Mapping[str, Any]) -> str:
    """What is counted."""
    lines = [f"{name.replace('_', ' ')}: {tell(value)}" for name, value in card["counts"].items()]
    lines += [f"{name}: {tell(card[name])}" for name in ("languages", "labels") if card.get(name)]
    if card.get("first_ranking_at"):
        lines.append(f"ranked from {card['first_ranking_at']} to {card['last_ranking_at']}")
    return "## Contents\n\n" + bullets(lines)


def people(card: Mapping[str, Any]) -> str:
    """Who ranked, by pseudonym, and how well they agree."""
    if "annotators" not in card:
        return ""
    rows = [f"| `{one_line(name)}` | {number} |" for name, number in card["annotators"].items()]
    table = "\n".join(["| annotator | rankings |", "|---|---|", *rows])
    found = card.get("agreement")
    if found is None:
        agreement = "No task was ranked by two people, so their agreement is not known."
    else:
        agreement = (
            f"Two people agree on {percent(found['with_ties'])} of the pairs of answers that both judged "
            f"({percent(found['without_ties'])} of those that both put in order); "
            f"from {found['num_rankings']} rankings of {found['num_tasks']} tasks (InstructGPT: 72.6 ± 1.5 %)."
        )
    return f"## Who ranked\n\nPseudonyms hold within this dataset only.\n\n{table}\n\n{agreement}"


def task(card: Mapping[str, Any]) -> str:
    """What they were asked."""
    if "task" not in card:
        return ""
    asked = card["task"]
    rules = bullets([f"{name}: {tell(asked[name])}" for name in ("k", "overlap", "ties_allowed", "partial_allowed")])
    words = quote(asked["guidelines"]) if asked["guidelines"].strip() else "No guidelines were given."
    return f"## What was asked\n\n{rules}\n\n{words}"


def biases(card: Mapping[str, Any]) -> str:
    """What may be wrong with them."""
    if "biases" not in card:
        return ""
    found = card["biases"]
    first = f"The answer shown first wins {percent(found['first_shown_wins'])} of {found['num_decided']} rankings with"
    chance = f" one winner; by chance it would be {percent(found['first_shown_would_win_by_chance'])}."
    longer = f"The longer answer wins {percent(found['longer_wins'])} of"
    lines = [first + chance, f"{longer} {found['num_pairs_of_different_length']} pairs of different length."]
    return "## Biases\n\n" + bullets(lines)


def bullets(lines: Sequence[str]) -> str:
    """A list."""
    return "\n".join(f"* {line}" for line in lines)


def quote(text: str) -> str:
    """Somebody's own words, which stay a quotation whatever is in them."""
    return "\n".join(f"> {line}" for line in text.splitlines())


def one_line(text: str) -> str:
    """Words that can't break out of their line or cell."""
    return " ".join(text.replace("|", "/").replace("`", "'").split())


def tell(value: Any) -> str:
    """A value in words."""
    if isinstance(value, dict):
        return ", ".join(f"{one_line(str(key))} {number}" for key, number in value.items())
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def percent(value: float | Mapping[str, Any] | None) -> str:
    """A share in percent, with its interval where there is one."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return f"{100 * value['value']:.1f} % ({100 * value['low']:.1f}-{100 * value['high']:.1f})"
    return f"{100 * value:.1f} %"
