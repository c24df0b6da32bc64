"""Where the browser for tests is. As a program: makes sure that there is one, or names the command that brings it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGES = ("chromium", "fonts-noto-cjk")


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
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]):
        subprocess.run(command, env=environment, check=False)


def main() -> int:
    """Find Chromium, else install it; the exit code says whether there is one now."""
    if find_chromium() is None and "CHROMIUM" not in os.environ:
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
