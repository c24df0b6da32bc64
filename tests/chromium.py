"""Where the browser for tests is. As a program: makes sure that there is one, or names the command that brings it.

The headless shell comes first: the same engine without windows. A page in a context of its own costs it 0.08 s of CPU,
and Chromium 0.6 s, which the browser tests pay two hundred times.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SHELLS = ("chromium-headless-shell", "chrome-headless-shell")
NAMES = (*SHELLS, "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGES = (SHELLS[0], "fonts-noto-cjk")
# Without a network `apt-get` tries for minutes, and there may be a Chromium that serves.
APT = ("apt-get", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20")


def find_chromium() -> str | None:
    """The browser's program: the one that CHROMIUM names in the environment, an installed one, playwright's own."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    installed = next((path for name in NAMES if (path := shutil.which(name))), None)
    return installed or _find_playwrights_own()


def _find_playwrights_own() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = Path(playwright.chromium.executable_path)
    return str(path) if path.exists() else None


def install() -> None:
    """As root on Debian and its kin, install the browser and a font with Chinese letters."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        subprocess.run([*APT, *command], env=environment, check=False)


def main() -> int:
    """Find the headless shell, else install it; the exit code says whether there is a browser now."""
    if "CHROMIUM" not in os.environ and not any(map(shutil.which, SHELLS)):
        install()
    path = find_chromium()
    if path is not None:
        return 0
    if "CHROMIUM" in os.environ:
        print(f"CHROMIUM={os.environ['CHROMIUM']} is no program.", file=sys.stderr)
    else:
        own = Path(sys.executable).with_name("playwright")
        print(
            "The browser tests need Chromium, and none was found. Do one of these, then start again:\n"
            f"  sudo apt-get install -y {' '.join(PACKAGES)}\n"
            f"  {own} install chromium\n"
            "  set CHROMIUM to the program's path",
            file=sys.stderr,
        )
    return 1


if __name__ == "__main__":
    sys.exit(main())
