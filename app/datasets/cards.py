"""Data cards: who ranked, how, how well they agree, which biases show, under which licence; as JSON and Markdown.

After "Datasheets for Datasets" (Gebru et al., 2021), with the front matter that `datasets.load_dataset` reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from app.datasets.filters import PEOPLE
from app.projects.models import Project

NO_LICENCE = "unknown"
MAX_PEOPLE_SHOWN = 50


def biases(sums: Mapping[str, float]) -> dict[str, Any]:
    """How often the first card and the longer answer win, from counts: shares of [0, 1], and of what."""
    return {
        "first_shown_wins": share(sums["first_shown_won"], sums["num_decided"]),
        "first_shown_would_win_by_chance": share(sums["expected_by_chance"], sums["num_decided"]),
        "num_decided": sums["num_decided"],
        "longer_wins": share(sums["longer_won"], sums["num_of_different_length"]),
        "num_pairs_of_different_length": sums["num_of_different_length"],
    }


def share(part: float, whole: float) -> float | None:
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


def without_names(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A filter as others may see it: whoever ranked is known by pseudonyms, so people are counted and not named."""
    return {name: len(value) if name in PEOPLE else value for name, value in chosen.items()}


# Markdown


def card_markdown(card: Mapping[str, Any], splits: Sequence[str], not_held: Sequence[str] = ()) -> str:
    """The card as the README of a dataset folder. `splits`: those that have a file; `not_held`: by its format."""
    sections = [front_matter(card, splits), f"# {one_line(card['title'])}", about(card), contents(card), people(card)]
    sections += [task(card), said_of_biases(card)]
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
    counts = {name: value for name, value in card["counts"].items() if name != "left_out"}
    lines = [f"{name.replace('_', ' ')}: {tell(value)}" for name, value in counts.items()]
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
    told = [f"## Who ranked\n\nPseudonyms hold within this dataset only.\n\n{table}", *shares(card), agreement]
    return "\n\n".join(told)


def shares(card: Mapping[str, Any]) -> list[str]:
    """How much of it is one person's, and what was left out for that; nothing of datasets that do not say."""
    said = []
    if card.get("largest_share"):
        most = [f"{percent(value)} of {split}" for split, value in card["largest_share"].items()]
        said.append(f"The most by one person: {', '.join(most)}.")
    if left_out := card["counts"].get("left_out"):
        people = f"{left_out['num_rankings']} rankings, of {left_out['num_annotators']} of the annotators"
        said.append(f"Left out, so that no one person is too much of it: {people}.")
    return said


def task(card: Mapping[str, Any]) -> str:
    """What they were asked."""
    if "task" not in card:
        return ""
    asked = card["task"]
    rules = bullets([f"{name}: {tell(asked[name])}" for name in ("k", "overlap", "ties_allowed", "partial_allowed")])
    words = quote(asked["guidelines"]) if asked["guidelines"].strip() else "No guidelines were given."
    return f"## What was asked\n\n{rules}\n\n{words}"


def said_of_biases(card: Mapping[str, Any]) -> str:
    """What may be wrong with them."""
    if "biases" not in card:
        return ""
    found = card["biases"]
    first = f"The answer shown first wins {percent(found['first_shown_wins'])} of {found['num_decided']} rankings with"
    chance = f" one winner; by chance it would be {percent(found['first_shown_would_win_by_chance'])}."
    longer = f"The longer answer wins {percent(found['longer_wins'])} of"
    assisted = card.get("num_assisted", 0)
    helped = f"{assisted} rankings are of cards that a reward model had put in order; these do not count for the first."
    lines = [
        *([helped] if assisted else []),
        first + chance,
        f"{longer} {found['num_pairs_of_different_length']} pairs of different length.",
    ]
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
