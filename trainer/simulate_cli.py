"""The command `rankloop simulate`: annotators for a server that runs, or whole rounds on a server of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.client import Client, ModelReference
from trainer.console import one_line_errors, parse_settings, settings_with, show
from trainer.options import JsonOption, TokenOption, UrlOption
from trainer.settings import WorkerSettings
from trainer.simulate import NUM_PROMPTS, Annotators, Loop, RunFailed, SeedMarks, hire, rank_waiting, run_loop
from trainer.simulate_figures import Interval, LoopFigures, figures_of

if TYPE_CHECKING:
    from trainer.weights import ModelSource

# What is trained in a simulated loop: a small model with all its weights, on a few hundred rankings a round.
PPO: dict[str, Any] = {
    # The reward stops rising after about 2,000 episodes from the SFT policy; with half of them one seed in three lost.
    "num_episodes": 2048,
    "episodes_per_batch": 128,
    "minibatch_size": 32,
    "learning_rate": 4e-4,
    "num_epochs": 2,
    "beta": 0.05,
}
LIKED: dict[str, Any] = {
    # What people liked best has no error of the reward model in it. PPO begins with that, and goes on learning it: else
    # what is asked seldom gets worse.
    "liked": {"learning_rate": 1e-3, "epochs": 3, "conversations_per_batch": 16},
    "ptx_coefficient": 0.1,
    "ptx_examples_per_episode": 1,
    # Of 16: ten that learn little are too many.
    "warmup_iterations": 2,
}
TRAINING: dict[str, dict[str, Any]] = {
    # Twice in the first round, which has nothing else to go on; then once: what is old was read before.
    "reward": {
        "learning_rate": 3e-3,
        "epochs": 2,
        "warm_epochs": 1,
        "rankings_per_batch": 12,
        # What it knows of writing helps it judge: its head reads how likely it finds an answer, too.
        "text_coefficient": 1.0,
        "likelihood_weight": 1.0,
        # Short answers of a small model: a whole batch at once, for a fifth less time than with 512.
        "tokens_per_forward": 2048,
    },
    "ppo": PPO | LIKED | {"tokens_per_forward": 4096},
}
ALL_SCOPES = ("admin", "read", "write")


@dataclass(frozen=True)
class OwnServer:
    """A Rankloop that was started for this simulation, with an admin's token and its folder."""

    url: str
    token: str
    data_dir: Path


def register(cli: typer.Typer) -> None:
    """Add the command to the program."""
    cli.command()(simulate)


def simulate(
    project: Annotated[
        str | None, typer.Option(help="Only rank what waits in this project of a running server.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the pocket model, on a server of its own.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="How often, each time with another seed.")] = 3,
    prompts: Annotated[
        int,
        typer.Option(min=20, help="On so many held-out prompts, of which a fifth only measures, and familiar ones."),
    ] = NUM_PROMPTS,
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
        started = time.monotonic()
        with own_server() as server, Client(server.url, server.token) as client:
            loop = Loop(
                client=client,
                url=server.url,
                tokens=hire(client, people),
                annotators=people,
                training=training,
                find_model=lambda reference: find_model(reference, client, server.data_dir),
                say=lambda line: typer.echo(line, err=True),
                num_prompts=prompts,
            )
            stories: list[SeedMarks] = []
            for story in run_loop(loop, rounds=rounds, seeds=seeds):
                stories.append(story)
                # A seed takes long: what is known is written down at once.
                write(figures_of(stories, seconds=time.monotonic() - started), json_file)
    # The server has ended, so that its processor time is known, too.
    report(figures_of(stories, seconds=time.monotonic() - started, cpu_seconds=sum(os.times()[:4])), json_file)


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
    """`server_in` a folder of its own, which goes with the simulation."""
    with tempfile.TemporaryDirectory(prefix="rankloop-simulate-", ignore_cleanup_errors=True) as folder:
        # Who ends this command ends its server, too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        with server_in(Path(folder)) as server:
            yield server


@contextmanager
def server_in(folder: Path) -> Iterator[OwnServer]:
    """`rankloop up` in a folder; the pocket model comes from the usual data folder.

    Raises:
        RunFailed: it did not start.
    """
    # The database's own user has to reach its folder when root starts this.
    folder.chmod(0o755)
    environment = server_environment(list_pocket(folder))
    command = [*program(), "up", "--no-demo", "--json", "--port", "0", "--data-dir", str(folder)]
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RunFailed(f"Rankloop did not start: {(folder / 'up.log').read_text(errors='replace')[-2000:]}")
        yield OwnServer(json.loads(line)["address"], make_token(str(folder), environment), folder)
    finally:
        process.terminate()
        process.wait()


def server_environment(models: Path) -> dict[str, str]:
    """This program's, for a server with a database of its own and this list of models.

    On a CPU its worker trains in two processes, unless the environment says otherwise: for a model this small that
    takes a third less time than two threads do.
    """
    environment = os.environ | {"RANKLOOP_MODELS": str(models)}
    for name in ("DATABASE_URL", "RANKLOOP_DATABASE_URL"):
        environment.pop(name, None)
    if WorkerSettings().torch_device() == "cpu":
        num_cores = os.cpu_count() or 1
        num_processes = min(2, num_cores)
        shared = {"RANKLOOP_PROCESSES": num_processes, "RANKLOOP_THREADS": num_cores // num_processes}
        environment = {name: str(value) for name, value in shared.items()} | environment
    return environment


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


def find_model(reference: ModelReference, client: Client, data_dir: Path) -> ModelSource:
    """A version's weights, where the own server's worker keeps them; the pocket model from the usual data folder."""
    from trainer.artifacts import base_folder, version_folder
    from trainer.weights import ModelSource

    settings = WorkerSettings()
    version = version_folder(reference, client, settings.model_copy(update={"data_dir": data_dir}))
    return ModelSource(base_folder("pocket", settings, lambda *_: None), version, reference["alias"])


def write(figures: LoopFigures, json_file: Path | None) -> None:
    """The figures so far, where a file was named."""
    if json_file is not None and str(json_file) != "-":
        json_file.write_text(json.dumps(figures.as_json(), indent=2) + "\n", encoding="utf-8")


def report(figures: LoopFigures, json_file: Path | None) -> None:
    """The figures as a table, and as JSON where that is asked for."""
    if json_file is not None:
        show(figures.as_json(), json_file)
    if str(json_file) == "-":
        return
    for line in lines_of(figures):
        typer.echo(line)


def lines_of(figures: LoopFigures) -> Iterator[str]:
    """The table: a line a round, the three win rates, and what they come to."""
    yield "          utility  win rate     KL   reward model   truth   (right on held-out pairs)"
    yield f"SFT       {figures.sft_utility:7.3f}     50.0%   0.00"
    for number, found in enumerate(figures.rounds, start=1):
        learned = f"{found.reward_accuracy:12.1%}  {found.true_accuracy:6.1%}"
        yield f"round {number:<4}{found.utility:7.3f}  {found.win_rate:8.1%}  {found.kl:5.2f}   {learned}"
    for name in ("win_rate", "ceiling", "best_of_16"):
        share: Interval = getattr(figures, name)
        interval = f"95 % interval {share.low:.1%} to {share.high:.1%}"
        exact = f"{figures.exact[name]:.1%} where any difference counts"
        yield f"{name.replace('_', ' '):<11}{share.mean:6.1%}  {interval}; {exact}"
    yield f"{figures.room:.1%} of the room to the ceiling, at {figures.rounds[-1].kl:.2f} nats an answer"
    yield f"the last reward model has {figures.reward_share:.1%} of the accuracy of the true utilities"
    counts = f"{figures.num_prompts} held-out prompts, {figures.seeds} seeds, {figures.num_rankings} rankings"
    cpu = f" ({figures.cpu_seconds:.0f} s of processor time)" if figures.cpu_seconds else ""
    yield f"{counts}, {figures.seconds:.0f} s{cpu}"
