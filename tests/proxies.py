"""Where the proxies for tests are. As a program: fetches those that are missing, where apt-get can.

They are unpacked beside the packages of this Python and not installed: nothing is started, and no root is needed where
the lists of packages are there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.chromium import APT

FOLDER = Path(sys.prefix) / "proxies"
PROGRAMS = {"nginx": "usr/sbin/nginx", "caddy": "usr/bin/caddy"}


def find_proxy(name: str) -> str | None:
    """The program of `nginx` or `caddy`: an installed one, or ours."""
    sbin = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin"
    return shutil.which(name, path=sbin) or shutil.which(FOLDER / PROGRAMS[name])


def fetch(name: str) -> None:
    """Unpack Debian's package into our folder."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*APT, "download", name], cwd=folder, check=False)
        for package in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", package, FOLDER], check=False)


def main() -> int:
    """Fetch what is missing. Without a proxy its tests are skipped and say so, so that this never fails."""
    missing = [name for name in PROGRAMS if find_proxy(name) is None]
    if not missing or shutil.which("apt-get") is None:
        return 0
    if os.geteuid() == 0:
        subprocess.run([*APT, "update"], check=False)
    for name in missing:
        fetch(name)
    if missing := [name for name in PROGRAMS if find_proxy(name) is None]:
        sys.stderr.write(f"Not found, so that deploy/ is not tried with it: {', '.join(missing)}.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
