"""The commands `rankloop train {reward,ppo}`; `alternatives_cli` has the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.console import (
    BarReporter,
    ConfigOption,
    DataOption,
    JsonOption,
    ModelOption,
    ResumeOption,
    find_source,
    last_checkpoint,
    named_file,
    one_line_errors,
    parse_settings,
    read_prompts,
    refuse,
    show,
)
from trainer.settings import WorkerSettings


def register(train_cli: typer.Typer) -> None:
    """Add the commands to the program."""
    train_cli.command("reward")(train_reward)
    train_cli.command("ppo")(train_ppo)


def train_reward(
    file: Annotated[
        Path | None, typer.Argument(help="Rankings as JSON lines: an exported dataset, or the interchange shape.")
    ] = None,
    *,
    data: DataOption = None,
    model: ModelOption,
    out: Annotated[Path | None, typer.Option(help="Folder of the reward model. Left out: only measure.")] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Folder of a reward model to go on from (a warm start); default: a fresh one on the model."),
    ] = None,
    folds: Annotated[int, typer.Option(min=0, help="Measure held-out accuracy with so many folds (0: not).")] = 0,
    is_resuming: ResumeOption = False,
    settings: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Train a reward model on rankings. With --folds, say how well one predicts rankings of prompts it never saw."""
    with one_line_errors():
        if out is None and folds < 2:
            refuse("Say what to do: --out FOLDER to train a model, --folds 5 to measure one, or both.")
        if start is not None and folds > 1:
            refuse("--folds measures fresh models only: one to go on from may have seen what is held out.")
        from trainer.config import RewardConfig
        from trainer.cross_validation import cross_validate
        from trainer.distributed import joined
        from trainer.preferences import read_rankings
        from trainer.reward import train_reward as train
        from trainer.weights import ModelSource

        config = RewardConfig.from_overrides(parse_settings(settings))
        rankings, device = read_rankings(named_file(file, data)), WorkerSettings().torch_device()
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
                    start=ModelSource(source.base, start, source.alias) if start is not None else None,
                    resume_from=last_checkpoint(out, is_resuming=is_resuming),
                    device=device,
                )
                figures |= result.as_json()
        if here.is_first:
            show(figures, json_file)


def train_ppo(
    prompts: Annotated[Path | None, typer.Argument(help="JSON lines with `messages` or `prompt`.")] = None,
    *,
    data: DataOption = None,
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
        from trainer.pretraining import read_texts
        from trainer.sampling import Prompt
        from trainer.weights import ModelSource

        overrides = parse_settings(settings)
        if ptx is not None:
            overrides.setdefault("ptx_coefficient", PAPER_PTX_COEFFICIENT)
        config = PPOConfig.from_overrides(overrides)
        questions = [Prompt.from_json(prompt) for prompt in read_prompts(named_file(prompts, data))]
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
