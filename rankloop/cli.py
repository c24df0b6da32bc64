"""The program `rankloop`. It has no command of its own: each package adds its commands by an entry point.

An entry point of the group `rankloop.commands` names a function `register(cli: typer.Typer) -> None`. What is heavy is
imported by a command when it runs, so that `rankloop --help` answers at once and needs no torch.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

from rankloop import __version__

COMMAND_GROUP = "rankloop.commands"
MODULES_OF_TRAINER = {"accelerate", "gguf", "numpy", "peft", "safetensors", "torch", "transformers"}
"""What only the extra `trainer` installs, by the names under which Python imports it."""


def build() -> typer.Typer:
    """The program with the commands of every installed package."""
    cli = typer.Typer(
        name="rankloop",
        help="People rank what a language model answers, a reward model learns from it, PPO improves the model.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    cli.callback()(common_options)
    for entry_point in sorted(entry_points(group=COMMAND_GROUP), key=lambda entry_point: entry_point.name):
        entry_point.load()(cli)
    return cli


def show_version(is_asked: bool) -> None:
    """Print the version and end, before a command is looked for."""
    if is_asked:
        typer.echo(__version__)
        raise typer.Exit


def common_options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options that stand before the command."""


def main() -> None:
    """Run the program; a missing part of the extra `trainer` is told in one line."""
    # The library that fetches models from a hub would tell it about this machine.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        build()()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in MODULES_OF_TRAINER:
            raise
        typer.echo(
            f"This needs {error.name}, which is not installed. Install what sampling and training need:\n"
            "  pip install 'rankloop[trainer]'",
            err=True,
        )
        sys.exit(1)
