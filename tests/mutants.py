"""Plants one error after another in a copy of the project, and shows which test turns red: `make mutants`.

Each error is one that a well-known trainer has or had. A mutant that no test notices, or whose place is no longer in
the code, fails the command.
"""

from __future__ import annotations

import sys

from tests import planting

LOSSES, PPO, MODELS = "trainer/losses.py", "trainer/ppo.py", "trainer/models.py"
SFT, DPO = "trainer/sft.py", "trainer/dpo.py"
TESTS_OF = {
    LOSSES: ("tests/trainer/test_losses_ppo.py", "tests/trainer/test_losses_reward.py", "tests/trainer/ppo"),
    PPO: ("tests/trainer/ppo",),
    MODELS: ("tests/trainer/test_models.py", "tests/trainer/ppo"),
    SFT: ("tests/trainer/test_sft.py",),
    DPO: ("tests/trainer/test_dpo.py",),
}


def Mutant(name: str, file: str, old: str, new: str) -> planting.Mutant:  # noqa: N802 (reads as what it makes)
    """An error of the trainer, which the tests of its file should see."""
    return planting.Mutant(name, file, old, new, TESTS_OF[file])


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

if __name__ == "__main__":
    sys.exit(planting.main(MUTANTS, __doc__ or ""))
