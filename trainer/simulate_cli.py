"""The command `rankloop simulate`: annotators for a server that runs, or whole rounds on a server of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.client import Client
from trainer.console import JsonOption, TokenOption, UrlOption, one_line_errors, parse_settings, settings_with, show
from trainer.settings import WorkerSettings
from trainer.simulate import Annotators, LoopResult, RunFailed, hire, rank_waiting, run_loop

# What is trained in a simulated loop: a small model with all its weights, on a few hundred rankings a round.
TRAINING: dict[str, dict[str, Any]] = {
    "reward": {},
    "ppo": {"num_episodes": 1024, "learning_rate": 1e-4, "num_epochs": 2},
}
ALL_SCOPES = ("admin", "read", "write")


@dataclass(frozen=True)
class OwnServer:
    """A Rankloop that was started for this simulation, with an admin's token."""

    url: str
    token: str


def register(cli: typer.Typer) -> None:
    """Add the command to the program."""
    cli.command()(simulate)


def simulate(
    project: Annotated[
        str | None, typer.Option(help="Only rank what waits in this project of a running server.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the pocket model, on a server of its own.")] = 3,
    seeds: Annotated[int, typer.Option(min=1, help="How often, each time with another seed.")] = 3,
    annotators: Annotated[int, typer.Option(min=1, help="How many people.")] = 5,
    noise: Annotated[float, typer.Option(min=0, help="How noisy they are: 0 sees the true order.")] = 0.5,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KIND.KEY=VALUE", help="Change a training, e.g. ppo.beta=0.05")
    ] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    json_file: JsonOption = None,
) -> None:
    """Play annotators whose utility is known: on a running server, or for whole rounds that are measured."""
    people = Annotators(num=annotators, noise=noise)
    with one_line_errors():
        training = training_with(settings)
        if project is not None:
            if settings:
                raise ValueError("--set changes the trainings of simulated rounds; with --project, nothing is trained.")
            given = settings_with(url, token)
            show({"num_ranked": rank_project(given, project, people)}, json_file)
            return
        with own_server() as server, Client(server.url, server.token) as client:
            result = run_loop(
                client,
                server.url,
                rounds=rounds,
                seeds=seeds,
                annotators=people,
                training=training,
                say=lambda line: typer.echo(line, err=True),
            )
    report(result, json_file)


def rank_project(settings: WorkerSettings, project: str, people: Annotators) -> int:
    """Rank what waits in a project of a running server; the token must be an admin's."""
    with Client(settings.url, settings.token) as client:
        project_id = client.get_project(project)["id"]
        return rank_waiting(settings.url, hire(client, people, project_id), project_id, people)


def training_with(pairs: list[str] | None) -> dict[str, dict[str, Any]]:
    """The settings of the trainings, changed by `KIND.KEY=VALUE`."""
    training = {kind: dict(values) for kind, values in TRAINING.items()}
    for name, value in parse_settings(pairs).items():
        kind, _, key = name.partition(".")
        if kind not in training or not key:
            raise ValueError(f"--set {name}: begin with reward. or ppo.")
        training[kind][key] = value
    return training


@contextmanager
def own_server() -> Iterator[OwnServer]:
    """`rankloop up` in a folder of its own, which goes with the simulation; models come from the usual data folder."""
    with tempfile.TemporaryDirectory(prefix="rankloop-simulate-", ignore_cleanup_errors=True) as folder:
        data = Path(folder)
        # The database's own user has to reach its folder when root starts this.
        data.chmod(0o755)
        environment = os.environ | {"RANKLOOP_MODELS": str(list_pocket(data))}
        for name in ("DATABASE_URL", "RANKLOOP_DATABASE_URL"):
            environment.pop(name, None)
        command = [*program(), "up", "--no-demo", "--json", "--port", "0", "--data-dir", folder]
        with (data / "up.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RunFailed(f"Rankloop did not start: {(data / 'up.log').read_text(errors='replace')[-2000:]}")
            yield OwnServer(json.loads(line)["address"], make_token(folder, environment))
        finally:
            process.terminate()
            process.wait()


def list_pocket(data: Path) -> Path:
    """A worker's list with the pocket model of the usual data folder, which is built there if it is missing."""
    from trainer.artifacts import base_folder

    folder = base_folder("pocket", WorkerSettings(), lambda message, _: typer.echo(message, err=True)).resolve()
    listed = data / "models.json"
    listed.write_text(json.dumps({"pocket": str(folder)}), encoding="utf-8")
    return listed


def make_token(folder: str, environment: dict[str, str]) -> str:
    """An admin's token, made as people make one."""
    scopes = [part for scope in ALL_SCOPES for part in ("--scope", scope)]
    command = [*program(), "token", "create", "admin@localhost", *scopes, "--data-dir", folder]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def program() -> list[str]:
    """This very program, with this Python."""
    return [sys.executable, "-m", "rankloop"]


def report(result: LoopResult, json_file: Path | None) -> None:
    """The figures as a table, and as JSON where that is asked for."""
    if json_file is not None:
        show(result.as_json(), json_file)
    if str(json_file) == "-":
        return
    names = ["SFT", *(f"round {number}" for number in range(1, result.rounds + 1))]
    for name, value in zip(names, result.by_round, strict=True):
        typer.echo(f"{name:<10} utility {value:7.3f}")
    gain, wins = result.utility["gain"], result.win_rate
    typer.echo(f"gain       {gain.mean:+.3f}  95 % interval {gain.low:+.3f} to {gain.high:+.3f}")
    typer.echo(f"win rate   {wins.mean:.1%}  95 % interval {wins.low:.1%} to {wins.high:.1%}, against the SFT policy")
    typer.echo(
        f"KL {result.kl:.2f} nats an answer; {result.num_prompts} held-out prompts, {result.seeds} seeds, "
        f"{result.num_rankings} rankings, {result.seconds:.0f} s"
    )
