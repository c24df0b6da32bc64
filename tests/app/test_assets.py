"""Static files: an address that changes with the content, for scripts that are imported too."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from httpx2 import AsyncClient

from app import assets

VENDOR = assets.FOLDER / "vendor"
SCRIPTS = sorted(path for path in assets.FOLDER.rglob("*.js") if VENDOR not in path.parents)
IMPORT = re.compile(
    r"""^(?:import|export)\b[^=;]*?\bfrom ["']([^"']+)["']|\bimport\(?\s*["']([^"']+)["']""", re.MULTILINE
)


async def test_what_has_its_hash_in_the_address_is_kept_for_ever(client: AsyncClient) -> None:
    answer = await client.get(assets.url("rank/main.js"))
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    again = await client.get(assets.url("rank/main.js"), headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
    assert again.headers["cache-control"] == answer.headers["cache-control"]


async def test_a_page_of_an_older_release_finds_its_files_but_keeps_none(client: AsyncClient) -> None:
    answer = await client.get("/static/000000000000/app.js")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache")


@pytest.mark.parametrize("path", ["app.js", "", "0123", "0123/", "0123/none.js", "0123/rank", "0123/..%2f..%2fLICENSE"])
async def test_there_is_nothing_else(client: AsyncClient, path: str) -> None:
    assert (await client.get(f"/static/{path}")).status_code == 404


def test_the_version_changes_with_any_content_and_any_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    seen = set()
    (tmp_path / "rank").mkdir()
    for name, text in (("a.js", "1"), ("a.js", "2"), ("rank/b.js", "1"), ("rank/b.js", "2")):
        (tmp_path / name).write_text(text)
        seen.add(assets.version.__wrapped__())
    assert len(seen) == 4


def test_a_page_cannot_name_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        assets.url("rank/none.js")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_by_relative_addresses_what_is_there(script: Path) -> None:
    """Anything else would leave the hash: an address of the root, another origin, a bare name."""
    for found in IMPORT.finditer(script.read_text()):
        name = found[1] or found[2]
        assert name.startswith(("./", "../")), name
        assert (script.parent / name).resolve().is_file(), name
        assert "?" not in name


def test_other_peoples_files_are_what_the_manifest_says() -> None:
    manifest = json.loads((VENDOR / "manifest.json").read_text())
    named = {f"{name}/{path}": sha256 for name, part in manifest.items() for path, sha256 in part["files"].items()}
    found = {path.relative_to(VENDOR).as_posix(): path for path in VENDOR.glob("*/**/*") if path.is_file()}
    assert {path: hashlib.sha256(file.read_bytes()).hexdigest() for path, file in found.items()} == named
    for name, part in manifest.items():
        assert part["licence"] in {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "OFL-1.1"}
        assert (VENDOR / name / "LICENSE.txt").is_file()


@pytest.mark.parametrize("path", [assets.url("app.js"), assets.url("app.css"), "/sign-in"])
async def test_pages_scripts_and_styles_are_compressed(client: AsyncClient, path: str) -> None:
    answer = await client.get(path, headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert "Accept-Encoding" in answer.headers["vary"]
    plain = await client.get(path, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers


@pytest.mark.parametrize("path", ["/api/v1/openapi.json", assets.url("vendor/stix-math/stix-math.woff2")])
async def test_json_and_what_is_compressed_already_stay_as_they_are(client: AsyncClient, path: str) -> None:
    answer = await client.get(path, headers={"accept-encoding": "gzip"})
    assert answer.status_code == 200
    assert "content-encoding" not in answer.headers


def test_the_style_sheet_knows_no_left_and_right() -> None:
    """Start and end instead, so that a language that runs from the right needs no sheet of its own."""
    rule = re.compile(
        r"(?:margin|padding|border)-(?:left|right)|(?:text-align|float): (?:left|right)|[ {;](?:left|right):"
    )
    assert rule.findall((assets.FOLDER / "app.css").read_text()) == []
