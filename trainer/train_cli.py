"""The commands `rankloop train {reward,sft,dpo,ppo,best-of-n,star}`: from files to a version, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.console import (
    find_source,
    named_file,
    one_line_errors,
    parse_settings,
    processes,
    read_prompts,
    refuse,
    train_and_show,
    version_of,
)
from trainer.options import (
    CheckedArgument,
    ConfigOption,
    ConversationsArgument,
    DataOption,
    DrawingPolicyOption,
    GuardOption,
    GuardPromptsOption,
    JsonOption,
    LikedOption,
    ModelOption,
    PolicyOption,
    PolicyOut,
    PromptsArgument,
    RankingsArgument,
    ReferenceOption,
    ResumeOption,
    RewardOption,
    RewardOut,
    StartOption,
    TextsOption,
)

if TYPE_CHECKING:
    from trainer.console import Run
    from trainer.preferences import Ranking
    from trainer.sampling import Prompt
    from trainer.star import CheckedPrompt


def register(cli: typer.Typer) -> None:
    """Add the commands to the program, in a group that is made anew: a program may be built more than once."""
    training = typer.Typer(help="Train on files, without a server.", no_args_is_help=True)
    training.command("reward")(train_reward)
    training.command("sft")(train_sft)
    training.command("dpo")(train_dpo)
    training.command("ppo")(train_ppo)
    training.command("best-of-n")(train_best_of_n)
    training.command("star")(train_star)
    cli.add_typer(training, name="train")


def train_reward(
    file: RankingsArgument = None,
    *,
    data: DataOption = None,
    model: ModelOption,
    out: RewardOut = None,
    start: StartOption = None,
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
        from trainer.preferences import read_rankings
        from trainer.reward import train_reward as train

        rankings = read_rankings(named_file(file, data))
        config = RewardConfig.from_overrides(parse_settings(settings))
        asked: dict[str, Any] = {"source": find_source(model), "config": config}
        figures: dict[str, Any] = {"num_rankings": len(rankings)}
        with processes() as run:
            if folds > 1:
                figures |= _measure(rankings, folds, run, **asked)
            if out is not None:
                begun = version_of(asked["source"], start) if start is not None else None
                figures |= run.train(train, rankings, start=begun, out=out, is_resuming=is_resuming, **asked)
            run.show(figures, json_file)


def _measure(rankings: list[Ranking], folds: int, run: Run, **asked: Any) -> dict[str, Any]:
    """Held-out accuracy, by folds."""
    from trainer.cross_validation import cross_validate

    measured = cross_validate(rankings, folds=folds, report=run.report, device=run.device, **asked)
    return {
        "held_out_accuracy": measured.accuracy.as_json(),
        "held_out_accuracy_by_conversation": measured.accuracy_by_conversation.as_json(),
        "held_out_report": measured.report,
        "folds": measured.fold_accuracies,
        "num_refused": len(measured.refused),
        "seconds": round(measured.seconds, 1),
    }


def train_sft(
    file: ConversationsArgument = None,
    *,
    data: DataOption = None,
    model: ModelOption,
    out: PolicyOut,
    policy: PolicyOption = None,
    is_resuming: ResumeOption = False,
    settings: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Teach a model to answer as in demonstrations or instruction data."""
    with one_line_errors():
        from trainer.config import SFTConfig
        from trainer.demonstrations import read_conversations
        from trainer.sft import train_sft as train

        train_and_show(
            train,
            read_conversations(named_file(file, data)),
            source=version_of(find_source(model), policy),
            config=SFTConfig.from_overrides(parse_settings(settings)),
            out=out,
            is_resuming=is_resuming,
            json_file=json_file,
        )


def train_dpo(
    file: RankingsArgument = None,
    *,
    data: DataOption = None,
    model: ModelOption,
    out: PolicyOut,
    sft: ReferenceOption = None,
    policy: PolicyOption = None,
    is_resuming: ResumeOption = False,
    settings: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Improve a policy by rankings without a reward model, near the model that it started from.

    Without --policy it starts as the SFT version.
    """
    with one_line_errors():
        from trainer.config import DPOConfig
        from trainer.dpo import train_dpo as train
        from trainer.preferences import read_rankings

        rankings, base = read_rankings(named_file(file, data)), find_source(model)
        train_and_show(
            train,
            rankings,
            sft=version_of(base, sft),
            policy=version_of(base, policy or sft),
            config=DPOConfig.from_overrides(parse_settings(settings)),
            out=out,
            is_resuming=is_resuming,
            json_file=json_file,
        )


def train_ppo(
    prompts: PromptsArgument = None,
    *,
    data: DataOption = None,
    model: ModelOption,
    reward: RewardOption,
    out: PolicyOut,
    policy: PolicyOption = None,
    ptx: TextsOption = None,
    liked: LikedOption = None,
    guard: GuardOption = None,
    guard_prompts: GuardPromptsOption = None,
    is_resuming: ResumeOption = False,
    settings: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Improve a policy against a reward model, near the model that it started from.

    With --ptx, the weight of the text is InstructGPT's 27.8, unless --set ptx_coefficient says otherwise. With --liked,
    --set liked has the settings of the SFT that comes before.
    """
    with one_line_errors():
        from trainer.config import PAPER_PTX_COEFFICIENT, PPOConfig
        from trainer.ppo_run import train_ppo as train
        from trainer.preferences import liked as liked_in
        from trainer.preferences import read_rankings
        from trainer.pretraining import read_texts

        usual: dict[str, Any] = {"ptx_coefficient": PAPER_PTX_COEFFICIENT} if ptx is not None else {}
        usual |= {"liked": {}} if liked is not None else {}
        questions, sft = _read_questions(named_file(prompts, data)), find_source(model)
        train_and_show(
            train,
            questions,
            sft=sft,
            policy=version_of(sft, policy),
            reward=version_of(sft, reward),
            config=PPOConfig.from_overrides(usual | parse_settings(settings)),
            ptx_texts=read_texts(ptx) if ptx is not None else (),
            liked_answers=liked_in(read_rankings(liked)) if liked is not None else (),
            guard=version_of(sft, guard) if guard is not None else None,
            guard_prompts=_read_questions(guard_prompts) if guard_prompts is not None else (),
            out=out,
            is_resuming=is_resuming,
            json_file=json_file,
        )


def train_best_of_n(
    prompts: PromptsArgument = None,
    *,
    data: DataOption = None,
    model: ModelOption,
    reward: RewardOption,
    out: PolicyOut,
    policy: PolicyOption = None,
    is_resuming: ResumeOption = False,
    settings: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Fine-tune a policy on the best of its own answers (rejection sampling, RAFT)."""
    with one_line_errors():
        from trainer.best_of_n import train_best_of_n as train
        from trainer.config import BestOfNConfig

        questions, source = _read_questions(named_file(prompts, data)), find_source(model)
        train_and_show(
            train,
            questions,
            policy=version_of(source, policy),
            reward=version_of(source, reward),
            config=BestOfNConfig.from_overrides(parse_settings(settings)),
            out=out,
            is_resuming=is_resuming,
            json_file=json_file,
        )


def train_star(
    prompts: CheckedArgument = None,
    *,
    data: DataOption = None,
    model: ModelOption,
    out: PolicyOut,
    policy: DrawingPolicyOption = None,
    is_resuming: ResumeOption = False,
    settings: ConfigOption = None,
    json_file: JsonOption = None,
) -> None:
    """Fine-tune a model on own answers that pass a check: exact, numeric or a regular expression (STaR-like)."""
    with one_line_errors():
        from trainer.config import StarConfig
        from trainer.star import train_star as train

        questions, source = _read_checked(named_file(prompts, data)), find_source(model)
        train_and_show(
            train,
            questions,
            sft=source,
            policy=version_of(source, policy),
            config=StarConfig.from_overrides(parse_settings(settings)),
            out=out,
            is_resuming=is_resuming,
            json_file=json_file,
        )


def _read_questions(path: Path) -> list[Prompt]:
    from trainer.sampling import Prompt

    return [Prompt.from_json(row) for row in read_prompts(path)]


def _read_checked(path: Path) -> list[CheckedPrompt]:
    """The prompts of a file with their checks. ValueError names the prompt and the rule."""
    from trainer.jsonl import read_objects
    from trainer.star import CheckedPrompt

    checks = [row.get("check") or (row.get("meta") or {}).get("check") for row in read_objects(path)]
    return [
        CheckedPrompt.from_json(prompt | {"meta": {"check": check}})
        for prompt, check in zip(read_prompts(path), checks, strict=True)
    ]
