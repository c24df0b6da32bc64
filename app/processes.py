"""What every child process of Rankloop has in common: it dies with its parent."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def die_with_parent(death_signal: int) -> Callable[[], None] | None:
    """A `preexec_fn` that has the kernel send the child this signal when the thread that started it ends.

    So the child goes when its parent was ended by `kill -9`, too. Start it from the main thread, which lives longest.
    Linux only; elsewhere there is no such thing, and the answer is None.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arrange() -> None:
        prctl(PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            os._exit(1)

    return arrange
