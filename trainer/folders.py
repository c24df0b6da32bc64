"""Folders that appear whole or not at all, and the hashes that name what is in them.

Owns the rename that publishes a finished folder; knows nothing of models.
"""

import fcntl
import glob
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

    When the block raises, nothing is left behind and an old `target` stays as it was. What a killed process left on its
    way to `target` is swept away first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    with _beside(target, "new") as building:
        yield building
        _publish(building, target)


def recover(target: Path) -> None:
    """Sweep away what killed processes left beside `target`; where one died between the two renames that replace it,
    the old `target` comes back.

    What a living process works on is locked, and left alone; a lock ends with its process, however that ends.
    """
    for left in sorted(target.parent.glob(f".{glob.escape(target.name)}-[on][le][dw]-*")):
        with _locked(left) as is_ours:
            if not is_ours:
                continue
            if (left / target.name).exists() and not target.exists():
                (left / target.name).rename(target)
            shutil.rmtree(left, ignore_errors=True)


def _publish(building: Path, target: Path) -> None:
    for path in [*building.rglob("*"), building]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        _fsync(path)
    if target.exists():
        with _beside(target, "old") as old:
            target.rename(old / target.name)
            building.rename(target)
    else:
        building.rename(target)
    _fsync(target.parent)


@contextmanager
def _beside(target: Path, kind: str) -> Iterator[Path]:
    """A folder of this process's own beside `target`, gone afterwards: `.NAME-new-…` or `.NAME-old-…`."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-{kind}-", dir=target.parent))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether this process alone holds the folder within the block; False where another one does, or it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
