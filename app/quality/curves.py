"""What the next rankings are worth: held-out accuracy against their number, fitted, with a forecast of a doubling.

Accuracy grows by about as much with each doubling (Stiennon et al. 2020, section 4.3: about +1.1 points). So a line
over log2 of the number is fitted, to points that are comparable: of rankings that are equally hard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.quality.orders import Floats

# Of a normal law, half the width of the 95 % interval in standard errors.
Z = 1.96
PUBLISHED_GAIN = 0.011
MIN_DOUBLINGS = 1.0
"""Points that lie closer together than this say nothing of a doubling."""


@dataclass(frozen=True)
class Point:
    """A reward model: from how many rankings, how often right on held-out ones, and the 95 % interval of that."""

    num_rankings: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """Points of accuracy that a doubling brings, and what the next one leads to, each with a 95 % interval."""

    gain: float
    gain_low: float
    gain_high: float
    next_num: int
    forecast: float
    forecast_low: float
    forecast_high: float
    line: Sequence[tuple[float, float]]
    """(rankings, accuracy) at both ends and at the next doubling."""


def fit(points: Sequence[Point]) -> Curve | None:
    """A line over log2, weighted by the points' own errors; None from fewer than three points, or too near ones.

    Where the points scatter more than their errors say, the interval is wider for it. The forecast isn't cut at how
    often people agree: who knew what most prefer would be right more often than that.
    """
    known = [point for point in points if point.num_rankings > 0 and point.high > point.low]
    if len(known) < 3:
        return None
    doublings = np.log2(np.array([point.num_rankings for point in known], dtype=np.float64))
    if doublings.max() - doublings.min() < MIN_DOUBLINGS:
        return None
    accuracies = np.array([point.accuracy for point in known])
    errors = np.array([(point.high - point.low) / (2 * Z) for point in known])
    beta, covariance = weighted_line(doublings, accuracies, errors)
    following = float(doublings.max() + 1)
    at = np.array([1.0, following])
    error = float(np.sqrt(at @ covariance @ at))
    spread = float(np.sqrt(covariance[1, 1]))
    value, low, high = (min(1.0, float(at @ beta) + step * Z * error) for step in (0, -1, 1))
    ends = [float(doublings.min()), float(doublings.max())]
    line = [(2.0**end, float(beta[0] + beta[1] * end)) for end in ends] + [(2.0**following, value)]
    gain = float(beta[1])
    return Curve(gain, gain - Z * spread, gain + Z * spread, round(2.0**following), value, low, high, line)


def weighted_line(x_N: Floats, y_N: Floats, errors_N: Floats) -> tuple[Floats, Floats]:
    """(intercept and slope, their covariance) by weighted least squares; scatter beyond the errors widens it."""
    design = np.stack([np.ones_like(x_N), x_N], axis=1) / errors_N[:, None]
    inverse = np.linalg.inv(design.T @ design)
    beta: Floats = (inverse @ design.T @ (y_N / errors_N)).astype(np.float64)
    residuals = y_N / errors_N - design @ beta
    scatter = float(residuals @ residuals) / max(1, len(x_N) - 2)
    covariance: Floats = (inverse * max(1.0, scatter)).astype(np.float64)
    return beta, covariance
