# SPDX-License-Identifier: MIT
"""Anything at all on the command line, and in the database that it shows.

Exit codes are 0, 1 and 2; an error is one line and no traceback; and nothing that a file or a
person holds in store for the terminal reaches it.
"""

import asyncio
import contextlib
import io
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sessionstore import SessionManager
from sessionstore.cli import terminal, usage
from sessionstore.cli.main import main

from .test_cli import COMMAND, ROOT, is_one_line

# What commands a terminal, breaks a table, or means something to SQL, to JSON or to a format.
ESCAPES = ["\x1b[31m", "\x1b]0;title\x07", "\x9b2J", "\r", "\n", "\t", "\b", "\u202e", "\u200f"]
FRAGMENTS = ["'", '"', "''; DROP TABLE sessions; --", "%' --", ":id", "?1", "\\", "\\u0000", "%s"]
WORDS = [
    "{0}",
    "_",
    "[]",
    "NULL",
    "end_reason",
    "$.a",
    "e\u0301",
    "\xe9",
    "\ufeff",
    "\u2028",
    "\x7f",
]
BROKEN = ["\0", "a\0b", "\ud800", "\udfff", "\udc80", "ok\ud83d"]


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fill a database with what tries to command the terminal, and return its path."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    database = folder / "sessions.db"

    async def fill() -> None:
        async with SessionManager(database, sweep_interval=None) as sessions:

            async def add(text: str) -> None:
                id_ = await sessions.create_session(text, {text: [text]}, metadata={text: text})
                await sessions.end_session(id_, text)

            await asyncio.gather(*map(add, [*ESCAPES, *FRAGMENTS, *WORDS]))

    asyncio.run(fill())
    change = "UPDATE sessions SET id = ?, child_id = ?, data = CAST(? AS TEXT) WHERE child_id = ?"
    with closing(sqlite3.connect(database)) as connection, connection:
        rows = [
            ("\x1b[31mred\n", "\x1b" * 2**20, b'{"a":"\xc2\x9b2J\\u001b[2J"}', "_"),
            ("b\0c", "\u0301" * 2**18, b'{"a":"\\ud83d"}', "[]"),
            ("\u202e", "a\0\x1b[0m", b'{"\\u009b":"\\u0007"}\0\x1b', "NULL"),
        ]
        connection.executemany(change, rows)
    return database


def is_harmless(text: str) -> bool:
    """Return whether a terminal can bear it: lines of characters that can be printed."""
    return text.replace("\n", "").isprintable()


def check_command(database: Path, words: list[str]) -> None:
    """Run a command in this process, and look at all that it says."""
    output, errors = io.StringIO(), io.StringIO()
    before = set(database.parent.iterdir())
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main([word.replace("PATH", str(database)) for word in words])
    said, complaint = output.getvalue(), errors.getvalue()
    assert code in (0, 1, 2), code
    assert is_harmless(said)
    assert is_harmless(complaint)
    assert "Traceback" not in complaint
    assert code == 0 or is_one_line(complaint) or (code == 2 and complaint.startswith("usage: "))
    assert {path.name for path in {*database.parent.iterdir()} - before} <= {
        f"{database.name}{end}" for end in ("-lock", "-wal", "-shm")
    }


TYPED = st.one_of(
    st.sampled_from([*ESCAPES, *FRAGMENTS, *WORDS, *BROKEN, "", "x" * 255, "x" * 256, "x" * 2**20]),
    st.text(st.characters(), max_size=40),
    st.sampled_from(
        ["0", "-1", "1e400", "nan", "inf", "9" * 5_000, "1_0", "٣", " 1", "0x1", "1e3"]
    ),
    st.sampled_from(["--", "-", "-h", "@PATH", "--li=1", "--json=1", "PATH/", "sqlite:///PATH"]),
    st.sampled_from(
        ["/", "/dev/null", ".", "~", "file:PATH", "PATH\udcff", "PATH?mode=ro", "a://b"]
    ),
)
OPTIONS = st.one_of(
    st.tuples(st.sampled_from(["--child", "--limit", "--status", "--timeout", "--reason"]), TYPED),
    st.tuples(st.just("--json")),
    st.tuples(TYPED),
)
COMMANDS = st.sampled_from(["list", "show", "stats", "end", "cleanup"])


@st.composite
def typed(draw: st.DrawFn) -> list[str]:
    """Return words that are mostly a command on a file that is there."""
    words = [draw(COMMANDS), draw(st.just("PATH") | TYPED)]
    if words[0] in ("show", "end"):
        words.append(draw(TYPED))
    for option in draw(st.lists(OPTIONS, max_size=3)):
        words += option
    return words if draw(st.integers(0, 9)) else draw(st.permutations(words))


def check_all_typed(database: Path, examples: int, *phases: Phase) -> None:
    """Run so many commands that somebody may type."""

    @settings(
        max_examples=examples,
        database=None,
        phases=[Phase.generate, *phases],
        suppress_health_check=list(HealthCheck),
    )
    @given(typed())
    def check(words: list[str]) -> None:
        check_command(database, words)

    check()


@pytest.mark.parametrize("examples", [80, pytest.param(4_000, marks=pytest.mark.torture)])
def test_anything_can_be_typed(filled: Path, examples: int) -> None:
    """It is done, or refused in one line; the terminal is not commanded, and no file is made."""
    check_all_typed(filled, examples, Phase.shrink)


@pytest.mark.parametrize("module", [terminal, usage], ids=lambda module: module.__name__)
def test_the_check_of_what_is_typed_can_fail(
    filled: Path, monkeypatch: pytest.MonkeyPatch, module: object
) -> None:
    """If one of the two ways to the terminal escapes nothing, the same examples fail."""
    monkeypatch.setattr(module, "printable", lambda text: text)
    with pytest.raises((AssertionError, ExceptionGroup)):
        check_all_typed(filled, 500)


def test_every_session_of_a_hostile_file_is_shown(filled: Path) -> None:
    """In a table, in a document and as JSON, whatever another program has put there."""
    with closing(sqlite3.connect(filled)) as connection:
        ids = [id_ for (id_,) in connection.execute("SELECT id FROM sessions")]
    assert len(ids) == len([*ESCAPES, *FRAGMENTS, *WORDS])
    for words in (["list"], ["list", "--json"], ["stats"]):
        check_command(filled, [words[0], "PATH", *words[1:]])
    for id_ in ids:
        check_command(filled, ["show", "PATH", id_])
        check_command(filled, ["end", "PATH", id_, "--reason", "\x1b[2J"])
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main(["list", str(filled), "--limit", "1000"]) == 0
    lines = output.getvalue().splitlines()
    assert len(lines) == len(ids) + 1
    assert max(map(len, lines)) < 500  # a name of a megabyte is cut


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_no_error(filled: Path, closed: str) -> None:
    """As under a daemon: what cannot be said is not said, and the code is the usual one."""
    for words, code in (["list", filled], 0), (["list"], 2), (["show", filled, "none"], 1):
        script = f'exec "$@" {closed}'
        done = subprocess.run(
            ["/bin/sh", "-c", script, "sh", *COMMAND, *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == code
        assert b"Traceback" not in done.stdout + done.stderr
        assert code == 0 or (done.stderr == b"") == ("2>&-" in closed)


def test_a_stream_that_a_host_has_closed_is_one_line(filled: Path) -> None:
    """A program that runs a command inside itself, after it closed its output."""
    for words in (["list", str(filled)], ["--help"], ["list"]):
        output, errors = io.StringIO(), io.StringIO()
        output.close()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            code = main(words)
        assert code == (2 if words == ["list"] else 1)
        assert "Traceback" not in errors.getvalue()
        assert words == ["list"] or is_one_line(errors.getvalue())
