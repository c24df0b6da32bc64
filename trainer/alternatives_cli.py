"""The commands `rankloop train {sft,dpo,best-of-n,star}`, `rankloop best-of-n` and `rankloop serve-reward`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.console import (
    BarReporter,
    ConfigOption,
    DataOption,
    JsonOption,
    ModelOption,
    ResumeOption,
    TokenOption,
    UrlOption,
    fetched_version,
    find_source,
    last_checkpoint,
    named_file,
    one_line_errors,
    parse_settings,
    read_prompts,
    refuse,
    settings_with,
    show,
)
from trainer.settings import SettingsError, WorkerSettings

if TYPE_CHECKING:
    from trainer.star import CheckedPrompt
    from trainer.weights import ModelSource

PROMPTS = "JSON lines with `messages` or `prompt`."
OutOption = Annotated[Path, typer.Option(help="Folder of the new policy.")]
PolicyOption = Annotated[
    Path | None, typer.Option(help="Folder of the policy to go on from; default: the model itself.")
]
RewardOption = Annotated[Path, typer.Option(help="Folder of a reward model that `train reward` wrote.")]


def register(cli: typer.Typer, train_cli: typer.Typer) -> None:
    """Add the commands to the program."""
    train_cli.command("sft")(train_sft)
    train_cli.command("dpo")(train_dpo)
    train_cli.command("best-of-n")(train_best_of_n)
    train_cli.command("star")(train_star)
    cli.command("best-of-n")(best_of_n)
    cli.command("serve-reward")(serve_reward)


def train_sft(
    file: Annotated[
        Path | None,
        typer.Argument(help="JSON lines: `messages` that end with the assistant's turn, or `prompt`, `completion`."),
    ] = None,
    *,
    data: DataOption = None,
    model: ModelOption,
    out: OutOption,
    policy: PolicyOption = None,
    is_resuming: ResumeOption = False,
    settings: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Teach a model to answer as in demonstrations or instruction data."""
    with one_line_errors():
        from trainer import sft
        from trainer.config import SFTConfig
        from trainer.demonstrations import read_conversations
        from trainer.distributed import joined

        config = SFTConfig.from_overrides(parse_settings(settings))
        conversations = read_conversations(named_file(file, data))
        source = _version(find_source(model), policy)
        with joined(_device()) as here, BarReporter(is_shown=here.is_first) as report:
            result = sft.train_sft(
                conversations,
                source=source,
                config=config,
                out=out,
                report=report,
                resume_from=last_checkpoint(out, is_resuming=is_resuming),
                device=_device(),
            )
        if here.is_first:
            show(result.as_json(), json_file)


def train_dpo(
    file: Annotated[
        Path | None, typer.Argument(help="Rankings as JSON lines: an exported dataset, or the interchange shape.")
    ] = None,
    *,
    data: DataOption = None,
    model: ModelOption,
    out: OutOption,
    sft: Annotated[
        Path | None,
        typer.Option(help="Folder of the SFT version that the policy stays near; default: the model itself."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Folder of the policy to go on from; default: the SFT version.")
    ] = None,
    is_resuming: ResumeOption = False,
    settings: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Improve a policy by rankings without a reward model, near the model that it started from."""
    with one_line_errors():
        from trainer import dpo
        from trainer.config import DPOConfig
        from trainer.distributed import joined
        from trainer.preferences import read_rankings

        config = DPOConfig.from_overrides(parse_settings(settings))
        rankings, base = read_rankings(named_file(file, data)), find_source(model)
        reference = _version(base, sft)
        with joined(_device()) as here, BarReporter(is_shown=here.is_first) as report:
            result = dpo.train_dpo(
                rankings,
                sft=reference,
                policy=_version(base, policy) if policy else reference,
                config=config,
                out=out,
                report=report,
                resume_from=last_checkpoint(out, is_resuming=is_resuming),
                device=_device(),
            )
        if here.is_first:
            show(result.as_json(), json_file)


def train_best_of_n(
    prompts: Annotated[Path | None, typer.Argument(help=PROMPTS)] = None,
    *,
    data: DataOption = None,
    model: ModelOption,
    reward: RewardOption,
    out: OutOption,
    policy: PolicyOption = None,
    is_resuming: ResumeOption = False,
    settings: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Fine-tune a policy on the best of its own answers (rejection sampling, RAFT)."""
    with one_line_errors():
        from trainer.best_of_n import train_best_of_n as train
        from trainer.config import BestOfNConfig
        from trainer.distributed import joined
        from trainer.sampling import Prompt

        config = BestOfNConfig.from_overrides(parse_settings(settings))
        questions, source = (
            [Prompt.from_json(row) for row in read_prompts(named_file(prompts, data))],
            find_source(model),
        )
        with joined(_device()) as here, BarReporter(is_shown=here.is_first) as report:
            result = train(
                questions,
                policy=_version(source, policy),
                reward=_version(source, reward),
                config=config,
                out=out,
                report=report,
                resume_from=last_checkpoint(out, is_resuming=is_resuming),
                device=_device(),
            )
        if here.is_first:
            show(result.as_json(), json_file)


def train_star(
    prompts: Annotated[
        Path | None, typer.Argument(help="JSON lines of prompts whose `meta` (or the line itself) has `check`.")
    ] = None,
    *,
    data: DataOption = None,
    model: ModelOption,
    out: OutOption,
    policy: Annotated[
        Path | None,
        typer.Option(help="Folder of the policy that draws; what is trained is the model. Default: the model."),
    ] = None,
    is_resuming: ResumeOption = False,
    settings: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Fine-tune a model on own answers that pass a check: exact, numeric or a regular expression (STaR-like)."""
    with one_line_errors():
        from trainer import star
        from trainer.config import StarConfig
        from trainer.distributed import joined

        config = StarConfig.from_overrides(parse_settings(settings))
        questions, source = _read_checked(named_file(prompts, data)), find_source(model)
        with joined(_device()) as here, BarReporter(is_shown=here.is_first) as report:
            result = star.train_star(
                questions,
                sft=source,
                policy=_version(source, policy),
                config=config,
                out=out,
                report=report,
                resume_from=last_checkpoint(out, is_resuming=is_resuming),
                device=_device(),
            )
        if here.is_first:
            show(result.as_json(), json_file)


def best_of_n(
    prompts: Annotated[Path, typer.Argument(help=PROMPTS)],
    model: ModelOption,
    reward: RewardOption,
    out: Annotated[Path, typer.Option(help="JSON lines: each prompt with its best answer, and all scores.")],
    policy: PolicyOption = None,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Answers that are drawn for each prompt.")] = 16,
    temperature: Annotated[float, typer.Option(help="The logits are divided by it.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="A longer answer is cut.")] = 128,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 17,
    json_file: JsonOption = None,
) -> None:
    """Answer every prompt of a file with the best of n answers, by a reward model."""
    with one_line_errors():
        from tqdm import tqdm

        from trainer.best_of_n import choose_best, kl_bound, scorer_of
        from trainer.own_answers import draw_answers
        from trainer.sampling import LocalSampler, Prompt
        from trainer.weights import load_causal_lm, load_tokenizer

        source, device = find_source(model), _device()
        version = _version(source, policy)
        score_all = scorer_of(_version(source, reward), device=device)
        sampler = LocalSampler(load_causal_lm(version, device=device), load_tokenizer(version))
        rows = read_prompts(prompts)
        sums = {"best": 0.0, "mean": 0.0}
        num_best = 0
        with out.open("w", encoding="utf-8") as file, tqdm(rows, unit="prompt") as bar:
            for row in bar:
                drawn = draw_answers(
                    sampler,
                    [Prompt.from_json(row)],
                    n=n,
                    temperature=temperature,
                    max_new_tokens=max_new_tokens,
                    seed=seed,
                )
                (best,) = choose_best(drawn, score_all)
                if best is None:
                    typer.echo(drawn[0].refusal, err=True)
                    continue
                num_best += 1
                sums["best"] += max(best.scores)
                sums["mean"] += sum(best.scores) / n
                answer = {"text": best.answer.text, "finish_reason": best.answer.finish_reason, "model": model}
                line = row | {"completions": [answer], "scores": best.scores}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if not num_best:
            refuse("No prompt could be answered.")
        figures: dict[str, Any] = {"num_prompts": num_best, "num_refused": len(rows) - num_best}
        show(figures | {name: value / num_best for name, value in sums.items()} | {"kl_bound": kl_bound(n)}, json_file)


def serve_reward(
    version: Annotated[str, typer.Argument(help="Id of a reward version, or its folder (with --model, its base).")],
    model: Annotated[str | None, typer.Option(help="Base model of a local folder: an alias or a folder.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 5000,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Score answers over HTTP, in the shape of OpenRLHF's remote reward. [env var: RANKLOOP_REWARD_TOKEN]"""
    with one_line_errors():
        from trainer.reward_server import serve

        if Path(version).is_dir():
            if model is None:
                refuse("Name the base model of the folder with --model.")
            source = _version(find_source(model), Path(version))
        else:
            source = fetched_version(version, settings_with(url, token))
        serve(source, host=host, port=port, device=_device())


def _device() -> str:
    return WorkerSettings().torch_device()


def _version(source: ModelSource, folder: Path | None) -> ModelSource:
    """A version of the model, from a folder on this machine."""
    from trainer.weights import ModelSource

    if folder is not None and not folder.is_dir():
        raise SettingsError(f"{folder} is no folder.")
    return ModelSource(source.base, folder, source.alias)


def _read_checked(path: Path) -> list[CheckedPrompt]:
    """The prompts of a file with their checks. ValueError names the prompt and the rule."""
    from trainer.star import CheckedPrompt

    prompts = read_prompts(path)
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    found = []
    for prompt, line in zip(prompts, lines, strict=True):
        row = json.loads(line)
        check = row.get("check") or (row.get("meta") or {}).get("check")
        found.append(CheckedPrompt.from_json(prompt | {"meta": {"check": check}}))
    return found
