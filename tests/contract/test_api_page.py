"""docs/api.md is a program: its snippets run in their order against the real app."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import pytest

from app.accounts.models import Scope
from tests.contract.conftest import House, house, tiny_folder
from tests.trainer.tiny import make_model, make_tokenizer
from trainer.client import Client

__all__ = ["house", "tiny_folder"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.real_commits
def test_every_snippet_of_the_page_runs(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(make_tokenizer(), seed=23).save_pretrained(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKLOOP_URL", house.server.url)
    monkeypatch.setenv("RANKLOOP_TOKEN", house.admin.create_token(name="page", scopes=list(Scope))["token"])
    names: dict[str, object] = {}
    assert len(SNIPPETS) == 8
    for number, snippet in enumerate(SNIPPETS, 1):
        exec(compile(snippet, f"docs/api.md, snippet {number}", "exec"), names)
    cast("Client", names["client"]).close()
    assert len(house.admin.list_versions("support")) == 2
