"""What Rankloop's child processes have in common: they die with their parent, and those that read what strangers wrote
have an end to memory and time, and no secrets.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1
# Nothing of the environment's secrets is where hostile texts and files are read.
ENVIRONMENT = {"PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG"}


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


def harmless_environment() -> dict[str, str]:
    """What a process needs of this one's environment, without its secrets."""
    return {name: value for name, value in os.environ.items() if name in ENVIRONMENT}


def limit_memory(num_bytes: int) -> None:
    """Refuse this process more than it needs, and a picture of itself when it is ended."""
    import resource

    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_time(seconds: float) -> None:
    """Have the kernel end this process if it goes on to use so much CPU, however busy the machine is."""
    import resource

    most = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))
