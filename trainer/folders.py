"""Folders that appear whole or not at all, and the hashes that name what is in them.

Owns the rename that publishes a finished folder; knows nothing of models.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"

# What long work calls: a sentence, and the share of the work that is done (0..1).
Progress = Callable[[str, float], None]


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, in hex, read a mebibyte at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, object] | None:
    """The folder's `manifest.json`, or None where the folder or a readable manifest is missing."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_manifest(folder: Path, content: Mapping[str, object]) -> None:
    """Write `manifest.json`: readable, keys in the order given."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; when the block ends well, it takes `target`'s place in one rename.

    When the block raises, nothing is left behind and an old `target` stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield building
        _publish(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _publish(building: Path, target: Path) -> None:
    for path in [*building.rglob("*"), building]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        _fsync(path)
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        target.rename(old / target.name)
        building.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        building.rename(target)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
