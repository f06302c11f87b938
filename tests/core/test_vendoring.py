# SPDX-License-Identifier: MIT
"""The package as a folder that somebody copied into a project of their own.

The copy runs in a Python that sees nothing but the standard library, the project and aiosqlite: no
installed packages, so that no part of the copy can lean on the original. Of the copy, folders that
may be deleted are deleted, or not.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

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


FRONTS = ["cli"]  # folders that may be deleted


def copy_package(host: Path, name: str, *, is_whole: bool = True) -> Path:
    """Copy the package into a project under another name, and aiosqlite beside it."""
    folder = host.joinpath(*name.split("."))
    ignore = shutil.ignore_patterns("__pycache__", *([] if is_whole else FRONTS))
    shutil.copytree(PACKAGE, folder, ignore=ignore)
    for parent in folder.parents:
        if parent != host and parent.is_relative_to(host):
            (parent / "__init__.py").touch()
    if not (host / "aiosqlite").exists():
        shutil.copytree(AIOSQLITE, host / "aiosqlite", ignore=ignore)
    return folder


def run(host: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a Python that sees nothing but the standard library."""
    return subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", script, str(host), *arguments],
        cwd=host,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class Copy(NamedTuple):
    """A copy in a project, and what its life cycle said."""

    host: Path
    name: str
    is_whole: bool
    report: dict[str, Any]


@pytest.fixture(
    scope="module",
    params=[("kept_sessions", False), ("host.vendor.kept_sessions", True)],
    ids=["at the top, without cli", "deep inside, with cli"],
)
def copy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """Return a copy that has lived."""
    name, is_whole = request.param
    host = tmp_path_factory.mktemp("project")
    copy_package(host, name, is_whole=is_whole)
    child = run(host, LIFE_CYCLE, name, str(host / "data" / "sessions.db"))
    assert child.returncode == 0, child.stderr
    return Copy(host, name, is_whole, json.loads(child.stdout))


def test_copy_lives_a_whole_life(copy: Copy) -> None:
    """A copied folder makes its file, keeps sessions in it, reads them again, and tells on_end."""
    assert copy.report["ended"] == ["lina"]


def test_copy_logs_under_its_own_name(copy: Copy) -> None:
    """A copy's loggers carry the name that it has in the project, and no other."""
    own = [logger for logger in copy.report["loggers"] if logger.startswith(f"{copy.name}.")]
    assert own
    assert set(copy.report["loggers"]) - set(own) <= {"asyncio", "aiosqlite"}
    assert [name for name in copy.report["known loggers"] if "sessionstore" in name] == []


def test_copy_needs_no_original(copy: Copy) -> None:
    """A copy runs where no sessionstore is installed, and imports nothing by that name."""
    modules = copy.report["modules"]
    assert not copy.report["original"]
    assert [module for module in modules if "sessionstore" in module] == []
    assert f"{copy.name}.sqlite.store" in modules
    assert [file for file in copy.report["files"] if file.startswith(f"{PACKAGE}/")] == []


def test_copy_needs_nothing_but_aiosqlite(copy: Copy) -> None:
    """A copy imports the standard library, itself, and aiosqlite; and no command line."""
    packages = {module.split(".")[0] for module in copy.report["modules"]}
    known = {*sys.stdlib_module_names, "__main__", copy.name.split(".")[0], "aiosqlite"}
    assert {package for package in packages - known if not package.startswith("_")} == set()
    assert [module for module in copy.report["modules"] if f"{copy.name}.cli" in module] == []


def test_the_command_line_of_a_copy_works_if_it_is_there(copy: Copy) -> None:
    """Whoever deletes it loses the command line, and nothing else."""
    script = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1]); name = sys.argv[2];"
        "sys.argv[1:] = ['list', sys.argv[3]]; runpy.run_module(name, run_name='__main__')"
    )
    child = run(copy.host, script, copy.name, str(copy.host / "data" / "sessions.db"))
    if copy.is_whole:
        assert (child.returncode, child.stderr) == (0, "")
        assert "omar" in child.stdout
    else:
        assert child.returncode != 0
        assert f"No module named '{copy.name}.cli'" in child.stderr


def test_two_copies_live_in_one_project(tmp_path: Path) -> None:
    """Two copies under two names do not share a class, so that their versions may differ."""
    for name in ("first", "second"):
        copy_package(tmp_path, name)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import first, second;"
        "assert first.SessionManager is not second.SessionManager;"
        "assert not issubclass(first.SchemaError, second.SessionStoreError)"
    )
    child = run(tmp_path, script)
    assert child.returncode == 0, child.stderr
