"""PPO's tensor functions: by hand, against slow definitions in float64, and what must not matter to them."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainer.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    generalised_advantages,
    kl_penalised_rewards,
    masked_mean,
    masked_whiten,
)

B, T = 5, 9
LENGTHS = [9, 1, 4, 7, 2]


def ragged_mask() -> Tensor:
    return torch.arange(T)[None, :] < torch.tensor(LENGTHS)[:, None]


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or (B, T)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MASK = ragged_mask()


def test_masked_mean_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0, 100.0], [4.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(values, mask).item() == pytest.approx(7 / 3)  # (1 + 2 + 4) / 3, not the mean of row means
    assert masked_mean(values, mask, dim=1).tolist() == [1.5, 4.0]


# --- whitening


def test_whitening_gives_mean_0_and_variance_1_over_valid_tokens() -> None:
    white = masked_whiten(3.0 * noise(1) + 5.0, MASK)[MASK]
    assert white.mean().item() == pytest.approx(0.0, abs=1e-9)
    assert white.square().mean().item() == pytest.approx(1.0, abs=1e-6)


def test_whitening_by_hand() -> None:
    # Valid: 1, 3, 5; mean 3, variance 8/3, so -2 / sqrt(8/3) = -1.2247. The 90 is padding.
    values, mask = torch.tensor([[1.0, 3.0], [5.0, 90.0]]), torch.tensor([[True, True], [True, False]])
    torch.testing.assert_close(masked_whiten(values, mask), torch.tensor([[-1.2247449, 0.0], [1.2247449, 0.0]]))


# --- rewards


def test_rewards_by_hand() -> None:
    # beta 0.5. Token 1: log ratio -1 - -2 = 1, so -0.5. Token 2: -3 - -2 = -1, so +0.5 (unclamped), plus the score 10.
    rewards = kl_penalised_rewards(
        torch.tensor([10.0]),
        torch.tensor([[-1.0, -3.0, -7.0]]),
        torch.tensor([[-2.0, -2.0, -9.0]]),
        torch.tensor([[True, True, False]]),
        beta=0.5,
    )
    assert rewards.tolist() == [[-0.5, 10.5, 0.0]]


@pytest.mark.parametrize("length", [1, 4, T])
def test_the_score_lands_on_the_last_token_of_the_completion(length: int) -> None:
    # The last token is the EOS, or where the length cut it (then the row is full: length T).
    mask = torch.arange(T)[None, :] < length
    zeros = torch.zeros(1, T)
    rewards = kl_penalised_rewards(torch.tensor([2.0]), zeros, zeros, mask, beta=0.1)
    assert rewards.nonzero().tolist() == [[0, length - 1]]
    assert rewards[0, length - 1].item() == 2.0


def test_rewards_sum_to_score_minus_beta_times_summed_kl() -> None:
    logprobs, reference, score = noise(1), noise(2), noise(3, B)
    rewards = kl_penalised_rewards(score, logprobs, reference, MASK, beta=0.3)
    summed_kl = ((logprobs - reference) * MASK).sum(1)
    torch.testing.assert_close(rewards.sum(1), score - 0.3 * summed_kl, rtol=0, atol=1e-12)


def test_a_completion_without_tokens_is_refused() -> None:
    zeros = torch.zeros(1, T)
    with pytest.raises(ValueError, match="at least one token"):
        kl_penalised_rewards(torch.tensor([2.0]), zeros, zeros, torch.zeros(1, T, dtype=torch.bool), beta=0.1)


# --- advantages


def slow_advantages(rewards: Tensor, values: Tensor, lengths: list[int], gamma: float, lam: float) -> Tensor:
    """A_t = sum over l of (gamma lambda)^l delta_{t+l}, straight from 1506.02438 eq. 16: O(T^2)."""
    advantages = torch.zeros_like(values)
    for row, length in enumerate(lengths):
        for t in range(length):
            for later in range(t, length):
                next_value = values[row, later + 1].item() if later + 1 < length else 0.0
                delta = rewards[row, later].item() + gamma * next_value - values[row, later].item()
                advantages[row, t] += (gamma * lam) ** (later - t) * delta
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_equal_the_slow_definition(gamma: float, lam: float) -> None:
    rewards, values = noise(1), noise(2)
    advantages, returns = generalised_advantages(rewards, values, MASK, gamma=gamma, lam=lam)
    expected = slow_advantages(rewards, values, LENGTHS, gamma, lam)
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(returns, expected + values * MASK, rtol=0, atol=1e-12)


def test_advantages_by_hand() -> None:
    # gamma 1, lambda 0.5, rewards 0 and 1, values 0.4 and 0.6.
    # Last token: 1 + 0 - 0.6 = 0.4. First: 0 + 0.6 - 0.4 = 0.2, and 0.2 + 0.5 * 0.4 = 0.4.
    advantages, returns = generalised_advantages(
        torch.tensor([[0.0, 1.0]]), torch.tensor([[0.4, 0.6]]), torch.ones(1, 2, dtype=torch.bool), gamma=1.0, lam=0.5
    )
    torch.testing.assert_close(advantages, torch.tensor([[0.4, 0.4]]))
    torch.testing.assert_close(returns, torch.tensor([[0.8, 1.0]]))


# --- the policy's loss


def test_policy_loss_by_hand() -> None:
    # clip 0.2. Ratio 1.5, A = 2: max(-3, -2.4) = -2.4, clipped. Ratio 1.5, A = -2: max(3, 2.4) = 3, not clipped.
    # Ratio 0.5, A = 2: max(-1, -1.6) = -1, not clipped. Ratio 0.5, A = -2: max(1, 1.6) = 1.6, clipped.
    ratio = torch.tensor([[1.5, 1.5], [0.5, 0.5]])
    advantages = torch.tensor([[2.0, -2.0], [2.0, -2.0]])
    result = clipped_policy_loss(
        ratio.log(), torch.zeros(2, 2), advantages, torch.ones(2, 2, dtype=torch.bool), clip=0.2
    )
    assert result.loss.item() == pytest.approx((-2.4 + 3.0 - 1.0 + 1.6) / 4)
    assert result.clipfrac.item() == 0.5
    assert result.approxkl.item() == pytest.approx((math.log(1.5) ** 2 + math.log(0.5) ** 2) / 4)
    assert result.ratio_error.item() == pytest.approx(0.5)


def test_the_policy_s_gradient_raises_what_was_better_than_expected() -> None:
    logprobs = torch.zeros(1, 2, requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0]])
    clipped_policy_loss(
        logprobs, torch.zeros(1, 2), advantages, torch.ones(1, 2, dtype=torch.bool), clip=0.2
    ).loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-0.5, 0.5]]  # descent adds to the first and takes from the second


def test_an_unmoved_policy_has_ratio_1_and_nothing_is_clipped() -> None:
    result = clipped_policy_loss(noise(1), noise(1), noise(2), MASK, clip=0.2)
    assert (result.ratio_error.item(), result.approxkl.item(), result.clipfrac.item()) == (0.0, 0.0, 0.0)
    assert result.loss.item() == pytest.approx(-noise(2)[MASK].mean().item())


# --- the value model's loss


def test_value_loss_by_hand() -> None:
    # clip 0.2, old value 0, return 1. V = 0.5: max(0.25, (0.2 - 1)^2 = 0.64) = 0.64, clipped. V = -1: max(4, 1.44) = 4.
    result = clipped_value_loss(
        torch.tensor([[0.5, -1.0]]), torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), clip=0.2
    )
    assert result.loss.item() == pytest.approx(0.5 * (0.64 + 4.0) / 2)
    assert result.clipfrac.item() == 0.5


# --- what must not matter

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, int | None], Tensor]


def policy_loss(new: Tensor, old: Tensor, target: Tensor, mask: Tensor, num_tokens: int | None) -> Tensor:
    return clipped_policy_loss(new, old, target, mask, clip=0.2, num_tokens=num_tokens).loss


def value_loss(new: Tensor, old: Tensor, target: Tensor, mask: Tensor, num_tokens: int | None) -> Tensor:
    return clipped_value_loss(new, old, target, mask, clip=0.2, num_tokens=num_tokens).loss


BOTH = pytest.mark.parametrize("loss", [policy_loss, value_loss])


def loss_and_gradient(
    loss: Loss, rows: list[slice], mask: Tensor = MASK, scramble: float = 0.0
) -> tuple[float, Tensor]:
    """Summed over micro-batches of these rows; `scramble` changes all that the mask hides."""
    hidden = scramble * noise(9) * ~MASK
    new = (noise(1) + hidden).requires_grad_()
    old, target, total = noise(2) + 2 * hidden, noise(3) + 3 * hidden, 0.0
    for part in rows:
        share = loss(new[part], old[part], target[part], mask[part], int(mask.sum()))
        share.backward()
        total += share.item()
    assert new.grad is not None
    return total, new.grad


@BOTH
def test_a_token_mean_does_not_depend_on_the_micro_batches(loss: Loss) -> None:
    whole, gradient = loss_and_gradient(loss, [slice(0, B)])
    split, split_gradient = loss_and_gradient(loss, [slice(0, 1), slice(1, 4), slice(4, B)])
    assert split == pytest.approx(whole, abs=1e-12)
    torch.testing.assert_close(split_gradient, gradient, rtol=0, atol=1e-12)
    assert loss(noise(1), noise(2), noise(3), MASK, None).item() == pytest.approx(whole, abs=1e-12)


@BOTH
def test_padding_changes_no_loss_and_gets_no_gradient(loss: Loss) -> None:
    clean, gradient = loss_and_gradient(loss, [slice(0, B)])
    scrambled, scrambled_gradient = loss_and_gradient(loss, [slice(0, B)], scramble=10.0)
    assert scrambled == pytest.approx(clean, abs=1e-12)
    torch.testing.assert_close(scrambled_gradient, gradient, rtol=0, atol=1e-12)
    assert not gradient[~MASK].any()


def test_padding_changes_no_whitening_reward_or_advantage() -> None:
    hidden = 100.0 * noise(9) * ~MASK
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda extra: masked_whiten(noise(1) + extra, MASK),
        lambda extra: kl_penalised_rewards(noise(3, B), noise(1) + extra, noise(2) - extra, MASK, beta=0.1),
        lambda extra: generalised_advantages(noise(1) + extra, noise(2) + extra, MASK, gamma=1.0, lam=0.95)[0],
        lambda extra: generalised_advantages(noise(1) + extra, noise(2) + extra, MASK, gamma=1.0, lam=0.95)[1],
    )
    for function in functions:
        torch.testing.assert_close(function(hidden), function(torch.zeros_like(hidden)), rtol=0, atol=1e-12)
        assert not function(hidden)[~MASK].any()


def test_the_order_of_rows_does_not_matter() -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(masked_whiten(noise(1)[order], MASK[order]), masked_whiten(noise(1), MASK)[order])
    for loss in (policy_loss, value_loss):
        shuffled = loss(noise(1)[order], noise(2)[order], noise(3)[order], MASK[order], None)
        torch.testing.assert_close(shuffled, loss(noise(1), noise(2), noise(3), MASK, None), rtol=0, atol=1e-12)


def test_arguments_stay_as_they_were() -> None:
    arguments = [noise(1), noise(2), noise(3), MASK.clone()]
    clipped_policy_loss(*arguments, clip=0.2)
    clipped_value_loss(*arguments, clip=0.2)
    generalised_advantages(arguments[0], arguments[1], arguments[3], gamma=1.0, lam=0.95)
    kl_penalised_rewards(noise(3, B), arguments[0], arguments[1], arguments[3], beta=0.1)
    masked_whiten(arguments[0], arguments[3])
    for argument, original in zip(arguments, [noise(1), noise(2), noise(3), MASK], strict=True):
        assert torch.equal(argument, original)


def test_metrics_are_detached() -> None:
    new = noise(1).requires_grad_()
    policy = clipped_policy_loss(new, noise(2), noise(3), MASK, clip=0.2)
    value = clipped_value_loss(new, noise(2), noise(3), MASK, clip=0.2)
    assert not any(metric.requires_grad for metric in (*policy[1:], *value[1:]))
