"""What was chosen on a few seeds, on seeds that nobody has looked at: the guard, and PPO's optimum."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.ppo.test_ppo_guard import Gains, World, gains_with_and_without_a_guard, small_world, wider_world
from tests.trainer.ppo.test_ppo_optimum import share_of_the_optimum

pytestmark = pytest.mark.soak


WORLDS: dict[str, tuple[Callable[[Path, int], World], range, float]] = {
    # On the three seeds that the guard's size was chosen on it keeps nine tenths; on these six it was 89 %, as single
    # answers decide there (74 to 99.8 % a seed).
    "two questions": (small_world, range(10, 16), 0.85),
    "eight questions": (wider_world, range(40, 43), 0.9),
}


@pytest.mark.parametrize("name", WORLDS)
def test_a_guard_keeps_what_was_gained_on_fresh_seeds(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    make, seeds, gate = WORLDS[name]
    found = [gains_with_and_without_a_guard(make(tmp_path / str(seed), seed), seed) for seed in seeds]
    total = Gains(*(sum(values) / len(found) for values in zip(*found, strict=True)))
    record_property("kept of the best, by seed", [round(gains.kept / gains.best, 3) for gains in found])
    record_property("kept of the best", round(total.kept / total.best, 3))
    record_property("left without a guard", round(total.last / total.best, 3))
    assert total.kept > total.last or total.kept >= 0.95 * total.best
    assert total.kept >= gate * total.best


def test_ppo_reaches_the_optimum_on_fresh_seeds(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    shares = [share_of_the_optimum(tmp_path / str(seed), seed, beta=0.5) for seed in range(30, 36)]
    record_property("share of the optimum, by seed", [round(share, 4) for share in shares])
    assert sum(shares) / len(shares) >= 0.95
