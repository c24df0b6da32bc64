"""A reward model at work: the commands `rankloop best-of-n` and `rankloop serve-reward`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from trainer.console import (
    find_source,
    find_version,
    one_line_errors,
    read_prompts,
    refuse,
    settings_with,
    show,
    version_of,
)
from trainer.options import (
    BaseOption,
    BestOut,
    JsonOption,
    ModelOption,
    NeededPrompts,
    PolicyOption,
    RewardOption,
    TokenOption,
    UrlOption,
)
from trainer.settings import WorkerSettings


def register(cli: typer.Typer) -> None:
    """Add the commands to the program."""
    cli.command("best-of-n")(best_of_n)
    cli.command("serve-reward")(serve_reward)


def best_of_n(
    prompts: NeededPrompts,
    model: ModelOption,
    reward: RewardOption,
    out: BestOut,
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

        rows, device = read_prompts(prompts), WorkerSettings().torch_device()
        source = find_source(model)
        version = version_of(source, policy)
        score_all = scorer_of(version_of(source, reward), device=device)
        sampler = LocalSampler(load_causal_lm(version, device=device), load_tokenizer(version))
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
    model: BaseOption = None,
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

        source = find_version(version, model, settings_with(url, token))
        serve(source, host=host, port=port, device=WorkerSettings().torch_device())
