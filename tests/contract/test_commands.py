"""The commands that speak to a running Rankloop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.contract.conftest import House, run_rankloop

pytestmark = pytest.mark.real_commits


def address(house: House) -> list[str]:
    return ["--project", "tiny", "--url", house.server.url, "--token", house.admin_token]


def test_prompts_are_imported_from_a_file(house: House, tmp_path: Path) -> None:
    project = house.make_project()
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"messages": [{"role": "user", "content": "b"}]}\n')
    result = run_rankloop(house, "import", "prompts", str(tmp_path / "prompts.jsonl"), *address(house), "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["taken"] == 2
    assert len(list(house.admin.list_prompts(project["id"]))) == 2


def test_a_dry_run_stores_nothing(house: House, tmp_path: Path) -> None:
    project = house.make_project()
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    result = run_rankloop(house, "import", "prompts", str(tmp_path / "prompts.jsonl"), *address(house), "--dry-run")
    assert result.exit_code == 0, result.output
    assert list(house.admin.list_prompts(project["id"])) == []


def test_a_malformed_line_is_named_and_nothing_is_stored(house: House, tmp_path: Path) -> None:
    project = house.make_project()
    (tmp_path / "prompts.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": \n{"promt": "c"}\n\xff\xfe\n')
    result = run_rankloop(house, "import", "prompts", str(tmp_path / "prompts.jsonl"), *address(house))
    assert result.exit_code == 1
    for line in ("line 2", "line 3: promt", "line 4"):
        assert line in result.stderr
    assert list(house.admin.list_prompts(project["id"])) == []


def test_good_lines_are_taken_when_that_is_asked_for(house: House, tmp_path: Path) -> None:
    project = house.make_project()
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": 3\n')
    result = run_rankloop(house, "import", "prompts", str(tmp_path / "prompts.jsonl"), *address(house), "--partial")
    assert result.exit_code == 0, result.output
    assert "line 2" in result.stderr
    assert len(list(house.admin.list_prompts(project["id"]))) == 1


def test_a_corpus_is_imported_under_the_name_of_its_file_and_read_back(house: House, tmp_path: Path) -> None:
    project = house.make_project()
    (tmp_path / "web.jsonl").write_text('{"text": "a b"}\n{"text": "c"}\n')
    result = run_rankloop(house, "import", "corpus", str(tmp_path / "web.jsonl"), *address(house))
    assert result.exit_code == 0, result.output
    (corpus,) = house.admin.list_corpora(project["id"])
    assert (corpus["name"], corpus["num_rows"]) == ("web.jsonl", 2)
    rows = house.admin.corpus_rows(corpus["id"], sha256=corpus["sha256"])
    assert list(rows) == [{"text": "a b"}, {"text": "c"}]


def test_completions_and_rankings_are_imported(house: House, tmp_path: Path) -> None:
    project = house.make_project()
    row = {
        "id": "r1",
        "messages": [{"role": "user", "content": "a"}],
        "responses": [{"id": "x", "text": "a b"}, {"id": "y", "text": "b"}],
        "annotations": [{"annotator": "p1", "ranks": {"x": 1, "y": 2}}],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    for kind in ("completions", "rankings"):
        result = run_rankloop(house, "import", kind, str(tmp_path / "rows.jsonl"), *address(house))
        assert result.exit_code == 0, result.output
    assert len(house.admin.completions(project["id"])) == 2
    assert len(house.admin.rankings(project["id"])) == 1


def test_a_file_that_is_missing_is_named(house: House, tmp_path: Path) -> None:
    result = run_rankloop(house, "import", "prompts", str(tmp_path / "nowhere.jsonl"), *address(house))
    assert result.exit_code == 2
    assert "nowhere.jsonl" in result.stderr


def test_a_project_that_does_not_exist_is_said(house: House, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    result = run_rankloop(house, "import", "prompts", str(tmp_path / "prompts.jsonl"), *address(house))
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_dataset_is_exported_in_a_trainers_form(house: House, tmp_path: Path) -> None:
    project = house.make_project()
    line = {"prompt": "2 + 2?", "completions": ["4", "5", "6"], "order": [["0"], ["1", "2"]]}
    (tmp_path / "rankings.jsonl").write_text(json.dumps(line) + "\n")
    result = run_rankloop(house, "import", "rankings", str(tmp_path / "rankings.jsonl"), *address(house))
    assert result.exit_code == 0, result.output
    assert run_rankloop(house, "export", str(tmp_path / "none"), *address(house)).exit_code == 1
    house.admin.create_dataset(project_id=project["id"])
    out = tmp_path / "pairs.jsonl"
    result = run_rankloop(house, "export", str(out), *address(house), "--format", "pairs", "--set", "style=standard")
    assert result.exit_code == 0, result.output
    assert "Ties are left out." in result.output
    pairs = [json.loads(row) for row in out.read_text().splitlines()]
    assert pairs == [{"prompt": "2 + 2?", "chosen": "4", "rejected": other} for other in ("5", "6")]
