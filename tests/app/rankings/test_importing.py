"""Rankings that were made elsewhere: both forms of lines, what they become, and that the same again adds nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Base
from app.errors import Invalid
from app.events import events
from app.ndjson import read_lines
from app.projects.models import Project
from app.prompts.lines import ImportReport
from app.prompts.models import Completion
from app.rankings.importing import RankingsImported, import_rankings
from app.rankings.models import Ranking, RankingPlace
from app.tasks.models import Task, TaskCompletion
from tests.factories import make_project, make_ranking, make_task

DATA = Path(__file__).parents[4] / "shared" / "data"
ABC = [{"id": name, "text": f"Answer {name}."} for name in "abc"]


def shared_file(name: str) -> bytes:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs the real data {name} beside the repository")
    return path.read_bytes()


async def send(
    session: AsyncSession, project: Project, *lines: Any, raw: bytes | None = None, **options: Any
) -> ImportReport:
    content = b"\n".join(json.dumps(line).encode() for line in lines) if raw is None else raw

    async def chunks() -> AsyncIterator[bytes]:
        yield content

    report = await import_rankings(session, read_lines(chunks(), max_bytes=10**9), project=project, **options)
    # What the database checks at the commit, it checks now.
    await session.execute(text("set constraints all immediate"))
    await session.execute(text("set constraints all deferred"))
    return report


async def count(session: AsyncSession, table: type[Base]) -> int:
    return await session.scalar(select(func.count()).select_from(table)) or 0


async def stored(session: AsyncSession) -> list[tuple[str | None, dict[str, int | None]]]:
    """Annotator and place of each answer's text, ranking by ranking."""
    rankings = (await session.scalars(select(Ranking).order_by(Ranking.number))).all()
    return [(ranking.annotator_name, await places_of(session, ranking)) for ranking in rankings]


async def places_of(session: AsyncSession, ranking: Ranking) -> dict[str, int | None]:
    rows = await session.execute(
        select(Completion.text, RankingPlace.place)
        .join(RankingPlace, RankingPlace.completion_id == Completion.id)
        .where(RankingPlace.ranking_id == ranking.id)
    )
    return dict(rows.all())


def item(**fields: Any) -> dict[str, Any]:
    return {"id": "x-1", "source": "s", "lang": "en", "prompt": "Which?", "responses": ABC, **fields}


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session)


async def test_ranks_become_places_without_gaps_and_equal_ranks_a_tie(session: AsyncSession, project: Project) -> None:
    report = await send(session, project, item(annotations=[{"annotator": "ann", "ranks": {"a": 5, "b": 2, "c": 5}}]))
    assert (report.taken, report.new_prompts, report.new_completions) == (1, 1, 3)
    assert await stored(session) == [("ann", {"Answer a.": 2, "Answer b.": 1, "Answer c.": 2})]


async def test_the_larger_score_is_the_better_place(session: AsyncSession, project: Project) -> None:
    await send(session, project, item(annotations=[{"annotator": "ann", "scores": {"a": 0.5, "b": 7, "c": -1}}]))
    assert await stored(session) == [("ann", {"Answer a.": 2, "Answer b.": 1, "Answer c.": 3})]


async def test_each_pair_is_a_ranking_of_a_task_of_its_own(session: AsyncSession, project: Project) -> None:
    pairs = [{"a": "a", "b": "b", "pref": "b"}, {"a": "b", "b": "c", "pref": "tie"}]
    report = await send(session, project, item(annotations=[{"annotator": "ann", "pairs": pairs}]))
    assert (report.taken, await count(session, Task), await count(session, TaskCompletion)) == (2, 2, 4)
    assert await stored(session) == [
        ("ann", {"Answer a.": 2, "Answer b.": 1}),
        ("ann", {"Answer b.": 1, "Answer c.": 1}),
    ]


async def test_the_aggregate_is_read_where_nobody_is_named(session: AsyncSession, project: Project) -> None:
    aggregate = {"kind": "merged", "ranking": [["c"], ["a", "b"]]}
    await send(session, project, item(annotations=[], aggregate=aggregate))
    assert await stored(session) == [("merged", {"Answer a.": 2, "Answer b.": 2, "Answer c.": 1})]


async def test_the_aggregate_is_not_one_more_annotator(session: AsyncSession, project: Project) -> None:
    given = item(annotations=[{"annotator": "ann", "ranks": {"a": 1, "b": 2}}], aggregate={"ranking": [["b"], ["a"]]})
    assert (await send(session, project, given)).taken == 1


async def test_an_answer_in_no_cell_is_missing_and_not_last(session: AsyncSession, project: Project) -> None:
    await send(session, project, item(annotations=[{"ranks": {"a": 1, "b": 2}}]))
    assert await stored(session) == [("annotator 1", {"Answer a.": 1, "Answer b.": 2, "Answer c.": None})]


async def test_a_task_waits_for_exactly_the_rankings_that_came(session: AsyncSession, project: Project) -> None:
    orders = [{"annotator": name, "ranks": {"a": 1, "b": 2, "c": 3}} for name in ("ann", "ben", "cem")]
    await send(session, project, item(annotations=orders))
    task = (await session.scalars(select(Task))).one()
    assert (task.overlap, task.num_taken) == (3, 3)
    assert {ranking.source for ranking in await session.scalars(select(Ranking))} == {"import"}


async def test_the_same_file_again_adds_nothing(session: AsyncSession, project: Project) -> None:
    line = item(annotations=[{"annotator": name, "ranks": {"a": 1, "b": 2}} for name in ("ann", "ben", "ann")])
    first = await send(session, project, line)
    assert (first.taken, first.duplicates) == (2, 1)
    again = await send(session, project, line)
    assert (again.taken, again.duplicates, again.new_completions) == (0, 3, 0)
    assert (await count(session, Task), await count(session, Ranking)) == (1, 2)


async def test_another_order_by_the_same_annotator_is_another_ranking(session: AsyncSession, project: Project) -> None:
    for ranks in ({"a": 1, "b": 2}, {"a": 2, "b": 1}):
        assert (await send(session, project, item(annotations=[{"annotator": "ann", "ranks": ranks}]))).taken == 1


async def test_one_more_annotator_finds_the_task_and_makes_room_on_it(session: AsyncSession, project: Project) -> None:
    await send(session, project, item(annotations=[{"annotator": "ann", "ranks": {"a": 1, "b": 2, "c": 3}}]))
    await send(session, project, item(annotations=[{"annotator": "ben", "ranks": {"a": 1, "b": 2, "c": 3}}]))
    task = (await session.scalars(select(Task))).one()
    await session.refresh(task)
    assert (task.overlap, task.num_taken) == (2, 2)


async def test_those_who_listen_hear_of_new_rankings_once(session: AsyncSession, project: Project) -> None:
    heard: list[RankingsImported] = []

    async def handler(_: AsyncSession, event: RankingsImported) -> None:
        heard.append(event)

    events.subscribe(RankingsImported, handler)
    line = item(annotations=[{"ranks": {"a": 1, "b": 2}}])
    for dry_run in (True, False, False):
        await send(session, project, line, dry_run=dry_run)
    events.unsubscribe(RankingsImported, handler)
    assert heard == [RankingsImported(project.id, 1)]


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        (item(), "line", "needs `annotations`"),
        (item(annotations=[{"ranks": {"a": 1, "d": 2}}]), "line", "names 'd', which is not the id"),
        (item(annotations=[{"ranks": {"a": 1}}]), "line", "fewer than two different answers"),
        (item(annotations=[{"pairs": [{"a": "a", "b": "b", "pref": "c"}]}]), "line", "names 'c'"),
        (item(annotations=[{"ranks": {"a": "first"}}]), "annotations.0.ranks.a", "integer"),
        (item(annotations=[{"scores": {"a": {"grammar": 9}}}]), "annotations.0.scores.a", "valid number"),
        (item(annotations=[{"rank": {"a": 1}}]), "annotations.0.rank", "not a known field"),
        (item(aggregate={"ranking": [["a"], ["b", "a"]]}), "line", "names 'a' twice"),
        (item(aggregate={"ranking": [["a"], [], ["b"]]}), "line", "has an empty cell"),
        (item(responses=ABC[:1], aggregate={"ranking": [["a"]]}), "line", "at least two answers"),
        (item(responses=[ABC[0], ABC[0]], aggregate={"ranking": [["a"]]}), "line", "the same `id`"),
        (
            item(responses=[ABC[0], ABC[0] | {"id": "b"}, ABC[2]], aggregate={"ranking": [["a"], ["b"]]}),
            "line",
            "puts the same text by the same model in two places",
        ),
        (
            item(
                responses=[{"id": str(n), "text": f"Answer {n}."} for n in range(10)],
                aggregate={"ranking": [[str(n)] for n in range(10)]},
            ),
            "line",
            "compares 10 answers; a task takes 2 to 9",
        ),
    ],
)
async def test_an_order_that_cannot_be_stored_names_the_rule(
    session: AsyncSession, project: Project, line: dict[str, Any], field: str, words: str
) -> None:
    report = await send(session, project, line)
    assert [(refused.line, refused.field) for refused in report.refused] == [(1, field)]
    assert words in report.refused[0].rule
    assert await count(session, Completion) == 0


async def test_a_task_takes_at_most_a_hundred_rankings(session: AsyncSession, project: Project) -> None:
    orders = [{"annotator": str(number), "ranks": {"a": 1, "b": 2, "c": 3}} for number in range(101)]
    with pytest.raises(Invalid, match="at most 100"):
        await send(session, project, item(annotations=orders))
    assert (await send(session, project, item(annotations=orders[:100]))).taken == 100


async def test_of_more_answers_than_a_task_holds_those_that_were_ranked_are_compared(
    session: AsyncSession, project: Project
) -> None:
    answers = [{"id": str(number), "text": f"Answer {number}."} for number in range(12)]
    await send(session, project, item(responses=answers, annotations=[{"ranks": {"3": 1, "7": 2}}]))
    assert await stored(session) == [("annotator 1", {"Answer 3.": 1, "Answer 7.": 2})]
    assert await count(session, Completion) == 12


# Our own rows


async def test_a_row_of_ours_goes_to_another_project_with_labels_and_ratings(
    session: AsyncSession, project: Project
) -> None:
    row = {
        "ranking_id": "6b1c0d4e-0000-4000-8000-000000000001",
        "prompt_id": "6b1c0d4e-0000-4000-8000-000000000002",
        "split": "train",
        "language": "zh",
        "messages": [{"role": "user", "content": "哪个？"}],
        "completions": [answer | {"version_id": "v", "finish_reason": "stop"} for answer in ABC],
        "order": [["b"], ["a", "c"]],
        "annotator": "0123456789abcdef",
        "labels": {"a": ["opinion"]},
        "ratings": {"b": 6},
        "display_order": ["c", "b", "a"],
        "created_at": "2026-11-21T00:00:00+00:00",
    }
    report = await send(session, project, row, row)
    assert (report.taken, report.duplicates) == (1, 1)
    assert report.unread == {"split": 2, "display_order": 2, "created_at": 2}
    assert await stored(session) == [("0123456789abcdef", {"Answer a.": 2, "Answer b.": 1, "Answer c.": 2})]
    marks = await session.execute(select(RankingPlace.labels, RankingPlace.rating).order_by(RankingPlace.place))
    assert sorted(marks.all(), key=str) == [(["opinion"], None), ([], 6), ([], None)]


async def test_a_ranking_that_comes_home_is_known_by_its_id(session: AsyncSession) -> None:
    task = await make_task(session, k=2)
    ranking = await make_ranking(session, task)
    project = await session.get_one(Project, task.project_id)
    row = {
        "ranking_id": str(ranking.id),
        "prompt": "The same?",
        "completions": ABC,
        "order": [["a"], ["b"], ["c"]],
        "annotator": "x",
    }
    assert (await send(session, project, row)).duplicates == 1
    assert await count(session, Ranking) == 1


async def test_the_shortest_line_is_texts_and_their_order(session: AsyncSession, project: Project) -> None:
    await send(session, project, {"prompt": "2 + 2?", "completions": ["4", "5", "four"], "order": [[0, 2], [1]]})
    assert await stored(session) == [("imported", {"4": 1, "5": 2, "four": 1})]


async def test_rows_that_differ_in_a_label_alone_are_two_rankings(session: AsyncSession, project: Project) -> None:
    row = {"prompt": "Which?", "completions": ABC, "order": [["a"], ["b"], ["c"]]}
    report = await send(session, project, row, row | {"labels": {"a": ["opinion"]}})
    assert (report.taken, report.duplicates) == (2, 0)


# Real data


async def test_212_real_orders_by_people_are_taken_whole(session: AsyncSession, project: Project) -> None:
    raw = shared_file("rank_oasst_en.jsonl")
    report = await send(session, project, raw=raw)
    assert (report.num_refused, report.taken, report.new_prompts, report.new_completions) == (0, 212, 212, 641)
    sizes = await session.scalars(select(func.count()).select_from(TaskCompletion).group_by(TaskCompletion.task_id))
    items = [json.loads(line) for line in raw.splitlines()]
    assert Counter(sizes.all()) == Counter(len(given["responses"]) for given in items)
    again = await send(session, project, raw=raw)
    assert (again.taken, again.duplicates) == (0, 212)


async def test_every_real_pair_by_three_people_is_a_ranking(session: AsyncSession, project: Project) -> None:
    report = await send(session, project, raw=shared_file("pairs_pandalm_3annotators.jsonl"))
    assert report.num_refused == 0
    assert report.taken + report.duplicates == 2997
    by_annotator = await session.execute(select(Ranking.annotator_name, func.count()).group_by(Ranking.annotator_name))
    counts = dict(by_annotator.all())
    assert set(counts) == {"annotator1", "annotator2", "annotator3"}
    assert sum(counts.values()) == report.taken


async def test_300_real_chinese_pairs_are_taken(session: AsyncSession, project: Project) -> None:
    report = await send(session, project, raw=shared_file("pairs_zh_llamafactory.jsonl"))
    assert (report.num_refused, report.taken + report.duplicates) == (0, 300)


async def test_criteria_of_a_judge_model_are_no_order_and_say_so(session: AsyncSession, project: Project) -> None:
    report = await send(session, project, raw=shared_file("k_tinyfabulist.jsonl"))
    assert (report.num_refused, report.is_stored) == (100, False)
    assert report.refused[0].field == "annotations.0.scores.r0"
