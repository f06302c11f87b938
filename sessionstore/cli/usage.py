# SPDX-License-Identifier: MIT
"""What can be typed on the command line: the commands, their options, and the checks of both.

What is wrong here ends in exit code 2, before any file is touched; the rules are the library's own.
A check has the name that argparse shows for a text that is no such thing. Nothing is run here.
"""

import argparse
import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from .. import __version__
from ..arguments import check_count, check_database, check_micros, check_text
from ..errors import InvalidArgumentError
from ..session import SessionStatus
from .terminal import printable

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=30)
LIMIT = 100
SESSIONS = 200


class _Parser(argparse.ArgumentParser):
    """Complains without sending the terminal what cannot be printed."""

    def error(self, message: str) -> Any:
        """Print the usage and what was wrong, and exit with 2."""
        super().error(printable(message))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; what it parses has the name of its command in `command`."""
    parser = _Parser(prog="sessionstore", description="Look after sessions in a SQLite file.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    _add_demo(commands)

    stats = _add(commands, "stats", "count the sessions")
    _add_json(stats)

    listing = _add(commands, "list", "list sessions, started last first")
    listing.add_argument("--child", metavar="ID", type=child, help="only those of this child")
    listing.add_argument("--status", choices=[*map(str, SessionStatus)], help="only these")
    listing.add_argument(
        "--limit", metavar="N", type=limit, default=LIMIT, help=f"at most so many ({LIMIT})"
    )
    _add_json(listing)

    show = _add(commands, "show", "show all that is known of one session")
    show.add_argument("id", metavar="ID")
    _add_json(show)

    end = _add(commands, "end", "end an active session")
    end.add_argument("id", metavar="ID")
    end.add_argument("--reason", type=reason, default="manual", help="why it ends (manual)")

    _add(commands, "cleanup", "mark the sessions that have timed out as such")
    return parser


def _add_demo(commands: Any) -> None:
    text = "run conversations through the whole life of a session, on a fast clock"
    demo = commands.add_parser("demo", help=text, description=text)
    demo.add_argument(
        "--sessions", metavar="N", type=sessions, default=SESSIONS, help=f"so many ({SESSIONS})"
    )
    demo.add_argument(
        "--database",
        dest="path",
        metavar="PATH",
        type=path,
        help="the file, made if it is not there (one in a temporary folder, which is kept)",
    )


def _add(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """Add a command on a file that is there."""
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.add_argument("path", metavar="PATH", type=path, help="the database file")
    command.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=TIMEOUT,
        help="the idle timeout of the application, which says what has timed out (1800)",
    )
    return command


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def _check(check: Callable[[str], Value]) -> Callable[[str], Value]:
    """Let argparse say what the library says of an argument that it refuses."""

    @functools.wraps(check)
    def checked(text: str) -> Value:
        try:
            return check(text)
        except InvalidArgumentError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


@_check
def path(text: str) -> str:
    """Return the path of a file, given as a path or URL."""
    checked = check_database(text)
    if checked == ":memory:":
        raise InvalidArgumentError("it must be a file: nothing else is there to look into")
    return checked


@_check
def seconds(text: str) -> timedelta:
    """Return a length of time."""
    try:
        return timedelta(microseconds=check_micros("it", float(text)))
    except InvalidArgumentError as error:
        raise InvalidArgumentError("it must be a positive number of seconds") from error


@_check
def limit(text: str) -> int:
    """Return the number of sessions to list, which may be none."""
    return min(check_count("it", int(text)), 2**62)


@_check
def sessions(text: str) -> int:
    """Return the number of sessions to run."""
    return check_count("it", int(text), minimum=1)


@_check
def child(text: str) -> str:
    """Return the id of a child."""
    return check_text("it", text)


@_check
def reason(text: str) -> str:
    """Return the reason for an end."""
    return check_text("it", text)
