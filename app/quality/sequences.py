"""When enough was ranked: a confidence sequence, an interval that may be looked at after every single ranking.

An ordinary 95 % interval is right once, at a number of rankings that was fixed before. Who looks again and again and
stops when it leaves one half out errs far more often than one time in twenty. A confidence sequence holds at all
times together, so that a comparison may stop as soon as it is decided.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from app.quality.agreement import Estimate, ratio
from app.quality.orders import Floats, number

ALPHA = 0.05
# How much of what can be staked a bet may stake: c of the paper.
CAUTION = 0.5
GRID = 400


def confidence_sequence(values: Sequence[float], *, alpha: float = ALPHA) -> tuple[float, float]:
    """The interval, at this moment, of the mean of values in [0, 1], in the order in which they came; (0, 1) of none.

    The hedged capital confidence sequence (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
    betting", arXiv 2010.09686, theorem 3, with its predictable plug-in bets and the running intersection): all means
    against which nobody could have won 1/alpha times the stake. It covers the mean at all times at once with
    probability 1 - alpha, whatever the values' distribution.
    """
    means_M = (np.arange(GRID) + 0.5) / GRID
    values_1T = np.asarray(values, dtype=np.float64)[None, :]
    highest_M = capital(values_1T, means_M, alpha=alpha).max(axis=-1, initial=0.0)[0]
    left = means_M[highest_M < 1 / alpha]
    half = 0.5 / GRID
    return (float(left[0] - half), float(left[-1] + half)) if len(left) else (float(np.mean(values)),) * 2


def mean_over_prompts(values: Sequence[float]) -> Estimate | None:
    """The mean of one value a prompt, with the 95 % interval of who looks once, by resampling prompts."""
    return ratio(np.arange(len(values)), np.asarray(values, dtype=np.float64), np.ones(len(values)))


def ratio_over_prompts(prompts: Sequence[Hashable], parts: Sequence[float], wholes: Sequence[float]) -> Estimate | None:
    """Sum of parts over sum of wholes, such as right pairs over pairs, with the interval of who looks once."""
    return ratio(number(prompts)[0], np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64))


def excludes(values_NT: Floats, mean: float = 0.5, *, alpha: float = ALPHA) -> Floats:
    """For each of N sequences: after how many values the mean was ruled out; infinity where it never was."""
    wins_NT = capital(values_NT, np.array([mean]), alpha=alpha)[:, 0, :] >= 1 / alpha
    return np.where(wins_NT.any(axis=1), wins_NT.argmax(axis=1) + 1.0, math.inf)


def capital(values_NT: Floats, means_M: Floats, *, alpha: float = ALPHA) -> Floats:
    """What hedged bets against each mean have made of 1 after each value: shape (N, M, T).

    Half of the capital bets that the mean is higher, half that it is lower; 1/alpha of either half is a win.
    """
    bets_NT = plug_in_bets(values_NT, alpha=alpha)[:, None, :]
    differences = values_NT[:, None, :] - means_M[None, :, None]
    higher = np.minimum(bets_NT, CAUTION / means_M[None, :, None])
    lower = np.minimum(bets_NT, CAUTION / (1 - means_M[None, :, None]))
    won = np.cumsum(np.log1p(higher * differences), axis=-1)
    lost = np.cumsum(np.log1p(-lower * differences), axis=-1)
    # Beyond e^700 no double reaches, and long before that the mean was ruled out.
    made: Floats = np.exp(np.minimum(np.maximum(won, lost), 700.0)) / 2
    return made


def plug_in_bets(values_NT: Floats, *, alpha: float = ALPHA) -> Floats:
    """How much to stake on each value, from those before it: sqrt(2 log(2/alpha) / (variance t log(1 + t)))."""
    times_T = np.arange(1, values_NT.shape[1] + 1)
    means_NT = (0.5 + np.cumsum(values_NT, axis=1)) / (times_T + 1)
    variances_NT = (0.25 + np.cumsum((values_NT - means_NT) ** 2, axis=1)) / (times_T + 1)
    before_NT = np.concatenate([np.full((len(values_NT), 1), 0.25), variances_NT[:, :-1]], axis=1)
    bets: Floats = np.sqrt(2 * math.log(2 / alpha) / (before_NT * times_T * np.log1p(times_T)))
    return bets
