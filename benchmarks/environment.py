# SPDX-License-Identifier: MIT
"""Where the figures come from: the machine, the versions, the disk."""

import asyncio
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .rivals import Rival

FLUSHES = 20


def describe(folder: Path, rivals: Iterable[type[Rival]]) -> dict[str, Any]:
    """Return what a reader must know to make sense of the figures. It needs a running loop."""
    loop = type(asyncio.get_running_loop()).__module__.split(".")[0]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.platform()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "loop": loop if loop == "asyncio" else f"{loop} (child processes: asyncio)",
        "folder": str(folder.parent),
        "filesystem": filesystem(folder),
        "flush": time_flush(folder),
        "rivals": {rival.key: f"{rival.name}: {rival().version()}" for rival in rivals},
    }


def processor() -> str:
    """Return the model of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def filesystem(folder: Path) -> str:
    """Return the kind of file system that the folder is on, where /proc tells it."""
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in mounts:
        _, point, type_, *_ = line.split()
        if folder.resolve().is_relative_to(point) and len(point) >= len(best):
            best, kind = point, type_
    return kind


def time_flush(folder: Path) -> float:
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
