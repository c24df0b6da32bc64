"""The learning curve: an exact line is found, noise is covered by the interval, and too little says nothing."""

from __future__ import annotations

import numpy as np
import pytest

from app.quality.curves import Point, fit


def point(num: int, accuracy: float, error: float = 0.01) -> Point:
    return Point(num, accuracy, accuracy - 1.96 * error, accuracy + 1.96 * error)


def test_a_line_over_doublings_is_found_and_carried_on() -> None:
    """0.60 at 100, two points a doubling: 0.64 at 400, 0.66 at the next doubling."""
    curve = fit([point(100, 0.60), point(200, 0.62), point(400, 0.64)])
    assert curve is not None
    assert curve.gain == pytest.approx(0.02)
    assert curve.next_num == 800
    assert curve.forecast == pytest.approx(0.66)
    # By hand: slope error = 0.01 / sqrt(sum of squared distances from the middle doubling) = 0.01 / sqrt(2).
    assert curve.gain_high - curve.gain == pytest.approx(1.96 * 0.01 / 2**0.5)


def test_a_forecast_is_no_more_than_all_and_its_interval_is_one() -> None:
    curve = fit([point(100, 0.60), point(200, 0.66), point(400, 0.72)])
    assert curve is not None
    assert curve.forecast == pytest.approx(0.78)
    assert curve.forecast_low < curve.forecast < curve.forecast_high
    steep = fit([point(100, 0.7), point(200, 0.85), point(400, 1.0)])
    assert steep is not None
    assert steep.forecast == 1.0


def test_the_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    numbers = [100, 200, 400, 800, 1600]
    covered = 0
    for _ in range(400):
        noise = rng.normal(0, 0.01, size=len(numbers))
        curve = fit([point(num, 0.6 + 0.011 * k + noise[k]) for k, num in enumerate(numbers)])
        assert curve is not None
        covered += curve.forecast_low <= 0.6 + 0.011 * 5 <= curve.forecast_high
    assert covered / 400 >= 0.93


def test_scatter_beyond_the_errors_widens_the_interval() -> None:
    calm = fit([point(100, 0.60), point(200, 0.62), point(400, 0.64), point(800, 0.66)])
    wild = fit([point(100, 0.60), point(200, 0.70), point(400, 0.56), point(800, 0.66)])
    assert calm is not None
    assert wild is not None
    assert wild.gain_high - wild.gain_low > 3 * (calm.gain_high - calm.gain_low)


@pytest.mark.parametrize("points", [[], [point(100, 0.6), point(400, 0.7)], [point(n, 0.6) for n in (100, 110, 120)]])
def test_too_little_says_nothing(points: list[Point]) -> None:
    assert fit(points) is None
