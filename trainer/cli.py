"""The trainer's commands of the program `rankloop`. Torch is imported by the commands that need it, when they run."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NoReturn

import typer

from trainer import reward_cli, train_cli
from trainer.console import (
    PATIENCE_SECONDS,
    find_source,
    find_version,
    one_line_errors,
    read_prompts,
    refuse,
    settings_with,
    show,
)
from trainer.options import (
    BaseOption,
    CompletionsOut,
    ExportedFile,
    ImportedFile,
    JsonOption,
    ModelOption,
    NeededPrompts,
    NewFolder,
    TokenOption,
    UrlOption,
)
from trainer.settings import WorkerSettings

if TYPE_CHECKING:
    from trainer.sampling import Sampler

model_cli = typer.Typer(help="Models: fetch a base model, export a trained version.", no_args_is_help=True)

logger = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024


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
    reward_cli.register(cli)
    train_cli.register(cli)
    cli.add_typer(model_cli, name="model")


def worker(
    once: Annotated[bool, typer.Option("--once", help="End after one run, or when none waits.")] = False,
    url: UrlOption = None,
    token: TokenOption = None,
    name: Annotated[str, typer.Option(help="How runs name this worker; default: host and process.")] = "",
) -> None:
    """Do the runs that wait at Rankloop: sample, train reward models and policies. Ctrl+C hands the run back."""
    from trainer import logs
    from trainer.client import Client, Retries
    from trainer.worker import DELIVERY_PATIENCE_SECONDS, Worker, stop_on_signals

    settings = settings_with(url, token)
    logs.configure(settings)
    stopping = threading.Event()
    stop_on_signals(stopping)
    with one_line_errors(refuse_in_log):
        settings.listed_models()
        retries = Retries(DELIVERY_PATIENCE_SECONDS, stopping.wait)
        with Client(settings.url, settings.token, retries=retries) as client:
            made = Worker(client, settings, stopping, name)
            if once:
                made.run_once()
            else:
                made.run_forever()


def refuse_in_log(message: str) -> NoReturn:
    """Say in the worker's log why not, and end with exit code 1. What went wrong in a run never comes to this."""
    logger.error("%s", message, extra={"event": "refused"})
    raise typer.Exit(1)


def import_file(
    kind: Annotated[ImportKind, typer.Argument(help="What the file holds.")],
    file: ImportedFile,
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
    out: ExportedFile,
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
    prompts: NeededPrompts,
    model: ModelOption,
    out: CompletionsOut,
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
    from trainer.openai_sampler import OpenAISampler
    from trainer.sampling import LocalSampler
    from trainer.weights import load_causal_lm, load_tokenizer

    settings = WorkerSettings()
    listed = settings.listed_models().get(model)
    if listed is not None and listed.endpoint is not None:
        return OpenAISampler(listed.endpoint)
    source = find_source(model)
    return LocalSampler(load_causal_lm(source, device=settings.torch_device()), load_tokenizer(source))


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
    out: NewFolder,
    model: BaseOption = None,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Write a trained version as a folder that `from_pretrained` opens, its adapter merged into the weights."""
    with one_line_errors():
        if out.exists():
            refuse(f"{out} exists already: name a new folder.")
        from trainer.export import merge_to_folder

        merge_to_folder(find_version(version, model, settings_with(url, token)), out)
    typer.echo(out)
