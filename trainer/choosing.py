"""How much the reward model would learn from a ranking of some answers. By these figures waiting tasks are ordered.

Pure functions, torch only. They look at an ensemble's scores or at hidden states, never at what people said of these
answers: nobody has ranked them yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

# K = answers of a task, E = heads of an ensemble, P = pairs of answers, M = answers that were ranked, D = hidden size


def disagreement(score_KE: Tensor) -> float:
    """How differently the heads see which of two answers is better: the standard deviation over heads of the chance
    that the one wins, mean over the pairs. 0 where there is one head; at most 0.5.
    """
    return _chances(score_KE).std(dim=1, correction=0).mean().item()


def expected_gain(score_KE: Tensor) -> float:
    """What a ranking is expected to tell about which head is right, in nats a pair (BALD, arXiv 1112.5745): the entropy
    of the mean chance less the mean entropy of the chances. 0 where all heads agree, however unsure each of them is.
    """
    chance_PE = _chances(score_KE)
    return (_entropy(chance_PE.mean(dim=1)) - _entropy(chance_PE).mean(dim=1)).mean().clamp(min=0.0).item()


def novelty(state_KD: Tensor, seen_MD: Tensor) -> float:
    """How unlike all ranked answers these are: one minus the cosine to the nearest, mean over the answers; 1 where
    nothing was ranked.
    """
    if not len(seen_MD):
        return 1.0
    near_K = (_unit(state_KD) @ _unit(seen_MD).T).amax(dim=1)
    return (1.0 - near_K).mean().clamp(min=0.0).item()


def _chances(score_KE: Tensor) -> Tensor:
    """chance_PE that the first of two answers wins, as each head sees it (Bradley-Terry)."""
    first, second = torch.triu_indices(len(score_KE), len(score_KE), offset=1, device=score_KE.device)
    return torch.sigmoid(score_KE[first] - score_KE[second])


def _entropy(chance: Tensor) -> Tensor:
    """Of a coin with this chance, in nats."""
    entropy: Tensor = torch.special.entr(chance) + torch.special.entr(1.0 - chance)
    return entropy


def _unit(state_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(state_ND.float(), dim=1)
