"""How fast this machine is just now. A virtual one shares its cores with others', who are seen in no list of processes.

python benchmarks/load/pace.py    prints milliseconds of CPU of a piece of work, the mean of all cores at once
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

ROUNDS = 3
STEPS = 1_000_000


def milliseconds() -> float:
    """CPU time of a fixed piece of work while every core does it; what others take of a core makes it longer."""
    command = [sys.executable, __file__, "once"]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(os.cpu_count() or 1)]
    return round(sum(float(worker.communicate()[0]) for worker in workers) / len(workers), 1)


def once() -> float:
    """Of one core."""
    begun, total = time.process_time(), 0
    for _ in range(ROUNDS):
        for number in range(STEPS):
            total += number * number % 7
    return 1000 * (time.process_time() - begun) / ROUNDS


if __name__ == "__main__":
    print(once() if sys.argv[1:] == ["once"] else milliseconds())
