"""What the trainer's commands share of their options, and what is checked of the files and folders that these name
before anything is loaded: a mistake is said at once, with its option, and not after hours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

REWARD_FILES = ("reward_head.safetensors",)
POLICY_FILES = ("adapter_config.json", "config.json")


def _new_file(path: Path | None) -> Path | None:
    """A file that can be written; `-` is the terminal."""
    if path is not None and str(path) != "-":
        _require_place(path)
    return path


def _new_version(path: Path | None) -> Path | None:
    """A folder that can be written. One that is there gives way to the new one, and so must be a version, too."""
    if path is None:
        return None
    if path.resolve() != Path.cwd() and path.is_dir() and not any(path.iterdir()):
        return path
    if path.exists() and not (path / "manifest.json").is_file():
        raise typer.BadParameter(
            f"{path} exists, and is no version that a training wrote (it has no manifest.json): it would be lost. Name "
            "a new folder."
        )
    _require_place(path)
    return path


def _require_place(path: Path) -> None:
    """BadParameter where nothing can be written at this path."""
    above = path.absolute().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        raise typer.BadParameter(f"{path} can't be written: {above} is no folder.")
    if not os.access(above, os.W_OK):
        raise typer.BadParameter(f"{path} can't be written: this user may not write in {above}.")


def _file_beside(path: Path | None) -> Path | None:
    """A file that can be written into a folder that is there."""
    if path is not None and str(path) != "-" and not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"{path} can't be written: there is no folder {path.parent}.")
    return _new_file(path)


def _policy_folder(path: Path | None) -> Path | None:
    if path is not None and not any((path / name).is_file() for name in POLICY_FILES):
        raise typer.BadParameter(f"{path} is no version of a model: it has neither {' nor '.join(POLICY_FILES)}.")
    return path


def _reward_folder(path: Path | None) -> Path | None:
    if path is not None and not all((path / name).is_file() for name in REWARD_FILES):
        raise typer.BadParameter(
            f"{path} is no reward model: it has no {REWARD_FILES[0]}. `rankloop train reward --out FOLDER` writes one."
        )
    return path


_FILE = {"exists": True, "dir_okay": False, "readable": True}
_FOLDER = {"exists": True, "file_okay": False, "readable": True}

PROMPTS = "JSON lines with `messages` or `prompt`."
RANKINGS = "Rankings as JSON lines: an exported dataset, or the interchange shape."

PromptsArgument = Annotated[Path | None, typer.Argument(help=PROMPTS, **_FILE)]
RankingsArgument = Annotated[Path | None, typer.Argument(help=RANKINGS, **_FILE)]
ConversationsArgument = Annotated[
    Path | None,
    typer.Argument(
        help="JSON lines: `messages` that end with the assistant's turn, or `prompt`, `completion`.", **_FILE
    ),
]
CheckedArgument = Annotated[
    Path | None,
    typer.Argument(help="JSON lines of prompts whose `meta` (or the line itself) has `check`.", **_FILE),
]
NeededPrompts = Annotated[Path, typer.Argument(help=PROMPTS, **_FILE)]
ImportedFile = Annotated[
    Path, typer.Argument(help="JSON lines, a JSON array, CSV, Parquet or text; docs/data.md.", **_FILE)
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="FILE", help="The file, instead of naming it first.", **_FILE)
]
TextsOption = Annotated[
    Path | None,
    typer.Option(help="JSON lines with `text` or `messages` to go on learning, against forgetting (PPO-ptx).", **_FILE),
]
LikedOption = Annotated[
    Path | None,
    typer.Option(
        help="Rankings (JSON lines): before PPO, the policy learns the answer of each task that they prefer to most.",
        **_FILE,
    ),
]
GuardPromptsOption = Annotated[
    Path | None, typer.Option(help="Prompts that only the guard asks. Left out: those of the run.", **_FILE)
]

ModelOption = Annotated[
    str, typer.Option("--model", help="Alias of a model (`pocket`, `smollm2-135m`, or one that you list), or a folder.")
]
BaseOption = Annotated[str | None, typer.Option("--model", help="Base model of a local folder: an alias or a folder.")]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the policy to go on from; default: the model itself.", callback=_policy_folder, **_FOLDER
    ),
]
DrawingPolicyOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the policy that draws; what is trained is the model. Default: the model.",
        callback=_policy_folder,
        **_FOLDER,
    ),
]
ReferenceOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the SFT version that the policy stays near; default: the model itself.",
        callback=_policy_folder,
        **_FOLDER,
    ),
]
RewardOption = Annotated[
    Path,
    typer.Option(help="Folder of a reward model that `train reward` wrote.", callback=_reward_folder, **_FOLDER),
]
StartOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a reward model to go on from (a warm start); default: a fresh one on the model.",
        callback=_reward_folder,
        **_FOLDER,
    ),
]
GuardOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of a second reward model: its best moment is kept; it stops what exploits the first.",
        callback=_reward_folder,
        **_FOLDER,
    ),
]

PolicyOut = Annotated[Path, typer.Option(help="Folder of the new policy.", callback=_new_version)]
RewardOut = Annotated[
    Path | None,
    typer.Option(help="Folder of the reward model. Left out: only measure.", callback=_new_version),
]
CompletionsOut = Annotated[
    Path,
    typer.Option(help="JSON lines that `rankloop import` takes as completions.", callback=_file_beside, dir_okay=False),
]
BestOut = Annotated[
    Path,
    typer.Option(
        help="JSON lines: each prompt with its best answer, and all scores.", callback=_file_beside, dir_okay=False
    ),
]
ExportedFile = Annotated[Path, typer.Argument(help="The file to write.", callback=_file_beside, dir_okay=False)]
NewFolder = Annotated[Path, typer.Argument(help="The folder to write; it must not exist yet.", callback=_new_file)]

ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint beside --out, where there is one.")
]
JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        help="Write the figures to this file; `-` is the terminal.",
        callback=_file_beside,
        dir_okay=False,
        allow_dash=True,
    ),
]
ConfigOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the training; may be given several times."),
]
UrlOption = Annotated[str | None, typer.Option(help="Address of Rankloop.  [env var: RANKLOOP_URL]")]
TokenOption = Annotated[str | None, typer.Option(help="API token.  [env var: RANKLOOP_TOKEN]")]
