"""Each error of `make mutants` has its place in the code: who moves the code moves the error."""

from tests.mutants import MUTANTS, TESTS_OF, require_places


def test_every_error_can_be_planted() -> None:
    require_places(MUTANTS)
    assert {mutant.file for mutant in MUTANTS} <= TESTS_OF.keys()
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
