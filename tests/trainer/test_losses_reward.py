"""The K-score loss: by hand, against a slow double loop in float64, and what must not matter to it."""

import math

import pytest
import torch
from torch import Tensor

from trainer.losses import davidson_loss, pairwise_loss, plackett_luce_loss


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


# --- Against slow loops over pairs and choices, in float64 ---

IMPORTANCE = [1.0, 0.25, 3.0, 0.5]


def half_ties(places: list[list[int | None]]) -> Tensor:
    weights = weights_of(places)
    for b, row in enumerate(places):
        for i, p in enumerate(row):
            for j, q in enumerate(row):
                if i != j and p is not None and p == q:
                    weights[b, i, j] = 0.5
    return weights


def margins_of(places: list[list[int | None]], step: float) -> Tensor:
    return torch.tensor(
        [[[step * ((q or 0) - (p or 0)) for q in row] for p in row] for row in places], dtype=torch.float64
    )


def slow_pairs(rewards: Tensor, theta: Tensor | None, step: float, smoothing: float) -> Tensor:
    """Each pair once, by its probability; a tie is a third answer with `theta`, else one half both ways."""

    def win(d: Tensor) -> Tensor:
        if theta is None:
            return 1 / (1 + torch.exp(-d))
        return 1 / (1 + torch.exp(-d) + torch.exp(theta) * torch.exp(-d / 2))

    losses = []
    for reward, places in zip(rewards, PLACES, strict=True):
        found = []
        for i, p in enumerate(places):
            for j, q in enumerate(places):
                if p is None or q is None or i == j:
                    continue
                d = reward[i] - reward[j]
                if p < q:
                    d = d - step * (q - p)
                    found.append(-(1 - smoothing) * torch.log(win(d)) - smoothing * torch.log(win(-d)))
                elif p == q and i < j and theta is None:
                    found.append(-(torch.log(win(d)) + torch.log(win(-d))) / 2)
                elif p == q and i < j and theta is not None:
                    nu = torch.exp(theta)
                    found.append(-torch.log(nu / (torch.exp(d / 2) + torch.exp(-d / 2) + nu)))
        losses.append(torch.stack(found).mean())
    return (torch.stack(losses) * torch.tensor(IMPORTANCE)).sum() / sum(IMPORTANCE)


def require_same(fast: Tensor, slow: Tensor, *leaves: Tensor) -> None:
    assert fast.item() == pytest.approx(slow.item(), rel=1e-6)
    for one, other in zip(torch.autograd.grad(fast, leaves), torch.autograd.grad(slow, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("step", [0.0, 0.3])
def test_margins_smoothing_and_importance_equal_a_slow_double_loop(step: float, smoothing: float) -> None:
    rewards = noise(4, 4).requires_grad_()
    fast = pairwise_loss(
        rewards,
        half_ties(PLACES),
        margin_BKK=margins_of(PLACES, step),
        label_smoothing=smoothing,
        importance_B=torch.tensor(IMPORTANCE),
    )
    require_same(fast, slow_pairs(rewards, None, step, smoothing), rewards)


@pytest.mark.parametrize(("step", "smoothing"), [(0.0, 0.0), (0.3, 0.1)])
def test_davidson_equals_a_slow_double_loop(step: float, smoothing: float) -> None:
    rewards = noise(4, 4).requires_grad_()
    theta = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    fast = davidson_loss(
        rewards,
        half_ties(PLACES),
        theta,
        margin_BKK=margins_of(PLACES, step),
        label_smoothing=smoothing,
        importance_B=torch.tensor(IMPORTANCE),
    )
    require_same(fast, slow_pairs(rewards, theta, step, smoothing), rewards, theta)


@pytest.mark.parametrize("gap", [-3.0, 0.0, 0.7])
def test_davidsons_three_answers_have_probability_one(gap: float) -> None:
    rewards, theta = torch.tensor([[gap, 0.0]]), torch.tensor(0.3)
    losses = [
        davidson_loss(rewards, torch.tensor([[[0.0, up], [down, 0.0]]]), theta).item()
        for up, down in [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
    ]
    assert sum(math.exp(-loss) for loss in losses) == pytest.approx(1.0)


def test_davidson_without_ties_is_the_pairwise_loss_where_nu_is_nothing() -> None:
    rewards, weights = noise(4, 4), weights_of(PLACES)
    nothing = torch.tensor(-60.0, dtype=torch.float64)
    assert davidson_loss(rewards, weights, nothing).item() == pytest.approx(pairwise_loss(rewards, weights).item())


def slow_plackett_luce(rewards: Tensor) -> Tensor:
    """Places from the best on; of m tied answers the l-th choice leaves (m - l) / m of each in the rest (Efron)."""
    losses = []
    for reward, places in zip(rewards, PLACES, strict=True):
        placed = [i for i, p in enumerate(places) if p is not None]
        total = torch.zeros((), dtype=torch.float64)
        for place in sorted({p for p in places if p is not None}):
            tied = [i for i in placed if places[i] == place]
            after = [i for i in placed if (places[i] or 0) > place]
            for num_before, i in enumerate(tied):
                rest = sum((torch.exp(reward[j]) for j in after), torch.zeros((), dtype=torch.float64))
                rest = rest + (len(tied) - num_before) / len(tied) * torch.exp(reward[tied]).sum()
                total = total + torch.log(rest) - reward[i]
        losses.append(total / (len(placed) - 1))
    return (torch.stack(losses) * torch.tensor(IMPORTANCE)).sum() / sum(IMPORTANCE)


def places_tensor(places: list[list[int | None]]) -> Tensor:
    return torch.tensor([[-1 if p is None else p for p in row] for row in places])


def test_plackett_luce_equals_a_slow_loop() -> None:
    rewards = noise(4, 4).requires_grad_()
    fast = plackett_luce_loss(rewards, places_tensor(PLACES), importance_B=torch.tensor(IMPORTANCE))
    require_same(fast, slow_plackett_luce(rewards), rewards)


def test_plackett_luce_of_two_answers_is_their_pair() -> None:
    rewards = noise(1, 2)
    pair = pairwise_loss(rewards, weights_of([[1, 0]]))
    assert plackett_luce_loss(rewards, torch.tensor([[1, 0]])).item() == pytest.approx(pair.item())


def test_plackett_luce_is_the_probability_of_the_order() -> None:
    # Utilities log 3, log 2, log 1 in the order 1, 0, 2: 2/6 · 3/4 = 1/4; two choices.
    rewards = torch.tensor([[math.log(3), math.log(2), 0.0]])
    assert plackett_luce_loss(rewards, torch.tensor([[1, 0, 2]])).item() == pytest.approx(math.log(4) / 2)


def test_missing_answers_have_no_part_in_plackett_luce() -> None:
    rewards = torch.tensor([[1.0, float("nan"), 0.0, 5.0], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    places = torch.tensor([[0, -1, 1, -1], [-1, -1, 0, -1]])
    loss = plackett_luce_loss(rewards, places)
    loss.backward()
    # Only the first ranking has a choice: log(1 + e^-1).
    assert loss.item() == pytest.approx(0.313262, abs=1e-6)
    assert rewards.grad is not None
    assert rewards.grad[:, [1, 3]].abs().sum() == 0
    assert rewards.grad[1].abs().sum() == 0


def test_no_ranking_with_a_pair_gives_zero() -> None:
    rewards = torch.zeros(1, 2)
    assert pairwise_loss(rewards, torch.zeros(1, 2, 2)).item() == 0
    assert davidson_loss(rewards, torch.zeros(1, 2, 2), torch.tensor(0.0)).item() == 0
    assert plackett_luce_loss(rewards, torch.tensor([[-1, 0]])).item() == 0
