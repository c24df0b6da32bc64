"""The trainer's commands of the program `rankloop`. Torch is imported by the commands that need it, when they run."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NoReturn, Self

import typer

from trainer.reporting import Level
from trainer.settings import SettingsError, WorkerSettings

if TYPE_CHECKING:
    from trainer.models import ModelSource
    from trainer.sampling import Sampler

model_cli = typer.Typer(help="Models: fetch a base model, export a trained version.", no_args_is_help=True)
train_cli = typer.Typer(help="Train on files, without a server.", no_args_is_help=True)

CHUNK_BYTES = 256 * 1024
PATIENCE_SECONDS = 5.0
"""How long a person waits for a Rankloop that does not answer."""

ModelOption = Annotated[
    str, typer.Option("--model", help="Alias of a model (`pocket`, `smollm2-135m`, or one that you list), or a folder.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint beside --out, where there is one.")
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file; `-` is the terminal.")]
ConfigOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the training; may be given several times."),
]
UrlOption = Annotated[str | None, typer.Option(help="Address of Rankloop.  [env var: RANKLOOP_URL]")]
TokenOption = Annotated[str | None, typer.Option(help="API token.  [env var: RANKLOOP_TOKEN]")]


class ImportKind(StrEnum):
    """What can be brought in."""

    PROMPTS = "prompts"
    COMPLETIONS = "completions"
    RANKINGS = "rankings"
    CORPUS = "corpus"


def register(cli: typer.Typer) -> None:
    """Add the trainer's commands to the program."""
    cli.command()(worker)
    cli.command()(sample)
    cli.command("import")(import_file)
    cli.command("export")(export_file)
    # Imported here, because it needs what the commands share.
    from trainer import alternatives_cli

    alternatives_cli.register(cli, train_cli)
    cli.add_typer(train_cli, name="train")
    cli.add_typer(model_cli, name="model")


def worker(
    once: Annotated[bool, typer.Option("--once", help="End after one run, or when none waits.")] = False,
    url: UrlOption = None,
    token: TokenOption = None,
    name: Annotated[str, typer.Option(help="How runs name this worker; default: host and process.")] = "",
) -> None:
    """Do the runs that wait at Rankloop: sample, train reward models and policies. Ctrl+C hands the run back."""
    from trainer.client import Client, Retries
    from trainer.worker import DELIVERY_PATIENCE_SECONDS, Worker, stop_on_signals

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    settings = settings_with(url, token)
    stopping = threading.Event()
    stop_on_signals(stopping)
    with one_line_errors():
        settings.listed_models()
        retries = Retries(DELIVERY_PATIENCE_SECONDS, stopping.wait)
        with Client(settings.url, settings.token, retries=retries) as client:
            made = Worker(client, settings, stopping, name)
            if once:
                made.run_once()
            else:
                made.run_forever()


def import_file(
    kind: Annotated[ImportKind, typer.Argument(help="What the file holds.")],
    file: Annotated[Path, typer.Argument(help="JSON lines, a JSON array, CSV, Parquet or text; docs/data.md.")],
    project: Annotated[str, typer.Option(help="Short name or id of the project.")],
    format: Annotated[str, typer.Option(help="How it is written; `auto` looks at it.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Store nothing; say what would be taken.")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Take the good lines where others are refused.")] = False,
    url: UrlOption = None,
    token: TokenOption = None,
    json_file: JsonOption = None,
) -> None:
    """Bring prompts, ready completions, rankings that were made elsewhere, or a corpus into a project."""
    from trainer.client import ApiError, Client, Retries

    settings = settings_with(url, token)
    noun = "corpora" if kind == ImportKind.CORPUS else kind.value
    name = file.name if kind == ImportKind.CORPUS else ""
    written = "text" if format == "auto" and file.suffix == ".txt" else format
    with one_line_errors(), Client(settings.url, settings.token, retries=Retries(PATIENCE_SECONDS)) as client:
        try:
            size = file.stat().st_size
            with file.open("rb") as stream, bar_of_bytes(size) as bar:
                chunks = pieces(stream, bar.update)
                report = client.import_file(
                    project, noun, chunks, name=name, format=written, dry_run=dry_run, partial=partial
                )
        except ApiError as error:
            for problem in error.errors:
                typer.echo(f"{problem['field']}: {problem['rule']}", err=True)
            raise
    for refused in report["refused"]:
        typer.echo(f"line {refused['line']}: {refused['field']}: {refused['rule']}", err=True)
    show({name: value for name, value in report.items() if name not in ("refused", "preview")}, json_file)


def bar_of_bytes(total: int | None) -> Any:
    """A bar that counts bytes, on a terminal only."""
    from tqdm import tqdm

    return tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=None)


def pieces(stream: BinaryIO, progress: Callable[[int], object]) -> Iterator[bytes]:
    """A file in pieces; `progress` is told of each."""
    while piece := stream.read(CHUNK_BYTES):
        yield piece
        progress(len(piece))


def export_file(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    project: Annotated[str, typer.Option(help="Short name or id of the project.")],
    dataset: Annotated[int | None, typer.Option(help="Number of the dataset; default: the newest.")] = None,
    format: Annotated[str, typer.Option(help="What a record is: rankings, pairs, groups, kto, sft, hh …")] = "rankings",
    file: Annotated[str, typer.Option(help="jsonl, csv, parquet, or folder (a zip for `load_dataset`).")] = "jsonl",
    choices: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Another choice of docs/data.md: split, style, ties, margin …"
        ),
    ] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    json_file: JsonOption = None,
) -> None:
    """Write a dataset as a file that trainers read, and say what its format can't hold."""
    from trainer.client import Client, Retries

    settings = settings_with(url, token)
    with one_line_errors(), Client(settings.url, settings.token, retries=Retries(PATIENCE_SECONDS)) as client:
        found = next((one for one in client.list_datasets(project) if dataset in (None, one["number"])), None)
        if found is None:
            refuse(f"{project} has no dataset {'yet' if dataset is None else dataset}.")
        chosen = {"format": format, "file": file, **dict(choice.partition("=")[::2] for choice in choices or [])}
        report = client.export_report(found["id"], **chosen)
        with bar_of_bytes(None) as bar:
            client.export_dataset(found["id"], out, progress=bar.update, **chosen)
    for sentence in report["not_held"]:
        typer.echo(sentence, err=True)
    show({"file": str(out), "dataset": found["number"], "num_bytes": out.stat().st_size, **report["counts"]}, json_file)


def sample(
    prompts: Annotated[Path, typer.Argument(help="JSON lines with `messages` or `prompt`.")],
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="JSON lines that `rankloop import` takes as completions.")],
    k: Annotated[int, typer.Option(min=1, max=9, help="Different completions for each prompt.")] = 4,
    temperature: Annotated[float, typer.Option(help="The logits are divided by it.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Draw from the smallest set of tokens with this probability.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="A longer completion is cut.")] = 128,
    seed: Annotated[int, typer.Option(help="The same seed gives the same completions.")] = 17,
    json_file: JsonOption = None,
) -> None:
    """Draw K different completions for every prompt of a file."""
    from tqdm import tqdm

    with one_line_errors():
        from trainer.sampling import Prompt, SamplingSettings

        settings = SamplingSettings(temperature, top_p, max_new_tokens, seed)
        questions = {prompt["id"]: prompt for prompt in read_prompts(prompts)}
        sampler = _make_sampler(model)
        waiting = [Prompt(name, prompt["messages"]) for name, prompt in questions.items()]
        figures = {"num_prompts": 0, "num_completions": 0, "num_duplicates": 0, "num_refused": 0}
        with out.open("w", encoding="utf-8") as file, tqdm(total=len(waiting), unit="prompt") as bar:
            for sampled in sampler.sample(waiting, k=k, settings=settings):
                bar.update()
                if sampled.refusal is not None:
                    figures["num_refused"] += 1
                    bar.write(sampled.refusal, file=sys.stderr)
                    continue
                figures["num_prompts"] += 1
                figures["num_completions"] += len(sampled.completions)
                figures["num_duplicates"] += sampled.num_duplicates
                answers = [completion.to_json() for completion in sampled.completions]
                kept = ("text", "seed", "finish_reason", "num_tokens", "sampling")
                line = questions[sampled.prompt_id] | {
                    "completions": [{name: answer[name] for name in kept} | {"model": model} for answer in answers]
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        show(figures | {"tokens_per_second": round(sampler.tokens_per_second, 1)}, json_file)


def _make_sampler(model: str) -> Sampler:
    """The server that the list of models names, or the model itself in this process."""
    from trainer.models import load_causal_lm, load_tokenizer
    from trainer.openai_sampler import OpenAISampler
    from trainer.sampling import LocalSampler

    settings = WorkerSettings()
    listed = settings.listed_models().get(model)
    if listed is not None and listed.endpoint is not None:
        return OpenAISampler(listed.endpoint)
    source = find_source(model)
    return LocalSampler(load_causal_lm(source, device=settings.torch_device()), load_tokenizer(source))


def last_checkpoint(out: Path, *, is_resuming: bool) -> Path | None:
    """The checkpoint beside a version's folder, where one is asked for and there is one; else the run begins anew."""
    from trainer.fitting import checkpoint_folder

    folder = checkpoint_folder(out)
    return folder if is_resuming and folder.exists() else None


@train_cli.command("reward")
def train_reward(
    file: Annotated[
        Path, typer.Argument(help="Rankings as JSON lines: an exported dataset, or the interchange shape.")
    ],
    model: ModelOption,
    out: Annotated[Path | None, typer.Option(help="Folder of the reward model. Left out: only measure.")] = None,
    folds: Annotated[int, typer.Option(min=0, help="Measure held-out accuracy with so many folds (0: not).")] = 0,
    is_resuming: ResumeOption = False,
    settings: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Train a reward model on rankings. With --folds, say how well one predicts rankings of prompts it never saw."""
    with one_line_errors():
        if out is None and folds < 2:
            refuse("Say what to do: --out FOLDER to train a model, --folds 5 to measure one, or both.")
        from trainer.config import RewardConfig
        from trainer.cross_validation import cross_validate
        from trainer.distributed import joined
        from trainer.preferences import read_rankings
        from trainer.reward import train_reward as train

        config = RewardConfig.from_overrides(parse_settings(settings))
        rankings, device = read_rankings(file), WorkerSettings().torch_device()
        source = find_source(model)
        figures: dict[str, Any] = {"num_rankings": len(rankings)}
        with joined(device) as here, BarReporter(is_shown=here.is_first) as report:
            if folds > 1:
                measured = cross_validate(
                    rankings, source=source, config=config, folds=folds, report=report, device=device
                )
                figures["held_out_accuracy"] = measured.accuracy.as_json()
                figures["held_out_accuracy_by_conversation"] = measured.accuracy_by_conversation.as_json()
                figures["held_out_report"] = measured.report
                figures |= {"folds": measured.fold_accuracies, "num_refused": len(measured.refused)}
                figures["seconds"] = round(measured.seconds, 1)
            if out is not None:
                result = train(
                    rankings,
                    source=source,
                    config=config,
                    out=out,
                    report=report,
                    resume_from=last_checkpoint(out, is_resuming=is_resuming),
                    device=device,
                )
                figures |= result.as_json()
        if here.is_first:
            show(figures, json_file)


@train_cli.command("ppo")
def train_ppo(
    prompts: Annotated[Path, typer.Argument(help="JSON lines with `messages` or `prompt`.")],
    model: ModelOption,
    reward: Annotated[Path, typer.Option(help="Folder of a reward model that `train reward` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the new policy.")],
    policy: Annotated[Path | None, typer.Option(help="Folder of the policy to go on from; default: the model.")] = None,
    ptx: Annotated[
        Path | None,
        typer.Option(help="JSON lines with `text` or `messages` to go on learning, against forgetting (PPO-ptx)."),
    ] = None,
    guard: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a second reward model: its best moment is kept; it stops what exploits the first."
        ),
    ] = None,
    guard_prompts: Annotated[
        Path | None, typer.Option(help="Prompts that only the guard asks. Left out: those of the run.")
    ] = None,
    is_resuming: ResumeOption = False,
    settings: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Improve a policy against a reward model, near the model that it started from.

    With --ptx, the weight of the text is InstructGPT's 27.8, unless --set ptx_coefficient says otherwise.
    """
    with one_line_errors():
        from trainer import ppo_run
        from trainer.config import PAPER_PTX_COEFFICIENT, PPOConfig
        from trainer.distributed import joined
        from trainer.models import ModelSource
        from trainer.pretraining import read_texts
        from trainer.sampling import Prompt

        overrides = parse_settings(settings)
        if ptx is not None:
            overrides.setdefault("ptx_coefficient", PAPER_PTX_COEFFICIENT)
        config = PPOConfig.from_overrides(overrides)
        questions = [Prompt.from_json(prompt) for prompt in read_prompts(prompts)]
        sft = find_source(model)
        device = WorkerSettings().torch_device()
        with joined(device) as here, BarReporter(is_shown=here.is_first) as report:
            result = ppo_run.train_ppo(
                questions,
                sft=sft,
                policy=ModelSource(sft.base, policy, sft.alias),
                reward=ModelSource(sft.base, reward, sft.alias),
                config=config,
                out=out,
                report=report,
                resume_from=last_checkpoint(out, is_resuming=is_resuming),
                ptx_texts=read_texts(ptx) if ptx is not None else (),
                guard=ModelSource(sft.base, guard, sft.alias) if guard is not None else None,
                guard_prompts=[Prompt.from_json(row) for row in read_prompts(guard_prompts)] if guard_prompts else (),
                device=device,
            )
        if here.is_first:
            show(result.as_json(), json_file)


@model_cli.command("fetch")
def fetch_model(
    alias: Annotated[str, typer.Argument(help="`smollm2-135m`, `pocket`, or an alias of your list.")],
) -> None:
    """Fetch or build a base model into the data folder; one that is there already is left alone."""
    from tqdm import tqdm

    from trainer.artifacts import fetch_model as fetch

    with one_line_errors(), tqdm(total=100, unit="%", bar_format="{percentage:3.0f} % |{bar}| {desc}") as bar:

        def progress(message: str, share: float) -> None:
            bar.set_description_str(message)
            bar.update(100 * share - bar.n)

        settings = WorkerSettings()
        folder = fetch(settings.find_model(alias), settings, progress)
    typer.echo(folder)


@model_cli.command("export")
def export_model(
    version: Annotated[str, typer.Argument(help="Id of a version, or the folder of one (with --model, its base).")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist yet.")],
    model: Annotated[str | None, typer.Option(help="Base model of a local folder: an alias or a folder.")] = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Write a trained version as a folder that `from_pretrained` opens, its adapter merged into the weights."""
    with one_line_errors():
        if out.exists():
            refuse(f"{out} exists already: name a new folder.")
        from trainer.models import ModelSource, merge_to_folder

        if Path(version).is_dir():
            if model is None:
                refuse("Name the base model of the folder with --model.")
            base = find_source(model)
            source = ModelSource(base.base, Path(version), base.alias)
        else:
            source = fetched_version(version, settings_with(url, token))
        merge_to_folder(source, out)
    typer.echo(out)


def fetched_version(version_id: str, settings: WorkerSettings) -> ModelSource:
    """The files of a version, from Rankloop."""
    from trainer.artifacts import model_source
    from trainer.client import Client, ModelReference, Retries

    with Client(settings.url, settings.token, retries=Retries(PATIENCE_SECONDS)) as client:
        found = client.get_version(version_id)
        reference: ModelReference = {
            "version_id": found["id"],
            "number": found["number"],
            "kind": found["kind"],
            "alias": found["alias"],
            "files": found["files"],
        }
        return model_source(reference, client, settings, _say)


# What the commands share


def settings_with(url: str | None, token: str | None) -> WorkerSettings:
    """The settings of the environment, with what the command line says instead."""
    given = {"url": url, "token": token}
    return WorkerSettings().model_copy(update={name: value for name, value in given.items() if value is not None})


def find_source(model: str) -> ModelSource:
    """A model by alias, or the folder of one."""
    from trainer.artifacts import base_folder
    from trainer.models import ModelSource

    if (Path(model) / "config.json").is_file():
        return ModelSource(Path(model))
    return ModelSource(base_folder(model, WorkerSettings(), _say), alias=model)


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Prompts of JSON lines with `messages` or `prompt`; ids are made up where there are none.

    SettingsError names the line that can't be read.
    """
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
            turns = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in messages]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingsError(f"{path}, line {number}: needs `messages` or `prompt` ({error}).") from error
        prompts.append({"id": str(row.get("id", number)), "messages": turns})
    return prompts


def show(figures: dict[str, Any], json_file: Path | None) -> None:
    """The figures on the terminal, and as JSON where that is asked for; a report of many parts only as JSON."""
    if json_file is not None and str(json_file) != "-":
        json_file.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if str(json_file) == "-":
        typer.echo(json.dumps(figures, ensure_ascii=False))
        return
    for name, value in figures.items():
        if name.endswith("report"):
            continue
        typer.echo(f"{name:24} {json.dumps(value, ensure_ascii=False)}")


def parse_settings(pairs: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE pairs; a value is JSON where it can be, else text. SettingsError names what is no pair."""
    overrides: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise SettingsError(f"--set {pair}: write it as KEY=VALUE.")
        try:
            overrides[key] = json.loads(value)
        except ValueError:
            overrides[key] = value
    return overrides


class BarReporter:
    """The `Reporter` of a terminal: a bar with what was reached last, and the log above it."""

    def __init__(self, *, is_shown: bool = True) -> None:
        self._is_shown = is_shown

    def __enter__(self) -> Self:
        from tqdm import tqdm

        self._bar = tqdm(unit="step", dynamic_ncols=True, disable=not self._is_shown)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """The newest figures, beside the bar."""
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in list(values.items())[:3]})

    def progress(self, step: int, total: int, message: str) -> None:
        """Move the bar."""
        self._bar.total = total
        self._bar.set_description_str(message, refresh=False)
        self._bar.update(step - self._bar.n)

    def log(self, level: Level, text: str) -> None:
        """A line above the bar."""
        self._bar.write(text if level == "info" else f"{level}: {text}", file=sys.stderr)

    def should_stop(self) -> bool:
        """Never: Ctrl+C ends the program."""
        return False


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can set right is said in one line, with exit code 1."""
    from trainer.transport import ClientError

    try:
        yield
    except (SettingsError, ClientError, ValueError, OSError) as error:
        refuse(str(error))
    except Exception as error:
        if not type(error).__module__.startswith("trainer."):
            raise
        refuse(str(error))


def refuse(message: str) -> NoReturn:
    """Say why not, and end with exit code 1."""
    typer.echo(message, err=True)
    raise typer.Exit(1)


def _say(message: str, share: float) -> None:
    typer.echo(message, err=True)
