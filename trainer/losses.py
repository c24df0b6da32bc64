"""Losses and rewards as pure functions of tensors: torch only, no models, no files, no state.

Letters in names are dimensions, explained where a section begins. Arguments are never changed; what is only for plots
comes back detached.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the name that every reader of torch knows)
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor, dim: tuple[int, ...] | int | None = None) -> Tensor:
    """The mean of `values` where `mask` is true, over `dim` or over everything; 0 where nothing is."""
    kept = values.masked_fill(~mask, 0.0)
    if dim is None:
        return kept.sum() / mask.sum().clamp(min=1)
    return kept.sum(dim=dim) / mask.sum(dim=dim).clamp(min=1)


# --- Reward model ----------------------------------------------------------------------------------------------------
# B = rankings, K = completions of a ranking; weight_BKK[b, i, j] says how much it counts that i beats j: 1 where it is
# better, 0 where nothing is known, one half both ways for a tie. What stands at missing completions plays no part.


def pairwise_loss(
    reward_BK: Tensor,
    weight_BKK: Tensor,
    *,
    margin_BKK: Tensor | None = None,
    label_smoothing: float = 0.0,
    importance_B: Tensor | None = None,
) -> Tensor:
    """-log sigmoid(r_w - r_l): mean over a ranking's ordered pairs, then over the rankings that have one (InstructGPT,
    eq. 1). A tie, one half both ways, pulls its two rewards together. 0 when no ranking has a pair.

    Args:
        margin_BKK: what r_w - r_l must exceed, antisymmetric (Llama 2, 2307.09288, eq. 2).
        label_smoothing: the chance that a pair was ranked the wrong way round: so much of each pair's loss is that of
            the opposite order.
        importance_B: the weight of each ranking in the mean over rankings.
    """
    gap_BKK = _gaps(reward_BK, weight_BKK, margin_BKK)
    each_BKK = _smoothed(F.softplus(-gap_BKK), label_smoothing)
    return _mean_over_rankings(each_BKK, weight_BKK, importance_B)


def davidson_loss(
    reward_BK: Tensor,
    weight_BKK: Tensor,
    theta: Tensor,
    *,
    margin_BKK: Tensor | None = None,
    label_smoothing: float = 0.0,
    importance_B: Tensor | None = None,
) -> Tensor:
    """-log P of what was said of each pair, where a tie is a third answer (Davidson 1970), averaged as `pairwise_loss`.

    With d = r_i - r_j and nu = e^theta: P(i over j) = 1 / (1 + e^-d + nu e^(-d/2)) and
    P(tie) = nu / (e^(d/2) + e^(-d/2) + nu). `theta` (a scalar) learns along. A tie has no margin and no smoothing.
    """
    gap_BKK = _gaps(reward_BK, weight_BKK, margin_BKK)
    won_BKK = _log_sum_exp(torch.zeros_like(gap_BKK), -gap_BKK, theta - gap_BKK / 2)
    plain_BKK = _gaps(reward_BK, weight_BKK, None)
    tied_BKK = _log_sum_exp(plain_BKK / 2, -plain_BKK / 2, theta.expand_as(plain_BKK)) - theta
    is_tie_BKK = (weight_BKK > 0) & (weight_BKK.mT > 0)
    each_BKK = torch.where(is_tie_BKK, tied_BKK, _smoothed(won_BKK, label_smoothing))
    return _mean_over_rankings(each_BKK, weight_BKK, importance_B)


def plackett_luce_loss(reward_BK: Tensor, place_BK: Tensor, *, importance_B: Tensor | None = None) -> Tensor:
    """-log P of the whole order, when the best is chosen first, then the best of the rest, and so on (Plackett-Luce):
    mean over a ranking's choices (its placed answers less one), then over the rankings with two placed answers or more.

    `place_BK` counts from 0, the best; equal places are a tie; -1 is missing. Of m tied answers, the one chosen after l
    others stands before a rest in which each of the m counts (m - l) / m (Efron 1977): nearer to the mean over their
    orders than Breslow's rule, which leaves all m in the rest. Two answers in order have the loss of their pair.
    """
    is_placed_BK = place_BK >= 0
    reward_BK = reward_BK.masked_fill(~is_placed_BK, 0.0)
    is_tied_BKK = (place_BK[:, :, None] == place_BK[:, None, :]) & is_placed_BK[:, :, None]
    is_after_BKK = (place_BK[:, None, :] > place_BK[:, :, None]) & is_placed_BK[:, :, None]
    num_tied_BK = is_tied_BKK.sum(dim=2).clamp(min=1)
    num_before_BK = is_tied_BKK.tril(diagonal=-1).sum(dim=2)
    part_BK = ((num_tied_BK - num_before_BK) / num_tied_BK).to(reward_BK.dtype)
    share_BKK = is_after_BKK + is_tied_BKK * part_BK[:, :, None]
    # A missing answer chooses itself from itself: its term is 0.
    share_BKK = torch.where(is_placed_BK[:, :, None], share_BKK, torch.eye(place_BK.shape[1], device=place_BK.device))
    each_BK = (reward_BK[:, None, :] + share_BKK.log()).logsumexp(dim=2) - reward_BK
    num_choices_B = is_placed_BK.sum(dim=1) - 1
    return _weighted_mean(each_BK.sum(dim=1) / num_choices_B.clamp(min=1), num_choices_B > 0, importance_B)


def _gaps(reward_BK: Tensor, weight_BKK: Tensor, margin_BKK: Tensor | None) -> Tensor:
    """r_i - r_j, less what it must exceed; 0 where neither order counts."""
    gap_BKK = reward_BK[:, :, None] - reward_BK[:, None, :]
    if margin_BKK is not None:
        gap_BKK = gap_BKK - margin_BKK
    return gap_BKK.masked_fill((weight_BKK + weight_BKK.mT) == 0, 0.0)


def _smoothed(loss_BKK: Tensor, label_smoothing: float) -> Tensor:
    return loss_BKK if label_smoothing == 0 else torch.lerp(loss_BKK, loss_BKK.mT, label_smoothing)


def _log_sum_exp(*terms: Tensor) -> Tensor:
    return torch.stack(terms).logsumexp(dim=0)


def _mean_over_rankings(each_BKK: Tensor, weight_BKK: Tensor, importance_B: Tensor | None) -> Tensor:
    """The mean over a ranking's pairs by weight, then over the rankings that have one."""
    total_B = weight_BKK.sum(dim=(1, 2))
    loss_B = (each_BKK * weight_BKK).sum(dim=(1, 2)) / total_B.clamp(min=0.5)
    return _weighted_mean(loss_B, total_B > 0, importance_B)


def _weighted_mean(loss_B: Tensor, counts_B: Tensor, importance_B: Tensor | None) -> Tensor:
    importance_B = counts_B.to(loss_B.dtype) * (1.0 if importance_B is None else importance_B)
    total = importance_B.sum()
    return (loss_B * importance_B).sum() / torch.where(total > 0, total, torch.ones_like(total))


# --- PPO -------------------------------------------------------------------------------------------------------------
# B = episodes (one completion each), T = completion tokens, the EOS among them; mask_BT is true on tokens of the
# completion and false on what follows its end.


def masked_whiten(values_BT: Tensor, mask_BT: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Mean 0 and variance 1 over the valid tokens of the whole batch, 0 elsewhere (N+, detail 17)."""
    mean = masked_mean(values_BT, mask_BT)
    variance = masked_mean((values_BT - mean).square(), mask_BT)
    return ((values_BT - mean) * (variance + epsilon).rsqrt()).masked_fill(~mask_BT, 0.0)


def kl_penalised_rewards(
    score_B: Tensor, logprobs_BT: Tensor, reference_logprobs_BT: Tensor, mask_BT: Tensor, *, beta: float
) -> Tensor:
    """r_t = -beta (log pi - log pi_ref), the plain k1 estimate in nats, plus the score at the last token of the
    completion: its EOS, or where the length cut it (InstructGPT, eq. 2 without the pretraining term).

    A row without a valid token is an error of the caller: its score would have no place.
    """
    if not bool(mask_BT.any(dim=1).all()):
        raise ValueError("Every completion needs at least one token to carry its score.")
    rewards_BT = (-beta * (logprobs_BT - reference_logprobs_BT)).masked_fill(~mask_BT, 0.0)
    position_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = torch.where(mask_BT, position_T, -1).amax(dim=1)
    return rewards_BT + (position_T == last_B[:, None]) * score_B[:, None]


def generalised_advantages(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """(advantages_BT, returns_BT) by GAE (1506.02438, eq. 16), unwhitened; V = 0 after a completion's last token.

    returns = advantages + values: what the value model learns. Both are 0 outside the mask.
    """
    mask = mask_BT.to(values_BT.dtype)
    values, rewards = values_BT * mask, rewards_BT * mask
    advantage_B = torch.zeros_like(values[:, 0])
    next_value_B = torch.zeros_like(values[:, 0])
    advantages: list[Tensor] = []
    for t in reversed(range(values.shape[1])):
        delta_B = rewards[:, t] + gamma * next_value_B - values[:, t]
        advantage_B = (delta_B + gamma * lam * advantage_B) * mask[:, t]
        next_value_B = values[:, t]
        advantages.append(advantage_B)
    advantages_BT = torch.stack(advantages[::-1], dim=1)
    return advantages_BT, advantages_BT + values


class PolicyLoss(NamedTuple):
    """The policy's loss (a scalar with a gradient) and token means to plot (detached scalars)."""

    loss: Tensor
    clipfrac: Tensor  # where the clip decided
    approxkl: Tensor  # (log ratio)^2 / 2
    ratio_error: Tensor  # |ratio - 1|


class ValueLoss(NamedTuple):
    """The value model's loss (a scalar with a gradient) and where the clip decided (detached)."""

    loss: Tensor
    clipfrac: Tensor


def clipped_policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip: float,
    num_tokens: int | None = None,
) -> PolicyLoss:
    """max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)), summed over valid tokens and divided by `num_tokens`
    (1707.06347, eq. 7).

    `num_tokens` counts the valid tokens of the whole minibatch; a micro-batch passes it so that its share of the
    token mean adds up to the minibatch's. Left out: the tokens of this mask.
    """
    log_ratio_BT = (logprobs_BT - old_logprobs_BT).masked_fill(~mask_BT, 0.0)
    ratio_BT = log_ratio_BT.exp()
    plain_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1.0 - clip, 1.0 + clip)
    share = partial(_token_share, mask_BT=mask_BT, num_tokens=num_tokens)
    return PolicyLoss(
        loss=share(torch.maximum(plain_BT, clipped_BT)),
        clipfrac=share((clipped_BT > plain_BT).float()).detach(),
        approxkl=share(log_ratio_BT.square() / 2).detach(),
        ratio_error=share((ratio_BT - 1.0).abs()).detach(),
    )


def clipped_value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip: float,
    num_tokens: int | None = None,
) -> ValueLoss:
    """0.5 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2), as `clipped_policy_loss` averages (N+, 13)."""
    near_BT = torch.minimum(torch.maximum(values_BT, old_values_BT - clip), old_values_BT + clip)
    plain_BT, clipped_BT = (values_BT - returns_BT).square(), (near_BT - returns_BT).square()
    share = partial(_token_share, mask_BT=mask_BT, num_tokens=num_tokens)
    return ValueLoss(
        loss=0.5 * share(torch.maximum(plain_BT, clipped_BT)),
        clipfrac=share((clipped_BT > plain_BT).float()).detach(),
    )


def pretraining_loss(logprobs_BT: Tensor, learned_BT: Tensor, *, num_tokens: int | None = None) -> Tensor:
    """-log p of the learned tokens of B texts, as `clipped_policy_loss` averages (InstructGPT, eq. 2, last term)."""
    return -_token_share(logprobs_BT, mask_BT=learned_BT, num_tokens=num_tokens)


def _token_share(values_BT: Tensor, *, mask_BT: Tensor, num_tokens: int | None) -> Tensor:
    """This micro-batch's part of a token mean over `num_tokens` tokens."""
    total = values_BT.masked_fill(~mask_BT, 0.0).sum()
    return total / (num_tokens if num_tokens is not None else mask_BT.sum())
