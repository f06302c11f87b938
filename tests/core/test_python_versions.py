# SPDX-License-Identifier: MIT
"""The package on each Python that it promises to run on, and on the oldest aiosqlite.

Each Python that this machine has runs a whole life cycle in a process of its own, on a copy of the
package beside a copy of aiosqlite, with every warning an error. The suite of all stores is run on
the oldest aiosqlite that setup.cfg allows, in an environment of its own; on the newest, or whatever
is installed, it is run by itself.
"""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import aiosqlite
import pytest

import sessionstore

ROOT = Path(__file__).parents[2]
VERSIONS = ["3.11", "3.12", "3.13"]

LIFE_CYCLE = """
import asyncio
import sys
from datetime import UTC, datetime, timedelta

from sessionstore import InvalidArgumentError, Session, SessionManager, SessionStatus

now = 1_700_000_000.0
ended = []


async def on_end(session):
    ended.append((session.id, str(session.status), session.end_reason))


def open_manager(path, **settings):
    return SessionManager(
        path,
        timeout=timedelta(minutes=30),
        max_lifetime=timedelta(hours=8),
        clock=lambda: now,
        on_end=on_end,
        **settings,
    )


async def live(path):
    global now
    async with open_manager(path, sweep_interval=0.001, retention=1_000_000) as sessions:
        first = await sessions.create_session("lina", {"topic": "stars"}, metadata={"room": 1})
        second = await sessions.create_session("lina")
        third = await sessions.create_session("سارة", {"mood": "سعيدة"})
        assert await sessions.update_activity(first)
        assert await sessions.update_session(first, {"step": 2}, remove=["topic"])
        session = await sessions.get_session(first)
        assert isinstance(session, Session)
        assert session.data == {"step": 2}
        assert session.metadata == {"room": 1}
        assert session.interaction_count == 1
        assert session.started_at == datetime.fromtimestamp(now, UTC)
        assert session.expires_at == session.last_activity + timedelta(minutes=30)
        assert await sessions.end_session(first, "bedtime")
        assert not await sessions.end_session(first)
        assert not await sessions.update_activity(first)
        results = await asyncio.gather(*(sessions.update_activity(third) for _ in range(100)))
        assert all(results)
        try:
            await sessions.create_session("")
        except InvalidArgumentError as error:
            assert "child_id" in str(error)
        else:
            raise AssertionError
    async with open_manager(path, sweep_interval=None) as sessions:
        session = await sessions.get_session(first)
        assert session.status is SessionStatus.ENDED
        assert session.end_reason == "bedtime"
        active = await sessions.get_active_sessions()
        assert {session.id for session in active} == {second, third}
        page = await sessions.get_active_sessions(limit=1)
        assert page + await sessions.get_active_sessions(after=page[-1]) == active
        assert [session async for session in sessions.iter_active_sessions()] == active
        assert [session.id async for session in sessions.iter_active_sessions("lina")] == [second]
        assert len(await sessions.get_sessions_for_child("lina")) == 2
        now += 30 * 60
        session = await sessions.get_session(second)
        assert session.status is SessionStatus.TIMEOUT
        assert session.ended_at == session.expires_at
        assert await sessions.get_active_sessions() == []
        assert await sessions.cleanup_inactive_sessions() == 2
        stats = await sessions.get_session_stats()
        assert stats["by_status"] == {"active": 0, "ended": 1, "timeout": 2, "error": 0}
        assert stats["total_sessions"] == 3
        fourth = await sessions.create_session("omar")
        assert await sessions.end_sessions("omar", reason="error") == 1
        assert await sessions.delete_session(fourth)
        assert await sessions.get_session(fourth) is None
        assert await sessions.purge_ended_sessions(0) == 3
        assert (await sessions.get_session_stats())["total_sessions"] == 0
    assert sorted(ended) == sorted([
        (first, "ended", "bedtime"),
        (second, "timeout", "timeout"),
        (third, "timeout", "timeout"),
        (fourth, "error", "error"),
    ])


asyncio.run(live(sys.argv[1]))
print("lived on", sys.version.split()[0])
"""

PROBE = "import sqlite3, sys; print('%d.%d' % sys.version_info[:2], sys.executable)"


def candidates(version: str) -> Iterator[str]:
    """Yield where a version may be: this Python itself, on the path, or among pyenv's."""
    yield sys.executable
    found = shutil.which(f"python{version}")
    if found is not None:
        yield found
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True))


def resolve(candidate: str, version: str) -> str | None:
    """Return the interpreter that a candidate really is, or None if it is none of this version.

    A shim of pyenv is on the path for each version that was ever installed, and fails where the
    version is not chosen.
    """
    try:
        child = subprocess.run(
            [candidate, "-c", PROBE], capture_output=True, text=True, check=False, timeout=30
        )
    except OSError:
        return None
    found, _, executable = child.stdout.strip().partition(" ")
    return executable if child.returncode == 0 and found == version else None


def find(version: str) -> str | None:
    """Return an interpreter of the version that has sqlite3, or None."""
    for candidate in candidates(version):
        executable = resolve(candidate, version)
        if executable is not None:
            return executable
    return None


@pytest.mark.parametrize("version", VERSIONS)
def test_whole_life_cycle(tmp_path: Path, version: str) -> None:
    """Everything that a manager does works on this version of Python, without a warning."""
    executable = find(version)
    if executable is None:
        pytest.skip(f"no Python {version} with sqlite3 on this machine")
    ignore = shutil.ignore_patterns("__pycache__")
    for package in (sessionstore, aiosqlite):
        source = Path(str(package.__file__)).parent
        shutil.copytree(source, tmp_path / source.name, ignore=ignore)
    child = subprocess.run(
        [executable, "-S", "-W", "error", "-c", LIFE_CYCLE, str(tmp_path / "sessions.db")],
        env={"PYTHONPATH": str(tmp_path), "PYTHONUTF8": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    assert child.stdout.startswith(f"lived on {version}.")


def test_this_version_is_found() -> None:
    """The Python that runs the tests is found as what it is."""
    version = ".".join(map(str, sys.version_info[:2]))
    found = find(version)
    assert found is not None
    assert os.path.samefile(found, sys.executable)


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\necho 'pyenv: python3.13: command not found' >&2\nexit 127\n",
        "#!/bin/sh\necho 3.12 /usr/bin/python3.12\n",
        "#!/bin/sh\n",
        "no program at all",
    ],
    ids=["a shim that does not resolve", "another version", "silence", "no program"],
)
def test_what_is_no_interpreter_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """A file on the path that does not run as the version counts as absent."""
    shim = tmp_path / "python3.13"
    shim.write_text(script)
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert shutil.which("python3.13") == str(shim)
    assert resolve(str(shim), "3.13") is None


def test_every_promised_version_is_tried() -> None:
    """The versions above are those that the package's metadata names."""
    metadata = (ROOT / "setup.cfg").read_text()
    named = [
        line.rsplit(" ", 1)[-1]
        for line in metadata.splitlines()
        if line.strip().startswith("Programming Language :: Python :: 3.")
    ]
    assert named == VERSIONS


def oldest_aiosqlite() -> str:
    """Return the oldest release that setup.cfg allows."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    requirement = settings["options"]["install_requires"].strip()
    name, _, version = requirement.partition(">=")
    assert name == "aiosqlite"
    return version


@pytest.mark.torture
def test_the_suite_of_all_stores_on_the_oldest_aiosqlite(tmp_path: Path) -> None:
    """Every store does what the seam promises on the oldest release that is allowed, too."""
    version = oldest_aiosqlite()
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    packages = [f"aiosqlite=={version}.*", "pytest", "pytest-asyncio", "hypothesis"]
    installing = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *packages],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert installing.returncode == 0, installing.stderr
    testing = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert testing.returncode == 0, testing.stdout
    told = subprocess.run(
        [python, "-c", "import aiosqlite; print(aiosqlite.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.startswith(f"{version}.")
