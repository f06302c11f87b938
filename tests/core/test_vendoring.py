# SPDX-License-Identifier: MIT
"""The package as a folder that somebody copied into a project of their own.

The copy runs in a Python that sees nothing but the standard library, the project and aiosqlite: no
installed packages, so that no part of the copy can lean on the original.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

import sessionstore

PACKAGE = Path(sessionstore.__file__).parent
AIOSQLITE = Path(aiosqlite.__file__).parent

LIFE_CYCLE = """
import asyncio, importlib, importlib.util, json, logging, sys

sys.path.insert(0, sys.argv[1])
kept = importlib.import_module(sys.argv[2])
records = []
handler = logging.Handler()
handler.emit = records.append
logging.getLogger().addHandler(handler)
logging.getLogger().setLevel(logging.DEBUG)
now = 1_700_000_000.0
ended = []


async def main():
    settings = dict(clock=lambda: now, sweep_interval=None, on_end=ended.append, retention=60)
    async with kept.SessionManager(sys.argv[3], **settings) as sessions:
        first = await sessions.create_session("lina", {"topic": "stars"})
        second = await sessions.create_session("omar")
        assert await sessions.update_activity(first)
        assert await sessions.update_session(first, {"mood": "calm"})
        assert await sessions.end_session(first)
    async with kept.SessionManager(sys.argv[3], **settings) as sessions:
        session = await sessions.get_session(first)
        assert isinstance(session, kept.Session)
        assert session.status is kept.SessionStatus.ENDED
        assert session.data == {"topic": "stars", "mood": "calm"}
        assert [active.id for active in await sessions.get_active_sessions()] == [second]
        try:
            await sessions.create_session("")
        except kept.InvalidArgumentError:
            pass
    try:
        await sessions.get_session(first)
    except kept.StoreClosedError:
        pass


asyncio.run(main())
print(json.dumps({
    "ended": [session.child_id for session in ended],
    "files": sorted({module.__file__ for name, module in sys.modules.items()
                     if name.split(".")[0] == sys.argv[2].split(".")[0]}),
    "loggers": sorted({record.name for record in records}),
    "known loggers": sorted(logging.root.manager.loggerDict),
    "modules": sorted(sys.modules),
    "original": importlib.util.find_spec("sessionstore") is not None,
}))
"""


def run_copy(host: Path, name: str) -> dict[str, Any]:
    """Copy the package into a project under another name; run a life cycle; return its report."""
    folder = host.joinpath(*name.split("."))
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder, ignore=ignore)
    for parent in folder.parents:
        if parent != host and parent.is_relative_to(host):
            (parent / "__init__.py").touch()
    shutil.copytree(AIOSQLITE, host / "aiosqlite", ignore=ignore)
    command = [sys.executable, "-I", "-S", "-W", "error", "-c", LIFE_CYCLE]
    child = subprocess.run(
        [*command, str(host), name, str(host / "data" / "sessions.db")],
        cwd=host,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    report: dict[str, Any] = json.loads(child.stdout)
    return report


@pytest.fixture(scope="module", params=["kept_sessions", "host.vendor.kept_sessions"])
def name(request: pytest.FixtureRequest) -> str:
    """Return the name that the copy has in its new project: at the top, and deep inside."""
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture(scope="module")
def report(name: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what a life cycle of the copy said."""
    return run_copy(tmp_path_factory.mktemp("project"), name)


def test_copy_lives_a_whole_life(report: dict[str, Any]) -> None:
    """A copied folder makes its file, keeps sessions in it, reads them again, and tells on_end."""
    assert report["ended"] == ["lina"]


def test_copy_logs_under_its_own_name(report: dict[str, Any], name: str) -> None:
    """A copy's loggers carry the name that it has in the project, and no other."""
    own = [logger for logger in report["loggers"] if logger.startswith(f"{name}.")]
    assert own
    assert set(report["loggers"]) - set(own) <= {"asyncio", "aiosqlite"}
    assert [logger for logger in report["known loggers"] if "sessionstore" in logger] == []


def test_copy_needs_no_original(report: dict[str, Any], name: str) -> None:
    """A copy runs where no sessionstore is installed, and imports nothing by that name."""
    assert not report["original"]
    assert [module for module in report["modules"] if "sessionstore" in module] == []
    assert f"{name}.manager" in report["modules"]
    assert [file for file in report["files"] if file.startswith(f"{PACKAGE}/")] == []


def test_copy_needs_nothing_but_aiosqlite(report: dict[str, Any], name: str) -> None:
    """A copy imports the standard library, itself, and aiosqlite."""
    packages = {module.split(".")[0] for module in report["modules"]}
    known = {*sys.stdlib_module_names, "__main__", name.split(".")[0], "aiosqlite"}
    assert {package for package in packages - known if not package.startswith("_")} == set()


def test_two_copies_live_in_one_project(tmp_path: Path) -> None:
    """Two copies under two names do not share a class, so that their versions may differ."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("first", "second"):
        shutil.copytree(PACKAGE, tmp_path / name, ignore=ignore)
    shutil.copytree(AIOSQLITE, tmp_path / "aiosqlite", ignore=ignore)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import first, second;"
        "assert first.SessionManager is not second.SessionManager;"
        "assert not issubclass(first.SchemaError, second.SessionStoreError)"
    )
    command = [sys.executable, "-I", "-S", "-W", "error", "-c", script, str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
