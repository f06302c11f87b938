# SPDX-License-Identifier: MIT
"""Where the figures come from: the machine, the versions, the disk."""

import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

FLUSHES = 20


def describe(folder: Path) -> dict[str, Any]:
    """Return what a reader must know to make sense of the figures."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.platform()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "fsync": _time_flush(folder),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _time_flush(folder: Path) -> float:
    """Return the median of the seconds that fsync takes after one page was written."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(FLUSHES):
            file.write(bytes(4096))
            file.flush()
            begun = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begun)
    return statistics.median(times)
