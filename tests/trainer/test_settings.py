"""The worker's list of models: what may be used, and what a person reads when something is not on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.settings import SettingsError, WorkerSettings


def settings(tmp_path: Path, file: str | None = None, content: str = "") -> WorkerSettings:
    if file is None:
        return WorkerSettings(data_dir=tmp_path / "data")
    (tmp_path / file).write_text(content, encoding="utf-8")
    return WorkerSettings(data_dir=tmp_path / "data", models=tmp_path / file)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKLOOP_URL", "http://example.test")
    monkeypatch.setenv("RANKLOOP_TOKEN", "rl_x")
    monkeypatch.setenv("RANKLOOP_DATA_DIR", "/somewhere")
    found = WorkerSettings()
    assert (found.url, found.token, found.data_dir) == ("http://example.test", "rl_x", Path("/somewhere"))


def test_the_built_in_models_need_no_list(tmp_path: Path) -> None:
    model = settings(tmp_path).find_model("smollm2-135m")
    assert model.folder == tmp_path / "data" / "models" / "smollm2-135m"
    assert model.is_built_in


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("models.json", '{"mine": "weights"}'),
        ("models.toml", 'mine = "weights"'),
        ("models.toml", '[models]\nmine = "weights"'),
    ],
)
def test_a_listed_folder_is_read_relative_to_the_list(tmp_path: Path, file: str, content: str) -> None:
    model = settings(tmp_path, file, content).find_model("mine")
    assert model.folder == tmp_path / "weights"
    assert not model.is_built_in


def test_a_hub_id_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    model = settings(tmp_path, "models.toml", 'mine = "owner/name@v1.0"').find_model("mine")
    assert (model.hub_id, model.revision) == ("owner/name", "v1.0")
    assert model.folder == tmp_path / "data" / "models" / "mine"


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    model = settings(tmp_path, "models.toml", 'mine = "owner/name"').find_model("mine")
    assert (model.folder, model.hub_id) == (tmp_path / "owner" / "name", None)


def test_a_built_in_alias_can_be_given_another_folder(tmp_path: Path) -> None:
    model = settings(tmp_path, "models.toml", 'pocket = "weights"').find_model("pocket")
    assert model.folder == tmp_path / "weights"
    assert not model.is_built_in


def test_an_unlisted_model_is_refused_with_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r'“big”.*pocket, smollm2-135m.*"big" = .*RANKLOOP_MODELS'):
        settings(tmp_path).find_model("big")


@pytest.mark.parametrize("alias", ["../../etc", "/etc/passwd", "https://example.test/x", ""])
def test_a_path_or_an_address_is_no_alias(tmp_path: Path, alias: str) -> None:
    with pytest.raises(SettingsError):
        settings(tmp_path).find_model(alias)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("models.json", "{", "not valid JSON"),
        ("models.toml", "=", "not valid TOML"),
        ("models.json", "[1]", "must hold an object"),
        ("models.json", '{"mine": 3}', "“mine” must name a folder or a hub id"),
        ("models.json", '{"../x": "weights"}', "the alias “../x”"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        settings(tmp_path, file, content).find_model("mine")
    assert file in str(caught.value)


def test_a_list_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"models\.toml, which can't be read: No such file"):
        WorkerSettings(data_dir=tmp_path, models=tmp_path / "models.toml").find_model("mine")
