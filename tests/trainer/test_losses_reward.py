"""The K-score loss: by hand, against a slow double loop in float64, and what must not matter to it."""

import math

import pytest
import torch
from torch import Tensor

from trainer.losses import pairwise_loss


def weights_of(places: list[list[int | None]]) -> Tensor:
    """1 where the row's place is before the column's; None has no place."""
    return torch.tensor(
        [[[float(p is not None and q is not None and p < q) for q in row] for p in row] for row in places],
        dtype=torch.float64,
    )


PLACES: list[list[int | None]] = [[0, 1, 2, 3], [1, 1, 0, None], [0, 0, 0, 0], [None, 2, None, 0]]


def slow_loss(rewards: Tensor, weights: Tensor) -> Tensor:
    losses = []
    for reward, weight in zip(rewards, weights, strict=True):
        pairs = [(w, i, j) for i, row in enumerate(weight.tolist()) for j, w in enumerate(row) if w > 0]
        if pairs:
            total = sum(w for w, _, _ in pairs)
            each = [w * -torch.log(torch.sigmoid(reward[i] - reward[j])) for w, i, j in pairs]
            losses.append(torch.stack(each).sum() / total)
    return torch.stack(losses).mean()


def noise(*shape: int) -> Tensor:
    return 2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_the_loss_by_hand() -> None:
    # One ranking, best first, with rewards 2, 0 and 1. Pairs: 2 over 0, 2 over 1, 0 over 1:
    # log(1 + e^-2) = 0.126928, log(1 + e^-1) = 0.313262, log(1 + e^1) = 1.313262; their mean is 0.584484.
    loss = pairwise_loss(torch.tensor([[2.0, 0.0, 1.0]]), weights_of([[0, 1, 2]]).float())
    assert loss.item() == pytest.approx(0.584484, abs=1e-6)


def test_loss_and_gradient_equal_a_slow_double_loop() -> None:
    weights = weights_of(PLACES)
    weights[2, 0, 1] = weights[2, 1, 0] = 0.5
    fast, slow = (noise(4, 4).requires_grad_() for _ in range(2))
    pairwise_loss(fast, weights).backward()
    slow_loss(slow, weights).backward()
    assert pairwise_loss(fast, weights).item() == pytest.approx(slow_loss(slow, weights).item(), rel=1e-6)
    assert fast.grad is not None
    assert slow.grad is not None
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-6, atol=1e-12)


def test_equal_rewards_give_log_2() -> None:
    assert pairwise_loss(torch.full((4, 4), 3.0), weights_of(PLACES).float()).item() == pytest.approx(math.log(2))


def test_rankings_count_the_same_whatever_their_number_of_pairs() -> None:
    # Six pairs that are right by far (loss 0) and one pair that is undecided (loss log 2): the mean is log(2) / 2.
    rewards = torch.tensor([[300.0, 200.0, 100.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    weights = weights_of([[0, 1, 2, 3], [0, 1, None, None]]).float()
    assert pairwise_loss(rewards, weights).item() == pytest.approx(math.log(2) / 2)


def test_ties_that_are_dropped_and_answers_without_place_get_no_gradient() -> None:
    rewards = noise(1, 4).requires_grad_()
    pairwise_loss(rewards, weights_of([[1, 1, None, 2]])).backward()
    assert rewards.grad is not None
    assert rewards.grad[0, 2] == 0
    assert rewards.grad[0, 0] != rewards.grad[0, 3]


def test_a_half_tie_pulls_two_rewards_together() -> None:
    rewards = torch.tensor([[1.0, -1.0]], requires_grad=True)
    weights = torch.tensor([[[0.0, 0.5], [0.5, 0.0]]])
    pairwise_loss(rewards, weights).backward()
    # d/dr of the mean of log(1 + e^-2) and log(1 + e^2), with d = 2: tanh(1) / 2 = 0.380797.
    assert rewards.grad is not None
    assert rewards.grad[0].tolist() == pytest.approx([0.380797, -0.380797], abs=1e-6)


def test_padding_and_order_do_not_matter() -> None:
    rewards, weights = noise(4, 4), weights_of(PLACES)
    padded = torch.full((4, 6), float("nan"), dtype=torch.float64)
    padded[:, :4] = rewards
    padded_weights = torch.zeros(4, 6, 6, dtype=torch.float64)
    padded_weights[:, :4, :4] = weights
    order = torch.tensor([2, 0, 3, 1])
    shuffled = pairwise_loss(rewards[order][:, order], weights[order][:, order][:, :, order])
    assert pairwise_loss(padded, padded_weights).item() == pytest.approx(pairwise_loss(rewards, weights).item())
    assert shuffled.item() == pytest.approx(pairwise_loss(rewards, weights).item())


def test_large_margins_neither_overflow_nor_vanish() -> None:
    rewards = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    loss = pairwise_loss(rewards, weights_of([[0, 1]]).float())
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert rewards.grad is not None
    assert rewards.grad[0].tolist() == [-1.0, 1.0]
