"""Each error of `make mutants` has its place in the code: who moves the code moves the error."""

import pytest

from tests.holes import HOLES
from tests.mutants import MUTANTS
from tests.planting import ROOT, Mutant, require_places


@pytest.mark.parametrize("mutants", [MUTANTS, HOLES], ids=["trainer", "app"])
def test_every_error_can_be_planted(mutants: tuple[Mutant, ...]) -> None:
    require_places(mutants)
    assert len({mutant.name for mutant in mutants}) == len(mutants)
    for mutant in mutants:
        for test in mutant.tests:
            path, _, name = test.partition("::")
            assert (ROOT / path).exists()
            assert not name or f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")
