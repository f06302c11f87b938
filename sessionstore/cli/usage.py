# SPDX-License-Identifier: MIT
"""What can be typed on the command line: the commands, their options, and what argparse checks.

A function that argparse uses as a type has the name that it shows for a text that is no such thing.
All other arguments are the library's to check. Nothing is run here.
"""

import argparse
from typing import Any

from .. import SessionStatus, __version__
from .terminal import printable

TIMEOUT = 1800  # seconds
LIMIT = 100
SESSIONS = 200
MOST = 2**62  # sessions: more than any file has


class _Parser(argparse.ArgumentParser):
    """A parser that escapes what cannot be printed before it complains of it."""

    def error(self, message: str) -> Any:
        """Print the usage and what was wrong, and exit with 2."""
        super().error(printable(message))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser. It puts the name of the command into `command`."""
    parser = _Parser(prog="sessionstore", description="Look after sessions in a SQLite file.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    _add_demo(commands)

    stats = _add(commands, "stats", "count the sessions")
    _add_json(stats)

    listing = _add(commands, "list", "list sessions, started last first")
    listing.add_argument("--child", metavar="ID", help="only those of this child")
    listing.add_argument("--status", choices=[*map(str, SessionStatus)], help="only these")
    listing.add_argument(
        "--limit", metavar="N", type=limit, default=LIMIT, help=f"at most this many ({LIMIT})"
    )
    _add_json(listing)

    show = _add(commands, "show", "show all that is known of one session")
    show.add_argument("id", metavar="ID")
    _add_json(show)

    end = _add(commands, "end", "end an active session")
    end.add_argument("id", metavar="ID")
    end.add_argument("--reason", default="manual", help="why it ends (manual)")

    _add(commands, "cleanup", "mark the sessions that have timed out as such")
    return parser


def _add_demo(commands: Any) -> None:
    text = "run conversations through the whole life of a session, on a fast clock"
    demo = commands.add_parser("demo", help=text, description=text)
    demo.add_argument(
        "--sessions", metavar="N", type=sessions, default=SESSIONS, help=f"this many ({SESSIONS})"
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
        type=float,
        default=TIMEOUT,
        help=f"the idle timeout of the application, which says what has timed out ({TIMEOUT})",
    )
    return command


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def path(text: str) -> str:
    """Return the path of a file, given as a path or as a URL of SQLite."""
    scheme, separator, rest = text.partition("://")
    if separator:
        if scheme not in ("sqlite", "sqlite+aiosqlite") or not rest.startswith("/") or "?" in rest:
            raise argparse.ArgumentTypeError(
                "a URL must be sqlite:///relative.db or sqlite:////absolute.db"
            )
        text = rest[1:]
    if text in ("", ":memory:"):
        raise argparse.ArgumentTypeError("it must be a file: nothing else is there to look into")
    return text


def limit(text: str) -> int:
    """Return how many sessions to list at most, which may be none."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("it must be zero or more")
    return min(number, MOST)


def sessions(text: str) -> int:
    """Return how many sessions to run."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number
