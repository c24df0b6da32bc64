"""The address in links that commands print."""

from __future__ import annotations

from pathlib import Path

from app.config import Settings, address_file


def test_links_lead_to_where_rankloop_listens(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.at_known_address().public_url == "http://127.0.0.1:8000"
    address_file(tmp_path).write_text("http://127.0.0.1:8123\n", encoding="utf-8")
    assert settings.at_known_address().public_url == "http://127.0.0.1:8123"


def test_an_address_that_is_set_comes_first(tmp_path: Path) -> None:
    address_file(tmp_path).write_text("http://127.0.0.1:8123", encoding="utf-8")
    settings = Settings(data_dir=tmp_path, public_url="https://rank.example.org")
    assert settings.at_known_address().public_url == "https://rank.example.org"
