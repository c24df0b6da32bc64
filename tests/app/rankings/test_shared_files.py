"""Real files beside the repository: each is taken whole, and as many as its README says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.corpora.service import import_corpus
from app.formats.imports import Kind
from app.formats.sources import FileReader
from app.prompts.adding import import_completions, import_prompts
from app.prompts.importing import import_file
from app.prompts.lines import ImportReport
from app.rankings.importing import import_rankings
from tests.factories import make_project

DATA = Path(__file__).parents[4] / "shared" / "data"
TAKE: dict[Kind, Callable[..., Awaitable[ImportReport]]] = {
    "prompts": import_prompts,
    "completions": import_completions,
    "rankings": import_rankings,
    "corpus": import_corpus,
}


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("prompts_only_en_zh", "prompts", 744),
        ("sft_human_written_en_zh", "corpus", 603),
        ("sft_human_written_en_zh", "completions", 603),
        ("k_oasst_sft1_11samples", "completions", 99 * 11),
        ("k_oasst_9models", "completions", 100 * 9),
        ("k_smollm2_4samples", "completions", 30 * 4),
        ("k_tinyfabulist", "completions", 100 * 10),
        ("rank_oasst_en", "rankings", 212),
        ("pairs_zh_llamafactory", "rankings", 300),
        ("pairs_pandalm_3annotators", "rankings", 3 * 999),
    ],
)
async def test_a_real_file_is_taken_whole(session: AsyncSession, name: str, kind: Kind, expected: int) -> None:
    path = DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"needs the real data {name} beside the repository")
    project = await make_project(session, test_share=0, validation_share=0)

    async def chunks() -> AsyncIterator[bytes]:
        yield path.read_bytes()

    report = await import_file(TAKE[kind], session, chunks(), reader=FileReader(kind), project=project)
    assert (report.num_refused, report.num_unfit) == (0, 0)
    # The same answer by the same model twice is one.
    assert report.taken + report.duplicates == expected
    assert report.taken > 0.9 * expected
