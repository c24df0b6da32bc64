"""kill -9 at random moments: every kind of run goes on bit for bit, and a checkpoint is whole or is not there.

Processes are real, and so are the kills: each is a fork of a server that has imported everything. The moments are drawn
anew in every soak, by a seed that is said.
"""

import errno
import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.soak import children
from tests.trainer.killable import TRAININGS, make_versions, require_equal
from trainer.checkpoints import load_checkpoint
from trainer.folders import recover

KILLS_OF_A_RUN = 20
KILLS_OF_A_CHECKPOINT = 200

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def start() -> Callable[..., Any]:
    """start(work, *arguments): a process of its own, at work at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.soak.children"])

    def begin(work: Callable[..., None], *arguments: Any) -> Any:
        process = context.Process(target=work, args=arguments)
        process.start()
        return process

    begin(children.nothing).join()  # the server has imported everything now
    return begin


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_versions(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def chance(record_property: Callable[[str, object], None]) -> random.Random:
    """Random moments, by a seed that the result names."""
    seed = time.time_ns() % 2**32
    record_property("seed", seed)
    return random.Random(seed)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_run_that_is_killed_at_random_moments_goes_on_bit_for_bit(
    name: str,
    start: Callable[..., Any],
    chance: random.Random,
    versions: tuple[Path, Path],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    begun = time.monotonic()
    whole = start(children.train, name, *versions, tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    seconds = time.monotonic() - begun
    found = {"before a checkpoint": 0, "after one": 0, "after the end": 0}
    for number in range(KILLS_OF_A_RUN):
        out = tmp_path / str(number)
        process = start(children.train, name, *versions, out)
        process.join(chance.uniform(0.0, seconds))
        process.kill()
        process.join()
        is_kept = out.with_name(f"{out.name}.checkpoint").exists()
        found["after the end" if out.exists() else "after one" if is_kept else "before a checkpoint"] += 1
        if not out.exists():
            again = start(children.train, name, *versions, out)
            again.join()
            assert again.exitcode == 0
        require_equal(tmp_path / "whole", out)
        shutil.rmtree(out)
    record_property("kills", found)
    assert found["after one"], "no kill fell between two checkpoints"


def test_a_checkpoint_is_whole_whenever_its_writer_is_killed(
    start: Callable[..., Any], chance: random.Random, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = tmp_path / "checkpoint"
    last, found = 0, {"one that was whole": 0, "none yet": 0}
    for _ in range(KILLS_OF_A_CHECKPOINT):
        writer = start(children.write_checkpoints, folder)
        writer.join(chance.uniform(0.0, 0.3))
        writer.kill()
        writer.join()
        recover(folder)
        assert {entry.name for entry in tmp_path.iterdir()} <= {"checkpoint"}
        if not folder.exists():
            found["none yet"] += 1
            continue
        found["one that was whole"] += 1
        step = require_whole(folder)
        assert step >= last
        last = step
    record_property("kills", found)
    assert found["one that was whole"] > KILLS_OF_A_CHECKPOINT // 2


def require_whole(folder: Path) -> int:
    """Its step; every number of every file is that of this step."""
    model, optimizer = children.make_model()
    progress = load_checkpoint(
        folder, models={"policy": model}, optimizers={"policy": optimizer}, identity=children.IDENTITY
    )
    step: int = progress["step"]
    assert all(bool((parameter == step).all()) for parameter in model.parameters())
    return step


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """On a disk of its own that holds one checkpoint and not two."""
    program = "import tests.soak.children as c; c.fill_the_disk('/mnt/checkpoint')"
    script = f'mount -t tmpfs -o size=2m tmpfs /mnt && exec {sys.executable} -c "{program}"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no disk of its own can be made here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["errno"] == errno.ENOSPC
    assert said["step"] == 1
    assert said["left"] == ["checkpoint"]


def test_a_folder_that_nobody_may_write_is_said_and_leaves_the_last_checkpoint(start: Callable[..., Any]) -> None:
    # Not in pytest's own folder, into which another user may not even look.
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        folder = parent / "checkpoint"
        children.write_checkpoint(folder, 1)
        parent.chmod(0o555)
        process = start(children.write_where_nobody_may, folder)
        process.join()
        parent.chmod(0o755)
        if process.exitcode == children.CANNOT_TRY:
            pytest.skip("this user may write everywhere, and can't become another one")
        assert process.exitcode == errno.EACCES
        assert require_whole(folder) == 1
        assert [entry.name for entry in parent.iterdir()] == ["checkpoint"]
