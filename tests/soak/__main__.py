"""Runs the proofs in full size, and writes down what was found: `make soak`.

All tests of the trainer's table (docs/trainer.md), those that CI runs among them, and the ones of this folder, which
kill web and database too (test_history.py).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
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
    "tests/trainer/ppo",
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
    """A plugin of pytest that remembers how every test went, and what the soak's own tests said besides.

    It is written after every test, so that a soak that somebody ends keeps what it found; the files that did not run
    keep what another soak found of them, be it earlier or beside this one.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.tests: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for set-up, test and tear-down."""
        file, _, name = report.nodeid.partition("::")
        self.seconds[report.nodeid] += report.duration
        if report.when == "call" or report.outcome != "passed":
            self.tests[file][name] = {"outcome": report.outcome, **dict(report.user_properties)}

    def pytest_runtest_logfinish(self) -> None:
        """Called after every test."""
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files = read_files(self.path) | {file: self.of_file(file) for file in self.tests}
            self.path.write_text(json.dumps({"files": dict(sorted(files.items()))}, indent=2) + "\n", encoding="utf-8")

    def of_file(self, file: str) -> dict[str, Any]:
        """How its tests went; of the soak's own files, each test with what it said."""
        tests = self.tests[file]
        found = {
            "date": datetime.now(UTC).date().isoformat(),
            "commit": COMMIT,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
            "python": platform.python_version(),
            "seconds": round(sum(self.seconds[f"{file}::{name}"] for name in tests)),
            "tests": dict(Counter(test["outcome"] for test in tests.values())),
            "red": sorted(name for name, test in tests.items() if test["outcome"] == "failed"),
        }
        if not file.startswith("tests/soak/"):
            return found
        took = {name: test | {"seconds": round(self.seconds[f"{file}::{name}"], 1)} for name, test in tests.items()}
        return found | {"each": took}


def read_files(path: Path | None) -> dict[str, Any]:
    """What other soaks found, by file."""
    if path is None or not path.exists():
        return {}
    files: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["files"]
    return files


def commit() -> str:
    """The commit that is checked out, marked where files differ from it; empty without git."""
    asked = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


COMMIT = commit()


def main() -> int:
    """Read the command line; the exit status is pytest's."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--json", type=Path, help="write what was found to this file, beside what it says of other files"
    )
    parser.add_argument("tests", nargs="*", default=TESTS, help="only these files")
    asked = parser.parse_args()
    status = pytest.main(["-m", "soak or not soak", "-o", "timeout=0", *asked.tests], plugins=[Record(asked.json)])
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
