# SPDX-License-Identifier: MIT
"""What the command line prints, and how: lines, tables, JSON, a progress bar, complaints.

Every line goes through `printable`, so that no name in a database breaks a table or commands the
terminal. It escapes as JSON does, so that JSON stays JSON. Nothing is known here of sessions.
"""

import codecs
import json
import logging
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from typing import TextIO

BAR_SIZE = 40  # characters
REDRAW_INTERVAL = 0.1  # seconds


def set_up() -> None:
    """Escape what the encoding of the output lacks, and show the library's warnings."""
    # A program that calls main() may have put anything in the place of standard output.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def say(*lines: str) -> None:
    """Print lines on standard output."""
    for line in lines:
        print(printable(line))  # noqa: T201  # this is what prints the results


def complain(problem: str) -> None:
    """Print one line on standard error, if there is one."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(f"sessionstore: {printable(problem)}\n")
            sys.stderr.flush()


def flush() -> None:
    """Write out what was printed; raise OSError if that fails."""
    if sys.stdout is not None:
        sys.stdout.flush()


def give_up_output() -> None:
    """Drop what is still to be written: Python would fail again at its exit."""
    with suppress(OSError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, sys.stdout.fileno())
        finally:
            os.close(nowhere)


def printable(text: str) -> str:
    """Escape the characters that cannot be printed, line ends among them."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def json_lines(value: object) -> list[str]:
    """Return the value as indented JSON that the encoding of standard output can carry."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    is_utf8 = codecs.lookup(encoding).name == "utf-8"
    return json.dumps(value, indent=2, ensure_ascii=not is_utf8, allow_nan=False).split("\n")


def table(rows: Iterable[Iterable[str]], numbers: Container[int] = ()) -> Iterator[str]:
    """Yield the rows with their columns aligned, those of `numbers` to the right."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        gaps = [" " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        aligned = [
            gap + cell if index in numbers else cell + gap
            for index, (cell, gap) in enumerate(zip(row, gaps, strict=True))
        ]
        yield "  ".join(aligned).rstrip()


def shorten(text: str, width: int) -> str:
    """Cut a text that takes more than so many columns of a terminal."""
    start = text[: 8 * width]  # room for combining characters, but not for a megabyte of them
    if len(start) == len(text) and _width(printable(text)) <= width:
        return printable(text)
    text = printable(start)
    while _width(text) > width - 3:
        text = text[:-1]
    return f"{text}..."


def _width(text: str) -> int:
    """Return how many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.category(char) in ("Mn", "Me") for char in text)


class Meter:
    """A display of progress: a bar on a terminal, a few lines elsewhere."""

    def __init__(self) -> None:
        self._bar = sys.stdout is not None and sys.stdout.isatty()
        self._quarter = 0
        self._drawn_at = 0.0

    def show(self, share: float, figures: str) -> None:
        """Redraw the bar, or print a line after each quarter."""
        if self._bar:
            if share == 1 or time.monotonic() - self._drawn_at > REDRAW_INTERVAL:
                self._draw(sys.stdout, share, figures)
        elif int(share * 4) > self._quarter:
            self._quarter = int(share * 4)
            say(figures)
            flush()

    def end(self) -> None:
        """Leave the line of the bar."""
        if self._drawn_at:
            self._drawn_at = 0.0
            say("")

    def _draw(self, output: TextIO, share: float, figures: str) -> None:
        columns = shutil.get_terminal_size().columns - 1  # the last one would start a new line
        size = min(BAR_SIZE, columns - len(figures) - 3)
        bar = f"[{'#' * int(share * size):-<{size}}] " if size > 0 else ""
        output.write("\r" + f"{bar}{figures}"[:columns].ljust(columns))
        output.flush()
        self._drawn_at = time.monotonic()


class OneLineFormatter(logging.Formatter):
    """A warning as one line, with the message of an exception but no traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with its level in front of it."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({record.exc_info[1]})"
        return f"sessionstore: {record.levelname.lower()}: {printable(text)}"
