# SPDX-License-Identifier: MIT
"""README.md, held to the code: its programs run, its tables say what is there, its queries work.

Everything is taken out of the README's own text, by the heading under which it stands.
"""

import importlib.util
import inspect
import re
import shlex
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from configparser import ConfigParser
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import sessionstore
from sessionstore import Session, SessionManager, SessionStats, SessionStatus, SessionStoreError

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


class Block(NamedTuple):
    """A fenced block of the README."""

    heading: str
    language: str
    text: str


def _blocks() -> Iterator[Block]:
    heading = ""
    pattern = r"^#+ ([^\n]+)$|^```(\w*)\n(.*?)^```$"
    for found in re.finditer(pattern, README, re.MULTILINE | re.DOTALL):
        if found[1] is None:
            yield Block(heading, found[2], found[3])
        else:
            heading = found[1]


def _program(heading: str) -> str:
    (program,) = (
        block.text for block in _blocks() if (block.heading, block.language) == (heading, "python")
    )
    return program


def _table(heading: str) -> dict[str, list[str]]:
    """Return the rows of the table under a heading: the code of the first cell, and the others."""
    (section,) = re.findall(
        rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", README, re.MULTILINE | re.DOTALL
    )
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return {first.strip("`"): others for first, *others in rows[2:]}


def _shell_queries() -> list[str]:
    """Return the SQL of all calls of the sqlite3 shell."""
    return [
        words[-1]
        for block in _blocks()
        if block.language == "sh"
        for is_name, group in groupby(shlex.split(block.text, comments=True), "sqlite3".__eq__)
        if not is_name and "sessions.db" in (words := list(group))
    ]


def _test_command() -> str:
    (command,) = (
        block.text.strip()
        for block in _blocks()
        if block.heading == "See it, test it" and "pytest" in block.text
    )
    return command


def _run(program: str, folder: Path) -> str:
    """Run a program as a user would, in an empty folder; a warning fails it."""
    (folder / "program.py").write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "program.py"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _load_app(program: str, path: Path) -> Any:
    """Import a program as a worker of its own and return its app."""
    path.write_text(program, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.app


@asynccontextmanager
async def _serve(app: Any) -> AsyncIterator[Any]:
    """Run the app's lifespan and yield a client of its endpoints."""
    httpx = pytest.importorskip("httpx")
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://worker") as client,
    ):
        yield client


@pytest.fixture
def load_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return a function that loads the FastAPI recipe, once more for each name."""
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    monkeypatch.chdir(tmp_path)
    program = _program("Recipe: FastAPI")
    return lambda name: _load_app(program, tmp_path / f"{name}.py")


@pytest.fixture
async def filled(database: Path) -> Path:
    """Return a file with a session of each status, and one that timed out but was not swept."""
    async with SessionManager(database, sweep_interval=None, clock=lambda: time.time() - 3600) as s:
        for reason in ("manual", "error", "timeout"):
            await s.end_session(await s.create_session("ada"), reason)
        await s.create_session("ben")
    async with SessionManager(database, sweep_interval=None) as s:
        await s.create_session("cleo")
    return database


def test_first_program_works_as_it_stands(tmp_path: Path) -> None:
    """The first program prints what the README says, and the file holds the printed session."""
    (said,) = re.findall(r"It prints one line, `… (.+?)`", README)
    first = _run(_program("A first program"), tmp_path).splitlines()
    assert [line.partition(" ")[2] for line in first] == [said]
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as connection:
        rows = connection.execute("SELECT id, child_id, status, data FROM sessions").fetchall()
    assert rows == [(first[0].split(" ")[0], "ada", "active", '{"topic":"whales"}')]
    second = _run(_program("A first program"), tmp_path).splitlines()
    assert (len(second), second[0]) == (2, first[0])


def test_bot_recipe_works_as_it_stands(tmp_path: Path) -> None:
    """The bot answers, says goodbye to who left and to who fell silent, and then ends."""
    lines = _run(_program("Recipe: a bot"), tmp_path).splitlines()
    assert [line for line in lines if "you said" in line] == [
        "to ada: you said: hello",
        "to ben: you said: what is a whale?",
        "to ada: you said: what is a comet?",
    ]
    assert [line for line in lines if "goodbye" in line] == [
        "to ada: goodbye (said bye); 3 message(s), last: what is a comet?",
        "to ben: goodbye (timeout); 1 message(s), last: what is a whale?",
    ]
    with closing(sqlite3.connect(tmp_path / "bot.db")) as connection:
        rows = connection.execute("SELECT child_id, status FROM sessions ORDER BY 1").fetchall()
    assert rows == [("ada", "ended"), ("ben", "timeout")]


async def test_fastapi_recipe_serves_the_life_of_a_session(
    load_worker: Callable[[str], Any],
) -> None:
    """The endpoints create, show, touch and end a session, and answer 401 from then on."""
    async with _serve(load_worker("app")) as client:
        created = await client.post("/sessions", json={"child_id": "ada"})
        assert created.status_code == 201
        headers = {"X-Session-Id": created.json()["id"]}
        assert (await client.post("/sessions/current/touch", headers=headers)).status_code == 204
        shown = await client.get("/sessions/current", headers=headers)
        assert (shown.status_code, shown.json()) == (200, {"child_id": "ada", "interactions": 1})
        assert (await client.delete("/sessions/current", headers=headers)).status_code == 204
        assert (await client.get("/sessions/current", headers=headers)).status_code == 401
        assert (await client.post("/sessions/current/touch", headers=headers)).status_code == 401
        assert (await client.delete("/sessions/current", headers=headers)).status_code == 401
    with closing(sqlite3.connect("sessions.db")) as connection:
        rows = connection.execute("SELECT id, status FROM sessions").fetchall()
    assert rows == [(headers["X-Session-Id"], "ended")]


async def test_fastapi_recipe_refuses_who_has_no_session(load_worker: Callable[[str], Any]) -> None:
    """A request without an id, or with none that is known, gets 401, and a bad child_id 422."""
    async with _serve(load_worker("app")) as client:
        assert (await client.get("/sessions/current")).status_code == 401
        unknown = {"X-Session-Id": "f" * 36}
        assert (await client.get("/sessions/current", headers=unknown)).status_code == 401
        refused = await client.post("/sessions", json={"child_id": ""})
        assert refused.status_code == 422
        assert "child_id must have 1 to 255 characters" in refused.json()["detail"]


async def test_fastapi_recipe_stays_right_with_two_workers(
    load_worker: Callable[[str], Any],
) -> None:
    """A session that one worker ended is gone for another one that had just shown it."""
    async with _serve(load_worker("one")) as one, _serve(load_worker("two")) as two:
        created = await one.post("/sessions", json={"child_id": "ada"})
        headers = {"X-Session-Id": created.json()["id"]}
        assert (await two.get("/sessions/current", headers=headers)).status_code == 200
        assert (await one.delete("/sessions/current", headers=headers)).status_code == 204
        assert (await two.get("/sessions/current", headers=headers)).status_code == 401


def test_every_program_is_run() -> None:
    """No Python program stands in the README but those that the tests above run."""
    headings = [block.heading for block in _blocks() if block.language == "python"]
    assert headings == ["A first program", "Recipe: FastAPI", "Recipe: a bot"]


def test_shell_queries_work(filled: Path) -> None:
    """Each SELECT for the sqlite3 shell finds something, and one finds exactly who is active."""
    queries = [query for query in _shell_queries() if query.startswith("SELECT")]
    with closing(sqlite3.connect(f"{filled.as_uri()}?mode=ro", uri=True)) as connection:
        answers = [connection.execute(query).fetchall() for query in queries]
    by_status, active, reasons = answers
    assert by_status == [("active", 2), ("ended", 1), ("error", 1), ("timeout", 1)]
    assert [child_id for child_id, _ in active] == ["cleo"]
    assert [row[:2] for row in reasons] == [("error", 1), ("manual", 1), ("timeout", 1)]


def test_shell_command_makes_a_copy(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that makes a copy of the file makes a whole one."""
    (command,) = (query for query in _shell_queries() if query.startswith("VACUUM"))
    monkeypatch.chdir(filled.parent)
    with closing(sqlite3.connect(filled)) as connection:
        connection.execute(command)
    with closing(sqlite3.connect("copy.db")) as copy:
        assert copy.execute("SELECT count(*) FROM sessions").fetchone() == (5,)


def _signature(name: str, member: object) -> str:
    """Return the signature of a public member as the README writes it: without types."""
    if not inspect.isfunction(member):
        return name
    signature = inspect.signature(member)
    parameters = [
        parameter.replace(annotation=parameter.empty)
        for parameter in list(signature.parameters.values())[1:]
    ]
    bare = signature.replace(parameters=parameters, return_annotation=signature.empty)
    return f"{name}{bare}".replace("'", '"')


def test_methods_are_those_of_the_manager() -> None:
    """The table of methods names each public one, with its parameters, and no others."""
    members = inspect.getmembers(SessionManager)
    public = {_signature(name, member) for name, member in members if not name.startswith("_")}
    assert set(_table("SessionManager: methods")) == public


def _as_written(default: object) -> str:
    """Return a default as the README writes it in code."""
    if default is inspect.Parameter.empty:
        return "required"
    if default is time.time:
        return "`time.time`"
    if isinstance(default, timedelta):
        minutes, seconds = divmod(default, MINUTE)
        if seconds:
            return f"`timedelta(seconds={seconds // SECOND})`"
        return f"`timedelta(minutes={minutes})`"
    return f"`{default:_}`" if type(default) is int else f"`{default}`"


def test_settings_are_those_of_the_constructor() -> None:
    """The table of settings names each one, in order, with its default."""
    parameters = inspect.signature(SessionManager).parameters.values()
    written = [(name, default) for name, (default, _) in _table("SessionManager: settings").items()]
    assert written == [(each.name, _as_written(each.default)) for each in parameters]


def test_fields_are_those_of_a_session() -> None:
    """The table of fields names each public property of Session, and no others."""
    properties = {
        name
        for name, member in inspect.getmembers(Session)
        if isinstance(member, property) and not name.startswith("_")
    }
    assert set(_table("Session")) == properties


def test_statuses_and_counts_are_named() -> None:
    """The README names each status and each key of the stats."""
    (statuses,) = _table("Session")["status"]
    assert re.findall(r"`(\w+)`", statuses)[2:] == list(SessionStatus)
    (stats,) = re.findall(r"^`SessionStats` has (.*?)\n\n", README, re.MULTILINE | re.DOTALL)
    assert re.findall(r"`(\w+)`", stats) == list(SessionStats.__annotations__)


def test_errors_are_those_of_the_package() -> None:
    """The table of errors names each one that the package exports, and no others."""
    exported = {
        name
        for name in sessionstore.__all__
        if issubclass(getattr(sessionstore, name), SessionStoreError)
    }
    assert set(_table("Errors")) == exported


def test_columns_are_those_of_the_table(filled: Path) -> None:
    """The table of columns has the names and types of the real one, in order."""
    with closing(sqlite3.connect(filled)) as connection:
        columns = connection.execute("SELECT name, type FROM pragma_table_info('sessions')")
        real = [(name, f"`{kind}`") for name, kind in columns]
    assert [(name, kind) for name, (kind, _) in _table("The table").items()] == real


@pytest.mark.parametrize("usage", _table("Command line"))
def test_command_line_knows_each_command_and_option(usage: str) -> None:
    """The help of each command has the options that the README gives it, and no others."""
    command = usage.split()[0]
    options = {"--help", *re.findall(r"--[a-z]+", usage)}
    if command != "demo":
        options.add("--timeout")
    done = subprocess.run(
        [sys.executable, "-m", "sessionstore", command, "--help"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"--[a-z]+", done.stdout)) == options


def test_ci_runs_the_test_command() -> None:
    """The last line of .ci/run is the README's test command, so pytest has the last word there."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.splitlines()[-1] == _test_command()


def test_dependency_is_the_declared_one() -> None:
    """The README names the versions of aiosqlite that setup.cfg asks for."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    assert f"`{settings['options']['install_requires'].strip()}`" in README


def test_links_lead_somewhere() -> None:
    """Each link into the repository names a file, and each link into the page a heading."""
    headings = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    anchors = {
        "#" + re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings
    }
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    lost = [each for each in targets if each not in anchors and not (ROOT / each).exists()]
    assert lost == []
    assert len(targets) > 0
