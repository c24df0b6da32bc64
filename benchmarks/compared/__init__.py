"""What Rankloop is measured beside has an environment of its own, which is made where it is first needed, and kept."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent


def python_of(requirements: str, named: Path | None) -> Path | None:
    """The Python that has what benchmarks/`requirements` lists: the one that is named, or that of an environment in the
    data folder. None where it can't be made, which is said.

    What this Python has, the environment has too: torch is not fetched twice.
    """
    if named is not None:
        return named.absolute()
    wanted = (BENCHMARKS / requirements).read_text(encoding="utf-8")
    folder = Path(os.environ.get("RANKLOOP_DATA_DIR", ".data")).absolute() / "benchmarks" / Path(requirements).stem
    python, stamp = folder / "bin/python", folder / requirements
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        print(f"Making {folder} from benchmarks/{requirements}.", file=sys.stderr, flush=True)
        failure = _make(folder, python, BENCHMARKS / requirements)
        if failure:
            print(f"not compared: benchmarks/{requirements} can't be installed ({failure})", file=sys.stderr)
            return None
        stamp.write_text(wanted, encoding="utf-8")
    return python


def _make(folder: Path, python: Path, requirements: Path) -> str:
    """Build the environment; why that failed, empty where it did not."""
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode == 0:
        own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
        (own / "rankloop.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        install = [str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)]
        made = subprocess.run(install, capture_output=True, text=True, check=False)
    lines = (made.stderr or made.stdout).strip().splitlines()
    return "" if made.returncode == 0 else (lines or ["no word"])[-1]
