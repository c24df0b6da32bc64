"""The program itself: its commands come from both packages, and what is missing is told in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from rankloop import __version__, cli


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rankloop", *arguments], capture_output=True, text=True, check=False)


def test_help_lists_commands_of_both_packages() -> None:
    answer = run("--help")
    assert answer.returncode == 0
    for command in ("up", "serve", "migrate", "worker", "model"):
        assert f"\n  {command} " in answer.stdout


def test_version_is_printed() -> None:
    assert run("--version").stdout == f"{__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from rankloop.cli import build; build(); "
        "print(sorted({'torch', 'transformers', 'fastapi', 'uvicorn', 'alembic'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_it_can_be_built_again() -> None:
    once, again = (
        [
            len(group.typer_instance.registered_commands)
            for group in cli.build().registered_groups
            if group.typer_instance
        ]
        for _ in range(2)
    )
    assert once == again
    assert len(once) > 3


def test_a_missing_trainer_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_torch() -> typer.Typer:
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")

    monkeypatch.setattr(cli, "build", without_torch)
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert "pip install 'rankloop[trainer]'" in capsys.readouterr().err


def test_a_missing_module_of_our_own_is_a_bug_and_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> typer.Typer:
        raise ModuleNotFoundError("No module named 'app.nonsense'", name="app.nonsense")

    monkeypatch.setattr(cli, "build", broken)
    with pytest.raises(ModuleNotFoundError):
        cli.main()
