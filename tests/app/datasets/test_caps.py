"""How much of a dataset one person may be: how many rankings stay of whoever ranked more, which, and who is told."""

from __future__ import annotations

import hashlib
import io
import json
import uuid
import zipfile
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from httpx2 import AsyncClient
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role
from app.datasets import caps, pieces, service
from app.datasets.cards import card_markdown
from app.datasets.filters import DatasetFilter
from app.datasets.models import Dataset, DatasetRow
from app.projects.models import Project
from app.rankings.models import Ranking
from app.web import LANGUAGE_COOKIE
from tests.factories import add, make_project, make_prompt, make_ranking, make_task, make_user, sign_in

# How many rankings each person has, and a share.
people = st.lists(st.integers(1, 60), min_size=1, max_size=40)
shares = st.floats(0, 1, exclude_min=True)


@given(people, shares)
@example([100, *[1] * 71], 0.29)  # 29 of 100; in floats 0.29 * 100 is less than 29
@example([100, 10, 10, 10], 1e-9)  # 2/4 holds
@example([1_000, 1], 0.01)  # two people are never cut
def test_so_many_stay_as_the_cap_holds_and_no_fewer(counts: list[int], share: float) -> None:
    most = caps.most_each(Counter(counts), share)
    allowed = max(Fraction(str(share)), Fraction(2, len(counts)))

    def holds(num: int) -> bool:
        return num <= allowed * sum(min(count, num) for count in counts)

    assert most == max(num for num in range(int(sum(counts) * allowed) + 2) if holds(num))
    assert most >= 1
    # Who was within the share of what stays lost nothing.
    stays = sum(min(count, most) for count in counts)
    assert all(count > allowed * stays for count in counts if count > most)


def test_cases_by_hand() -> None:
    # 2 of each of nine stay, 18; of 18 + 6 rankings 6 are a quarter.
    assert caps.most_each({2: 9, 20: 1}, 0.25) == 6
    # A fifth is twice an even share of ten people: 4.5 of 18 + 4.5, so 4.
    assert caps.most_each({2: 9, 20: 1}, 0.05) == 4
    # Two thirds of three people: 4 of 6.
    assert caps.most_each({100: 1, 1: 2}, 0.1) == 4
    # Not more than twice the mean of the four, 25: nobody loses anything.
    assert caps.most_each({40: 1, 30: 1, 20: 1, 10: 1}, 0.1) >= 40


async def rank(session: AsyncSession, project: Project, *, split: str = "train", **values: Any) -> Ranking:
    prompt = await make_prompt(session, project, split=split)
    return await make_ranking(session, await make_task(session, prompt, k=2), **values)


async def attack(session: AsyncSession, project: Project) -> tuple[list[uuid.UUID], dict[str, list[uuid.UUID]]]:
    """Nine people rank twice for training and once for validation; one more, now and then between them, ten times as
    often. Returns the honest rankings, and the attacker's by split.
    """
    attacker, crowd = await make_user(session), [await make_user(session) for _ in range(9)]
    honest: list[uuid.UUID] = []
    theirs: dict[str, list[uuid.UUID]] = {"train": [], "validation": []}
    for split in ("train", "train", "validation"):
        for person in [*crowd, None]:
            theirs[split].append((await rank(session, project, split=split, annotator=attacker)).id)
            if person:
                honest.append((await rank(session, project, split=split, annotator=person)).id)
    return honest, theirs


def by_hash(ids: Sequence[uuid.UUID], num: int) -> list[uuid.UUID]:
    return sorted(ids, key=lambda key: hashlib.sha256(key.bytes).digest())[:num]


async def freeze(session: AsyncSession, project: Project, max_share: float | None) -> Dataset:
    return await service.freeze(session, project=project, chosen=DatasetFilter(max_annotator_share=max_share))


async def rows_of(session: AsyncSession, dataset: Dataset) -> list[uuid.UUID]:
    query = select(DatasetRow.position, DatasetRow.ranking_id).where(DatasetRow.dataset_id == dataset.id)
    rows = (await session.execute(query.order_by(DatasetRow.position))).all()
    assert [row.position for row in rows] == list(range(dataset.num_rows))
    return [row.ranking_id for row in rows]


async def test_who_ranks_ten_times_as_much_is_at_most_the_share_and_honest_rankings_stay(
    session: AsyncSession,
) -> None:
    project = await make_project(session)
    honest, theirs = await attack(session, project)
    everything = await freeze(session, project, None)
    assert everything.card["largest_share"] == {"train": 0.5263, "validation": 0.5263}
    dataset = await freeze(session, project, 0.25)
    kept = {*by_hash(theirs["train"], 6), *by_hash(theirs["validation"], 3)}
    rows = await rows_of(session, dataset)
    assert set(rows) == {*honest, *kept}
    assert dataset.card["largest_share"] == {"train": 0.25, "validation": 0.25}
    assert rows == [key for key in await rows_of(session, everything) if key in {*honest, *kept}]
    lines = await pieces.read_rows(session, dataset.id, range(dataset.num_rows))
    assert [str(key) in line.decode() for key, line in zip(rows, lines, strict=True)] == [True] * 36
    left_out = {"num_rankings": 21, "num_annotators": 1}
    found = {name: dataset.counts[name] for name in ("num_rankings", "train", "validation", "left_out")}
    assert found == {"num_rankings": 36, "train": 24, "validation": 12, "left_out": left_out}
    assert dataset.filter == {"splits": ["train", "validation"], "max_annotator_share": 0.25}
    again = await freeze(session, project, 0.25)
    assert await rows_of(session, again) == rows
    assert "left_out" not in everything.counts


@pytest.mark.parametrize(
    ("named", "expected"),
    [({}, 0.25), ({"max_annotator_share": 0.4}, 0.4), ({"max_annotator_share": None}, None)],
    ids=["the project's", "its own", "none"],
)
async def test_over_the_api_the_projects_share_holds_unless_the_filter_names_one(
    client: AsyncClient, session: AsyncSession, named: dict[str, Any], expected: float | None
) -> None:
    project = await make_project(session, max_annotator_share=0.25)
    await attack(session, project)
    await sign_in(client, session, role=Role.TRAINER)
    body = {"project_id": str(project.id), "filter": named}
    made = (await client.post("/api/v1/datasets", json=body)).json()
    assert made["filter"].get("max_annotator_share") == expected
    assert made["counts"]["num_rankings"] == (await freeze(session, project, expected)).num_rows


async def test_what_is_counted_before_is_what_is_frozen(session: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    project = await make_project(session)
    await attack(session, project)
    chosen = DatasetFilter(max_annotator_share=0.25)
    found = await service.count_chosen(session, project.id, chosen)
    counts = (await freeze(session, project, 0.25)).counts
    assert {name: found[name] for name in ("num_rankings", "num_prompts", "num_annotators", "left_out")} == {
        name: counts[name] for name in ("num_rankings", "num_prompts", "num_annotators", "left_out")
    }
    assert found["by_split"] == {"train": 24, "validation": 12}
    monkeypatch.setattr(service, "MOST_COUNTED", 40)
    found = await service.count_chosen(session, project.id, chosen)
    assert (found["num_rankings"], found["left_out"]) == (41, None)


async def test_names_in_imported_files_are_people_and_who_has_none_is_nobody_twice(session: AsyncSession) -> None:
    project = await make_project(session)
    elsewhere: dict[str, Any] = {"source": "import", "lease_id": None, "annotator_id": None}
    eve = [await rank(session, project, annotator_name="Eve", **elsewhere) for _ in range(9)]
    others = [await rank(session, project, annotator_name=name, **elsewhere) for name in ("", "", None, "Ann", None)]
    rows = await rows_of(session, await freeze(session, project, 0.01))
    # A third of six people: 2 of 5 + 2.
    assert set(rows) == {*[ranking.id for ranking in others], *by_hash([ranking.id for ranking in eve], 2)}


async def test_a_pair_of_people_is_never_cut(session: AsyncSession) -> None:
    project = await make_project(session)
    person = await make_user(session)
    for annotator in (person, person, person, await make_user(session)):
        await rank(session, project, annotator=annotator)
    dataset = await freeze(session, project, 0.01)
    assert (dataset.num_rows, dataset.counts["left_out"]) == (4, {"num_rankings": 0, "num_annotators": 0})
    assert dataset.card["largest_share"] == {"train": 0.75}


async def test_a_cap_alone_is_not_why_there_is_nothing(session: AsyncSession) -> None:
    with pytest.raises(service.NothingToFreeze):
        await freeze(session, await make_project(session), 0.5)


async def test_what_is_left_out_is_shown_before_and_after_and_in_every_report(
    client: AsyncClient, session: AsyncSession
) -> None:
    project = await make_project(session, slug="capped", max_annotator_share=0.25)
    await attack(session, project)
    await sign_in(client, session)
    base = "/projects/capped/datasets"
    # The project's own cap stands in the form; whoever empties the field takes everything.
    page = (await client.get(f"{base}/new")).text
    assert 'value="0.25"' in page
    assert "<h2>36 rankings</h2>" in page
    assert "too much of it: 21 rankings of 1 person." in page
    assert "<h2>57 rankings</h2>" in (await client.get(f"{base}/new", params={"max_annotator_share": ""})).text
    refused = await client.post(base, data={"max_annotator_share": "1.5"})
    assert (refused.status_code, "This must be at most 1." in refused.text) == (422, True)
    frozen = await client.post(base, data={"max_annotator_share": "0.25"})
    shown = (await client.get(frozen.headers["location"])).text
    assert "21 rankings of 1 person" in shown
    most = '25.0 % <span class="muted">train</span>, 25.0 % <span class="muted">validation</span>'
    assert f"<dt>The most by one person</dt><dd>{most}</dd>" in shown
    folder = (await client.get(f"{frozen.headers['location']}/download", params={"file": "folder"})).content
    report = json.loads(zipfile.ZipFile(io.BytesIO(folder)).read("report.json"))
    assert report["counts"]["left_out"] == {"num_rankings": 21, "num_annotators": 1}
    client.cookies.set(LANGUAGE_COOKIE, "zh")
    assert "1 人的 21 个排序" in (await client.get(frozen.headers["location"])).text
    client.cookies.delete(LANGUAGE_COOKIE)
    for address in (base, "/projects/capped"):
        page = (await client.get(address)).text
        assert "57 rankings" in page
        assert "Of one person no more than the settings allow." in page
    dataset = await service.get_dataset_by_number(session, project.id, 1)
    card = card_markdown(service.card_of(dataset, project), service.splits_of(dataset))
    assert "Left out, so that no one person is too much of it: 21 rankings, of 1 of the annotators." in card
    assert "The most by one person: 25.0 % of train, 25.0 % of validation." in card


async def test_a_dataset_from_before_says_nothing_of_shares(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session, slug="older")
    await rank(session, project)
    dataset = await freeze(session, project, None)
    card = {name: value for name, value in dataset.card.items() if name != "largest_share"}
    values = {"number": 2, "counts": dataset.counts, "num_rows": 0, "sha256": "0" * 64}
    older = await add(session, Dataset(project_id=project.id, card=card, **values))
    await sign_in(client, session)
    shown = [await client.get(f"/projects/older/datasets/{number}") for number in (1, 2)]
    assert [("The most by one person" in page.text, "Left out" in page.text) for page in shown] == [
        (True, False),
        (False, False),
    ]
    assert "one person" not in card_markdown(service.card_of(older, project), ["train"])


async def test_where_nobody_ranked_nothing_is_left_out(session: AsyncSession) -> None:
    project = await make_project(session, max_annotator_share=0.1)
    found = await service.count_chosen(session, project.id, DatasetFilter(max_annotator_share=0.1))
    assert (found["num_rankings"], found["left_out"]) == (0, {"num_rankings": 0, "num_annotators": 0})
