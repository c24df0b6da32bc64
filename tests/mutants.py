"""Plants one error after another in a copy of the project, and shows which test turns red: `make mutants`.

Each error is one that a well-known trainer has or had. A mutant that no test notices, or whose place is no longer in
the code, fails the command.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("app", "rankloop", "trainer", "tests", "pyproject.toml")
LOSSES, PPO, MODELS = "trainer/losses.py", "trainer/ppo.py", "trainer/models.py"
SFT, DPO = "trainer/sft.py", "trainer/dpo.py"
TESTS_OF = {
    LOSSES: ("tests/trainer/test_losses_ppo.py", "tests/trainer/test_losses_reward.py", "tests/trainer/ppo"),
    PPO: ("tests/trainer/ppo",),
    MODELS: ("tests/trainer/test_models.py", "tests/trainer/ppo"),
    SFT: ("tests/trainer/test_sft.py",),
    DPO: ("tests/trainer/test_dpo.py",),
}


@dataclass(frozen=True)
class Mutant:
    """One error: what is replaced by what, where."""

    name: str
    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Verdict:
    """Which test saw it first; none means that it lives."""

    name: str
    file: str
    caught_by: str | None


KL = "-beta * (logprobs_BT - reference_logprobs_BT)"
CLIPPED = (
    "clipped_policy_loss(\n"
    "        logprobs_BT, part.logprobs_BT, part.advantages_BT, rows.mask_BT, "
    "clip=config.clip, num_tokens=num_tokens\n    )\n"
)
MUTANTS = (
    Mutant(
        "k3 instead of k1 in the reward",
        LOSSES,
        KL,
        "-beta * ((reference_logprobs_BT - logprobs_BT).exp() - 1 - (reference_logprobs_BT - logprobs_BT))",
    ),
    Mutant("the absolute value of k1 in the reward", LOSSES, KL, "-beta * (logprobs_BT - reference_logprobs_BT).abs()"),
    Mutant("k1 clamped at 0", LOSSES, KL, "-beta * (logprobs_BT - reference_logprobs_BT).clamp(min=0)"),
    Mutant("the KL penalty's sign turned", LOSSES, KL, KL.removeprefix("-")),
    Mutant(
        "the score one token before the last",
        LOSSES,
        "(position_T == last_B[:, None])",
        "(position_T == (last_B[:, None] - 1).clamp(min=0))",
    ),
    Mutant(
        "the score at the first token", LOSSES, "(position_T == last_B[:, None])", "(position_T == 0 * last_B[:, None])"
    ),
    Mutant(
        "the score lost where the EOS is the last token",
        LOSSES,
        "(position_T == last_B[:, None])",
        "(position_T == last_B[:, None]) * (last_B[:, None] < len(position_T) - 1)",
    ),
    Mutant("GAE without the next value", LOSSES, "+ gamma * next_value_B - values", "- values"),
    Mutant(
        "the values of padding counted in GAE",
        LOSSES,
        "values, rewards = values_BT * mask, rewards_BT * mask",
        "values, rewards = values_BT, rewards_BT * mask",
    ),
    Mutant(
        "whitened returns",
        LOSSES,
        "return advantages_BT, advantages_BT + values",
        "return advantages_BT, advantages_BT",
    ),
    Mutant(
        "whitening over padding",
        LOSSES,
        "    mean = masked_mean(values_BT, mask_BT)\n",
        "    mean = values_BT.mean()\n",
    ),
    Mutant(
        "the policy loss's sign turned",
        LOSSES,
        "plain_BT = -advantages_BT * ratio_BT",
        "plain_BT = advantages_BT * ratio_BT",
    ),
    Mutant(
        "the smaller instead of the larger of clipped and plain loss",
        LOSSES,
        "loss=share(torch.maximum(plain_BT, clipped_BT))",
        "loss=share(torch.minimum(plain_BT, clipped_BT))",
    ),
    Mutant("the value loss's sign turned", LOSSES, "loss=0.5 * share", "loss=-0.5 * share"),
    Mutant("the value loss without its half", LOSSES, "loss=0.5 * share", "loss=share"),
    Mutant("losses over padding", LOSSES, "values_BT.masked_fill(~mask_BT, 0.0).sum()", "values_BT.sum()"),
    Mutant("the pairwise loss's sign turned", LOSSES, "F.softplus(-gap_BKK)", "F.softplus(gap_BKK)"),
    Mutant(
        "a ranking counts by its number of pairs",
        LOSSES,
        "(each_BKK * weight_BKK).sum(dim=(1, 2)) / total_B.clamp(min=0.5)",
        "(each_BKK * weight_BKK).sum(dim=(1, 2))",
    ),
    Mutant(
        "Davidson's tie without its own probability",
        LOSSES,
        "theta.expand_as(plain_BKK)) - theta",
        "theta.expand_as(plain_BKK))",
    ),
    Mutant(
        "Plackett-Luce's choice among all answers",
        LOSSES,
        "place_BK[:, None, :] > place_BK[:, :, None]",
        "place_BK[:, None, :] >= 0 * place_BK[:, :, None]",
    ),
    Mutant(
        "Plackett-Luce's sign turned",
        LOSSES,
        "(reward_BK[:, None, :] + share_BKK.log()).logsumexp(dim=2) - reward_BK",
        "reward_BK - (reward_BK[:, None, :] + share_BKK.log()).logsumexp(dim=2)",
    ),
    Mutant(
        "Davidson's sign turned",
        LOSSES,
        "_log_sum_exp(torch.zeros_like(gap_BKK), -gap_BKK, theta - gap_BKK / 2)",
        "_log_sum_exp(torch.zeros_like(gap_BKK), gap_BKK, theta + gap_BKK / 2)",
    ),
    Mutant(
        "the text's sign turned (PPO-ptx)",
        LOSSES,
        "return -_token_share(logprobs_BT",
        "return _token_share(logprobs_BT",
    ),
    Mutant("SFT's sign turned", SFT, "loss = -logprob_M.sum()", "loss = logprob_M.sum()"),
    Mutant(
        "DPO's sign turned",
        DPO,
        "(self._logprobs(self.policy.model, tasks) - reference_N)",
        "(reference_N - self._logprobs(self.policy.model, tasks))",
    ),
    Mutant(
        "the reward read one token before the last",
        MODELS,
        "(attention_BL.long() * column_L).argmax(dim=1)",
        "(attention_BL.long() * column_L).argmax(dim=1) - 1",
    ),
    Mutant(
        "a missing EOS is rewarded",
        PPO,
        "judged.score_B - config.missing_eos_penalty * ~rollout.has_eos_B",
        "judged.score_B + config.missing_eos_penalty * ~rollout.has_eos_B",
    ),
    Mutant(
        "k1 as a loss",
        PPO,
        f"    return {CLIPPED}",
        f"    found = {CLIPPED}"
        "    kl = (logprobs_BT * rows.mask_BT).sum() / num_tokens\n"
        "    return found._replace(loss=found.loss + config.beta * kl)\n",
    ),
    Mutant("no whitening of advantages", PPO, "    if config.whiten_advantages:\n", "    if False:\n"),
    Mutant(
        "another temperature in training than in sampling",
        PPO,
        "partial(policy.logprobs, temperature=config.temperature)",
        "partial(policy.logprobs, temperature=1.0)",
    ),
    Mutant(
        "the position ids of padding counted",
        MODELS,
        "(attention_BL.long().cumsum(dim=1) - 1).clamp(min=0)",
        "torch.arange(attention_BL.shape[-1], device=attention_BL.device).expand(attention_BL.shape)",
    ),
)


def run(mutant: Mutant, copy: Path) -> Verdict:
    """Plant the error, run the tests of its file until one fails, and take the error out again."""
    path = copy / mutant.file
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS_OF[mutant.file]]
    try:
        done = subprocess.run(
            command, check=False, cwd=copy, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
    finally:
        path.write_text(source, encoding="utf-8")
    red = re.search(r"^(?:FAILED|ERROR) \S*?(\w+\.py(?:::\w+)?)", done.stdout, re.MULTILINE)
    return Verdict(mutant.name, mutant.file, red[1] if red and done.returncode else None)


def require_places(mutants: Sequence[Mutant]) -> None:
    """Each error can be planted in one place, or the command ends before the first."""
    for mutant in mutants:
        num = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if num != 1:
            raise SystemExit(f"{mutant.name}: {mutant.file} has its place {num} times, not once")


def as_table(verdicts: Sequence[Verdict]) -> str:
    """The table that stands in docs/trainer.md."""
    rows = [
        f"| {item.name} | `{item.file}` | {f'`{item.caught_by}`' if item.caught_by else '**none**'} |"
        for item in verdicts
    ]
    return "\n".join(["| planted error | in | the first test that turns red |", "|---|---|---|", *rows])


def main() -> int:
    """Read the command line; the exit status is 1 when a mutant lives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only mutants whose name contains one of these")
    parser.add_argument("--json", type=Path, help="write the verdicts to this file")
    asked = parser.parse_args()
    chosen = [item for item in MUTANTS if not asked.names or any(name in item.name for name in asked.names)]
    require_places(chosen)
    with tempfile.TemporaryDirectory(prefix="rankloop-mutants-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        verdicts = []
        for mutant in chosen:
            verdicts.append(run(mutant, copy))
            sys.stderr.write(f"{mutant.name}: {verdicts[-1].caught_by or 'LIVES'}\n")
    sys.stdout.write(as_table(verdicts) + "\n")
    if asked.json:
        asked.json.write_text(json.dumps([asdict(item) for item in verdicts], indent=2) + "\n", encoding="utf-8")
    return int(any(item.caught_by is None for item in verdicts))


if __name__ == "__main__":
    sys.exit(main())
