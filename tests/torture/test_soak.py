# SPDX-License-Identifier: MIT
"""The soak run, for a few seconds, and that its verdict can fail.

The run itself is `python -m tests.torture.soak`, which has the rule.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sessionstore import SessionManager

from ..children import ROOT
from . import soak
from .soak import GROWTH, MEASURES, MEGABYTE, Sample, judge

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="it reads Linux's /proc"
)

QUICK = ["--sessions", "500", "--pace", "1800", "--cache-size", "100"]


def test_nothing_grows_in_five_seconds(tmp_path: Path) -> None:
    """The program ends with exit code 0, and has seen all sessions through."""
    written = tmp_path / "soak.json"
    command = [sys.executable, "-W", "error", "-m", "tests.torture.soak", "--seconds", "5"]
    done = subprocess.run(
        [*command, *QUICK, "--json", str(written)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(written.read_text())
    assert report["created"] == 500
    assert report["wrong"] == report["failures"] == []
    assert report["calls"]["get"] >= 0.88 * sum(report["calls"].values())
    assert len(report["samples"]) > 10
    assert max(sample["rows"] for sample in report["samples"]) < 400  # the rest was purged


async def leak_memory() -> None:
    """Keep more and more."""
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1_000)) * 500)
        await asyncio.sleep(0.02)


async def leak_descriptors() -> None:
    """Open more and more."""
    opened: list[int] = []
    try:
        while True:
            opened.append(os.open(os.devnull, os.O_RDONLY))
            await asyncio.sleep(0.1)
    finally:
        for descriptor in opened:
            os.close(descriptor)


async def leak_tasks() -> None:
    """Start more and more."""
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(asyncio.sleep(3_600))
            await asyncio.sleep(0.02)


async def leak_threads() -> None:
    """Start more and more, until all are let go."""
    gate = threading.Event()
    threads: list[threading.Thread] = []
    try:
        while True:
            threads.append(threading.Thread(target=gate.wait))
            threads[-1].start()
            await asyncio.sleep(0.25)
    finally:
        gate.set()
        for thread in threads:
            thread.join()


@pytest.mark.torture
async def test_what_grows_is_caught(database: Path) -> None:
    """If memory, descriptors, threads and tasks leak, and nothing is purged, each is named."""
    leaks = [leak_memory(), leak_descriptors(), leak_threads(), leak_tasks()]
    report = await soak.soak(
        database, seconds=3, sessions=750, pace=1_800, cache_size=1_500, retains=False, beside=leaks
    )
    grown = {"memory", "descriptors", "threads", "tasks", "file", "rows"}
    assert grown <= {finding.name for finding in judge(report.samples) if not finding.is_flat}
    assert {f"{name} grows" for name in grown} <= set(report.failures())


def flat(count: int = 400) -> list[Sample]:
    """Return samples in which each figure goes up and down round the same level for ever."""
    return [
        Sample(
            seconds=float(number),
            **{
                name: 50 * MEGABYTE * (1 + (number % 7 - 3) / 20)
                for name in Sample._fields
                if name != "seconds"
            },  # type: ignore[arg-type]
        )
        for number in range(1, count + 1)
    ]


def test_what_is_flat_is_called_flat() -> None:
    """A figure that goes up and down is flat, and so is one that is high for a moment."""
    samples = flat()
    assert all(finding.is_flat for finding in judge(samples))
    samples[350:360] = [each._replace(memory=each.memory * 10) for each in samples[350:360]]
    assert all(finding.is_flat for finding in judge(samples))


@pytest.mark.parametrize(
    "name", [name for name, each in MEASURES.items() if each.slack is not None]
)
def test_what_grows_slowly_is_not_flat(name: str) -> None:
    """What grows evenly, by a third from the second quarter to the last, is named, and no other."""
    samples = [
        each._replace(**{name: getattr(each, name) * (1 + each.seconds / 400)}) for each in flat()
    ]
    assert [finding.name for finding in judge(samples) if not finding.is_flat] == [name]
    assert GROWTH < 1.3


async def test_wrong_answers_and_missing_sessions_are_named(database: Path) -> None:
    """A store that loses what is active does not pass, nor does one that is too slow."""
    report = await soak.soak(database, seconds=1, sessions=50, pace=600)
    report = report._replace(samples=flat())  # for a second says nothing of what grows
    assert report.failures() == []
    worse = report._replace(wrong=["it was lost"], created=49)
    assert worse.failures() == ["1 wrong answers, the first: it was lost", "only 49 sessions of 50"]


async def test_a_store_that_forgets_gives_wrong_answers(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traffic sees that a session is gone that was not ended."""
    update_activity = SessionManager.update_activity

    async def forget(self: SessionManager, session_id: str) -> bool:
        if session_id[-1] in "0123":
            await self.delete_session(session_id)
        return await update_activity(self, session_id)

    monkeypatch.setattr(SessionManager, "update_activity", forget)
    report = await soak.soak(database, seconds=1, sessions=100, pace=600)
    assert 0 < len(report.wrong) < 100
