# SPDX-License-Identifier: MIT
"""Processes that measure something by themselves, and are asked and answer in lines of JSON.

A child hears no Ctrl-C: its parent kills it. It ends by itself when its parent is gone.
"""

import asyncio
import json
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class ChildError(Exception):
    """Say that a child has failed, and how."""


class Child:
    """A process that waits for questions."""

    def __init__(self, questions: StreamWriter, answers: StreamReader) -> None:
        self._questions, self._answers = questions, answers
        self._number = 0  # of the last question

    async def ask(self, question: Any) -> Any:
        """Return the answer to a question, and skip those that nobody has waited for."""
        self._number += 1
        self._questions.write(json.dumps([self._number, question]).encode() + b"\n")
        await self._questions.drain()
        while line := await self._answers.readline():
            number, result, error = json.loads(line)
            if number == self._number and error:
                raise ChildError(error)
            if number == self._number:
                return result
        raise ChildError("the process has ended")


@asynccontextmanager
async def started(module: str, *arguments: str) -> AsyncIterator[Child]:
    """Run a module of this package as a child, which is killed at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"{__package__}.{module}", *arguments,
        stdin=PIPE, stdout=PIPE, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    try:
        if process.stdin is None or process.stdout is None:
            raise ChildError("the process has no pipes")
        yield Child(process.stdin, process.stdout)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def answer(reply: Callable[[Any], Awaitable[Any]]) -> None:
    """Be a child: reply to each question until there are no more."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        number, question = json.loads(line)
        result, problem = None, ""
        try:
            result = await reply(question)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        sys.stdout.write(json.dumps([number, result, problem]) + "\n")
        sys.stdout.flush()
