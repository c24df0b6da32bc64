"""What was chosen on a few seeds, on seeds that nobody has looked at: the guard, and PPO's optimum."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.test_ppo import share_of_the_optimum
from tests.trainer.test_ppo_guard import Gains, gains_with_and_without_a_guard

pytestmark = pytest.mark.soak


def test_a_guard_keeps_more_than_none_on_fresh_seeds(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = [gains_with_and_without_a_guard(tmp_path / str(seed), seed) for seed in range(10, 16)]
    total = Gains(*(sum(values) / len(found) for values in zip(*found, strict=True)))
    record_property("kept of the best, by seed", [round(gains.kept / gains.best, 3) for gains in found])
    record_property("kept of the best", round(total.kept / total.best, 3))
    record_property("left without a guard", round(total.last / total.best, 3))
    # Nine tenths, which it keeps on the three seeds that its size was chosen on, are not promised here: it kept 89 %.
    assert total.kept > total.last


def test_ppo_reaches_the_optimum_on_fresh_seeds(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    shares = [share_of_the_optimum(tmp_path / str(seed), seed, beta=0.5) for seed in range(30, 36)]
    record_property("share of the optimum, by seed", [round(share, 4) for share in shares])
    assert sum(shares) / len(shares) >= 0.95
