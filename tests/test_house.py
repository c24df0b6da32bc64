"""The files that are not code keep their promises: packaging, commands, containers, changelog."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import rankloop
from app.config import Settings

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())


def canonical(requirement: str) -> str:
    """`SQLAlchemy[asyncio]>=2.1` is `sqlalchemy`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def test_every_dependency_is_pinned_to_a_plain_version() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["trainer"], *extras["dev"]]
    assert [name for name in wanted if canonical(name) not in PINS] == []
    # A local version such as +cpu exists in one place only.
    assert [name for name, version in PINS.items() if not re.fullmatch(r"[\d.]+", version)] == []


def test_base_install_has_no_torch() -> None:
    names = {canonical(name) for name in PROJECT["project"]["dependencies"]}
    assert names.isdisjoint({"torch", "transformers", "peft", "accelerate", "scipy", "safetensors", "gguf"})


def test_version_is_the_same_everywhere() -> None:
    assert PROJECT["project"]["version"] == rankloop.__version__


def test_licence_is_the_whole_apache_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:6] == ["Apache", "License", "Version", "2.0,", "January", "2004"]
    assert "END OF TERMS AND CONDITIONS" in text
    assert "limitations under the License." in text


def test_changelog_has_versions_and_three_kinds_of_lines() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    assert {line for line in lines if line.startswith("### ")} <= {"### Added", "### Changed", "### Fixed"}
    assert all(
        re.fullmatch(r"## (Unreleased|\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\))", line) for line in lines if line[:3] == "## "
    )
    assert all(line.endswith((".", ":")) for line, after in pairwise(lines) if line[:2] == "* " and after[:2] != "  ")


def test_ci_runs_make_test_and_nothing_else() -> None:
    script = ROOT / ".ci/run"
    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert os.access(script, os.X_OK)
    assert commands == ['cd "$(dirname "$0")/.." && exec make test']


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    answer = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z-]+) ", answer, re.MULTILINE)) == phony


def test_make_test_checks_everything() -> None:
    plan = subprocess.run(["make", "--dry-run", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for check in ("ruff format --check .", "ruff check .", "bin/mypy", "-m pytest"):
        assert check in plan


def test_make_lets_python_keep_what_it_compiles() -> None:
    # Told not to name the folder, as it does where make runs these tests.
    command = ["make", "--no-print-directory", "--eval", "told: ; @echo $${PYTHONDONTWRITEBYTECODE-nothing}", "told"]
    told = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True, check=True)
    assert done.stdout == "nothing\n"


@pytest.mark.parametrize("name", ["db", "web", "worker", "worker-gpu"])
def test_every_lasting_service_has_a_health_check_and_comes_back(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"


def test_no_service_has_a_default_secret() -> None:
    secrets = {
        (service, name): value
        for service, body in COMPOSE["services"].items()
        for name, value in body["environment"].items()
        if re.search("PASSWORD|TOKEN|SECRET|KEY", name)
    }
    assert ("db", "POSTGRES_PASSWORD") in secrets
    # `${NAME:?…}` stops without a value, `${NAME:-}` is empty without one; anything else would be a default.
    assert [key for key, value in secrets.items() if not re.fullmatch(r"\$\{[A-Z_]+(:\?[^}]+|:-)\}", value)] == []
    assert not any(
        re.search(r"//[^/]*:[^/]*@", str(value))
        for body in COMPOSE["services"].values()
        for value in body["environment"].values()
    )


def test_every_setting_of_the_app_can_be_made_in_the_file_env() -> None:
    """A setting that compose does not pass on is not there, and one that it passes on empty must not break the app."""
    given = COMPOSE["services"]["web"]["environment"]
    # Where things lie is the image's and the compose file's own.
    own = {"RANKLOOP_DATA_DIR", "RANKLOOP_DATABASE_URL"}
    wanted = {f"RANKLOOP_{name}".upper(): field.default for name, field in Settings.model_fields.items()}
    assert wanted.keys() - given.keys() == own
    plain = {name: re.fullmatch(r"\$\{(\w+):-(.*)\}", str(value)) for name, value in given.items()}
    passed = {name: found for name, found in plain.items() if found}
    assert given.keys() - passed.keys() == {"DATABASE_URL", "PGPASSWORD", "RANKLOOP_LOG_FORMAT", "RANKLOOP_LOG_LEVEL"}
    assert all(found[1] == name for name, found in passed.items())
    defaults = {name: found[2] for name, found in passed.items()}
    # What uvicorn believes a proxy's headers from, when nothing is said.
    assert defaults.pop("FORWARDED_ALLOW_IPS") == "127.0.0.1"
    assert defaults == {name: str(wanted[name]) for name in defaults}


def test_the_database_quotes_no_row_in_its_log() -> None:
    settings = COMPOSE["services"]["db"]["command"]
    assert settings[0] == "postgres"
    assert settings[settings.index("log_error_verbosity=terse") - 1] == "-c"


def test_web_waits_for_a_migrated_database() -> None:
    conditions = {name: entry["condition"] for name, entry in COMPOSE["services"]["web"]["depends_on"].items()}
    assert conditions == {"db": "service_healthy", "migrate": "service_completed_successfully"}
    assert COMPOSE["services"]["migrate"]["command"] == ["rankloop", "migrate"]


def test_gpu_worker_is_a_profile_that_reserves_a_device() -> None:
    worker = COMPOSE["services"]["worker-gpu"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert worker["profiles"] == ["gpu"]
    assert device["capabilities"] == ["gpu"]


def test_web_listens_to_this_machine_only_unless_told_otherwise() -> None:
    assert COMPOSE["services"]["web"]["ports"] == ["${RANKLOOP_LISTEN:-127.0.0.1:8000}:8000"]


def test_images_are_built_from_stages_that_exist_and_never_run_as_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    parents = {words[3]: words[1] for line in lines if (words := line.split()) and words[0] == "FROM"}
    for service in COMPOSE["services"].values():
        if "build" in service:
            assert parents[service["build"]["target"]] == "runtime"
    start = lines.index("FROM python:3.12-slim AS runtime")
    users = [line for line in lines[start:] if line.startswith("USER")]
    assert users == ["USER rankloop"]


def test_the_image_of_the_pages_can_read_and_write_the_parquet_that_they_offer() -> None:
    assert "RUN pip install -c constraints.txt '.[parquet]'" in (ROOT / "Dockerfile").read_text().splitlines()


def test_images_hold_what_git_holds_and_no_data() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    let_in = {line[1:] for line in lines if line[0] == "!"}
    assert lines[0] == "*"
    packages = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= let_in
    assert let_in.isdisjoint({".data", ".env", ".git", ".venv"})
