"""The texts of a page as HTML: what is cheap at once, what is dear in a process of its own.

To read Markdown is Python's work, and the request loop stands still for it: one page of texts that were written to be
slow is as long as ten rankings. In a process of its own it keeps nobody waiting; and a text that takes too much time or
memory there, whatever the parser's mistake, ends that process and is shown as it is written.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from markupsafe import Markup

from app import markdown
from app.processes import ROOT, harmless_environment, limit_memory, limit_time
from app.turns import NoRoom, Turns

log = logging.getLogger(__name__)
# So much of a page is rendered at once, by `markdown.effort`: five milliseconds of honest text, at most ten of others.
EFFORT_HERE = 30_000
# So many pages wait for the process. Beyond that texts are shown as they are written.
MOST_WAITING = 100
# What one text may take. The slowest that is known takes 20 ms.
CPU_SECONDS = 2
MEMORY_BYTES = 1024**3


class Texts:
    """The texts of one page. `whose` page it is; `note` says why a text is not set, in the reader's words."""

    def __init__(self, whose: Hashable, note: str) -> None:
        self._whose = whose
        self._note = Markup('<pre class="plain" dir="auto" data-note="{}">').format(note)
        self._effort = 0.0
        self._missing: list[str] = []
        self._secret = ""

    @property
    def are_missing(self) -> bool:
        """Whether there is something to fill in."""
        return bool(self._missing)

    def show(self, text: str) -> Markup:
        """Its HTML; of what is dear a mark for it, which no text can have in it, as nobody knows it beforehand."""
        self._effort += markdown.effort(text)
        if self._effort <= EFFORT_HERE:
            return self._noted(markdown.render(text))
        self._secret = self._secret or secrets.token_hex(16)
        self._missing.append(text)
        return Markup(f"<!--{self._secret} {len(self._missing) - 1}-->")  # noqa: S704 - nothing of the text is in it

    async def fill_in(self, page: str) -> str:
        """The page with all of its texts."""
        found = [self._noted(await RENDERER.render(text, self._whose)) for text in self._missing]
        return re.sub(rf"<!--{self._secret} (\d+)-->", lambda mark: found[int(mark[1])], page)

    def _noted(self, html: Markup) -> Markup:
        return self._note + html[len(markdown.AS_WRITTEN) :] if html.startswith(markdown.AS_WRITTEN) else html


class Renderer:
    """A process that renders one text after the other, for whoever's turn it is. It starts with the first one."""

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-m", "app.rendering")) -> None:
        self._command = command
        # Who asks the process waits for its answer in this thread, which holds nothing meanwhile.
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="rendering")
        self._turns = Turns(1, MOST_WAITING)
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    async def render(self, text: str, whose: Hashable) -> Markup:
        """Its HTML, when it is this one's turn; as it is written where that would be too much."""
        try:
            async with self._turns.turn(whose):
                known = markdown.KEPT.get(text)
                if known is not None:
                    return known
                html = await asyncio.get_running_loop().run_in_executor(self._asking, self._ask, text)
        except NoRoom:
            return markdown.as_written(text)
        return markdown.KEPT.keep(text, markdown.as_written(text) if html is None else Markup(html))  # noqa: S704 - rendered there

    def _ask(self, text: str) -> str | None:
        """The process's answer; none if it did not survive the question. In the thread."""
        try:
            self._process = process = self._process or self._start()
            assert process.stdin
            assert process.stdout
            write(process.stdin, text)
            html = read(process.stdout)
        except OSError:
            html = None
        if html is None:
            log.warning("a text of %s characters could not be rendered, and is shown as it is written", len(text))
            self.close()
        return html

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=harmless_environment(),
            start_new_session=True,  # it ends when nobody asks any more, and not by the terminal's Ctrl+C
        )

    def close(self) -> None:
        """End the process; the next text starts another."""
        if self._process is not None:
            self._process.kill()
            with self._process:
                self._process = None


RENDERER = Renderer()


def write(file: IO[bytes], text: str) -> None:
    """Its length in bytes on a line, and the text."""
    sent = text.encode("utf-8", "surrogatepass")
    file.write(b"%d\n%b" % (len(sent), sent))
    file.flush()


def read(file: IO[bytes]) -> str | None:
    """What `write` wrote; none if that ended."""
    length = file.readline()
    sent = file.read(int(length)) if length.endswith(b"\n") else b""
    return sent.decode("utf-8", "surrogatepass") if length.endswith(b"\n") and len(sent) == int(length) else None


def work() -> None:
    """In the process: render until nobody asks any more, and rest after each text for as long as it took.

    So nobody's texts take more than half of a core; that the process may end by any of them is meant.
    """
    limit_memory(MEMORY_BYTES)
    while (text := read(sys.stdin.buffer)) is not None:
        begun = time.perf_counter()
        limit_time(CPU_SECONDS)
        write(sys.stdout.buffer, markdown.render(text))
        time.sleep(min(1.0, time.perf_counter() - begun))


if __name__ == "__main__":
    work()
