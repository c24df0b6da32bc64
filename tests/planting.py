"""Errors that are planted in a copy of the project, one after another, and the tests that have to turn red: what
`tests/mutants.py` (the trainer's errors) and `tests/holes.py` (the app's) share.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutant:
    """One error: what is replaced by what, where, and the tests that should see it."""

    name: str
    file: str
    old: str
    new: str
    tests: Sequence[str]


@dataclass(frozen=True)
class Verdict:
    """Which test saw it first; none means that it lives."""

    name: str
    file: str
    caught_by: str | None


def run(mutant: Mutant, copy: Path) -> Verdict:
    """Plant the error, run its tests until one fails, and take the error out again."""
    path = copy / mutant.file
    source = path.read_text(encoding="utf-8")
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    # Without a seed of its own, and whatever `addopts` leaves out; programs that a test starts are the copy's, too.
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)}
    try:
        done = subprocess.run(command, check=False, cwd=copy, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(source, encoding="utf-8")
    red = re.search(r"^(?:FAILED|ERROR) \S*?(\w+\.py(?:::\w+)?)", done.stdout, re.MULTILINE)
    return Verdict(mutant.name, mutant.file, red[1] if red and done.returncode else None)


def require_places(mutants: Sequence[Mutant]) -> None:
    """Each error can be planted in one place, or the command ends before the first."""
    for mutant in mutants:
        num = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if num != 1:
            raise SystemExit(f"{mutant.name}: {mutant.file} has its place {num} times, not once")


def as_table(verdicts: Sequence[Verdict]) -> str:
    """The table that stands in the docs."""
    rows = [
        f"| {item.name} | `{item.file}` | {f'`{item.caught_by}`' if item.caught_by else '**none**'} |"
        for item in verdicts
    ]
    return "\n".join(["| planted error | in | the first test that turns red |", "|---|---|---|", *rows])


def copy_project(copy: Path) -> None:
    """All files that git knows, or would take."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)


def main(mutants: Sequence[Mutant], about: str) -> int:
    """Read the command line; the exit status is 1 when a mutant lives."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("names", nargs="*", help="only mutants whose name contains one of these")
    parser.add_argument("--json", type=Path, help="write the verdicts to this file")
    asked = parser.parse_args()
    chosen = [item for item in mutants if not asked.names or any(name in item.name for name in asked.names)]
    require_places(chosen)
    with tempfile.TemporaryDirectory(prefix="rankloop-mutants-") as folder:
        copy = Path(folder)
        # Who serves the tests' database need not be who runs them.
        copy.chmod(0o755)
        copy_project(copy)
        verdicts = []
        for mutant in chosen:
            verdicts.append(run(mutant, copy))
            sys.stderr.write(f"{mutant.name}: {verdicts[-1].caught_by or 'LIVES'}\n")
    sys.stdout.write(as_table(verdicts) + "\n")
    if asked.json:
        asked.json.write_text(json.dumps([asdict(item) for item in verdicts], indent=2) + "\n", encoding="utf-8")
    return int(any(item.caught_by is None for item in verdicts))
