"""Run a command and write down what it used: `launch.py REPORT MEMORY_MB COMMAND...`.

A small process of its own, because on Linux a child's peak RSS starts at what its parent held when
it forked: started from a benchmark that holds models, every child would seem as big as that.
Standard library only; run it with `-I -S`.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path


def main(report: str, memory_mb: str, *command: str) -> int:
    """Write {"cpu_s", "peak_rss_mb", "returncode", "wall_s"} of `command` to `report`."""
    limit = int(memory_mb) * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # inherited; code and files are free
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ)
    _, status, used = os.wait4(pid, 0)
    figures = {
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_rss_mb": used.ru_maxrss / 1024,  # Linux counts KiB
        "returncode": os.waitstatus_to_exitcode(status),
        "wall_s": time.perf_counter() - start,
    }
    Path(report).write_text(json.dumps(figures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
