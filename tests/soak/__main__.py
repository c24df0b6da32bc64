"""Runs the proofs in full size, and writes down what was found: `make soak`.

All tests of the trainer's table (docs/trainer.md), those that CI runs among them, and the ones of this folder, which
kill web and database too (test_history.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

TESTS = (
    "tests/trainer/test_losses_reward.py",
    "tests/trainer/test_losses_ppo.py",
    "tests/trainer/test_shared_prompt.py",
    "tests/trainer/test_reward.py",
    "tests/trainer/test_ppo.py",
    "tests/trainer/test_ppo_guard.py",
    "tests/trainer/test_own_answers.py",
    "tests/trainer/test_distributed.py",
    "tests/trainer/test_resume.py",
    "tests/trainer/test_checkpoints.py",
    "tests/app/rankings/test_races.py",
    "tests/contract/test_openapi.py",
    "tests/contract/test_rounds.py",
    "tests/contract/test_team.py",
    "tests/security/test_stored_text.py",
    "tests/browser/test_pages.py::test_every_page_is_accessible_and_fits",
    "tests/soak",
)


class Record:
    """A plugin of pytest that remembers how every test went, and what the soak's own tests said besides."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for set-up, test and tear-down."""
        self.seconds[report.nodeid] += report.duration
        if report.when == "call" or report.outcome != "passed":
            self.tests[report.nodeid] = {"outcome": report.outcome, **dict(report.user_properties)}

    def as_json(self) -> dict[str, Any]:
        """Counts of all, and each of the soak's own tests."""
        own = {
            name.partition("::")[2]: {**test, "seconds": round(self.seconds[name], 1)}
            for name, test in self.tests.items()
            if name.startswith("tests/soak/")
        }
        return {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
            "python": platform.python_version(),
            "seconds": round(sum(self.seconds.values())),
            "tests": dict(Counter(test["outcome"] for test in self.tests.values())),
            "red": sorted(name for name, test in self.tests.items() if test["outcome"] == "failed"),
            "soak": own,
        }


def main() -> int:
    """Read the command line; the exit status is pytest's."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    parser.add_argument("tests", nargs="*", default=TESTS, help="only these files")
    asked = parser.parse_args()
    record = Record()
    status = pytest.main(["-m", "soak or not soak", "-o", "timeout=0", *asked.tests], plugins=[record])
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(record.as_json(), indent=2) + "\n", encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
