"""What Rankloop is made of: licences that it may be given away with, and a bill of materials that lists everything."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
# LGPL is fine for a library that is used as it is; what asks the whole to be given away under the same terms is not.
REFUSED = re.compile(r"\bA?GPL|Affero|(?<!Lesser )General Public|Proprietary|Commercial|UNKNOWN", re.IGNORECASE)
# Parts of torch's CUDA build, under NVIDIA's terms; nobody gets them from us.
OF_THE_DRIVER = ("nvidia-", "cuda-", "triton")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> set[str]:
    """What an installed library needs, itself included."""
    if (canonical(name), extras) in seen:
        return set()
    seen.add((canonical(name), extras))
    try:
        requirements = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return set()  # for another platform or Python
    found = {canonical(name)}
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            found |= needed(requirement.name, frozenset(requirement.extras), seen)
    return found


def licences() -> dict[str, str]:
    """Name of every installed library -> its licence."""
    program = Path(sys.executable).with_name("pip-licenses")
    command = [program, "--from=mixed", "--with-system", "--format=json"]
    rows: list[dict[str, Any]] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {canonical(row["Name"]): row["License"] for row in rows}


def test_every_library_has_a_licence_under_which_rankloop_can_be_given_away() -> None:
    names = needed("rankloop", frozenset({"trainer", "parquet"}), set()) - {"rankloop"}
    known = licences()
    assert len(names) > 50
    theirs = {name: known.get(name, "UNKNOWN") for name in names if not name.startswith(OF_THE_DRIVER)}
    assert {name: licence for name, licence in theirs.items() if REFUSED.search(licence)} == {}


@pytest.mark.parametrize(
    ("licence", "is_refused"),
    [
        ("MIT License", False),
        ("GNU Lesser General Public License v3 (LGPLv3)", False),
        ("LGPL-3.0-only", False),
        ("GNU General Public License v3 (GPLv3)", True),
        ("AGPL-3.0-or-later", True),
        ("UNKNOWN", True),
    ],
)
def test_licences_are_told_apart(licence: str, is_refused: bool) -> None:
    assert bool(REFUSED.search(licence)) == is_refused


def test_the_bill_of_materials_lists_libraries_with_versions_and_licences(tmp_path: Path) -> None:
    """The command of `make sbom`."""
    plan = subprocess.run(["make", "--dry-run", "sbom"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "cyclonedx-py environment" in plan
    program, target = Path(sys.executable).with_name("cyclonedx-py"), tmp_path / "sbom.json"
    command = [
        program,
        "environment",
        sys.executable,
        "--output-reproducible",
        "--no-validate",
        "--output-file",
        target,
    ]
    subprocess.run(command, capture_output=True, check=True)
    components = {canonical(item["name"]): item for item in json.loads(target.read_text())["components"]}
    assert components["fastapi"]["version"] == importlib.metadata.version("fastapi")
    assert sum("licenses" in item for item in components.values()) > 0.9 * len(components)
