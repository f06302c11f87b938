# SPDX-License-Identifier: MIT
"""Processes that measure, each a coroutine function of this package and its arguments.

A child says that it is ready, begins when it is told, and answers with one line of JSON. It hears
no Ctrl-C: its parent kills it. It ends by itself when its parent is gone before it has begun.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
READY = "ready"

Begin = Callable[[], Awaitable[None]]  # waits until all children are ready
Function = Callable[..., Awaitable[Any]]  # takes a Begin, then what JSON can hold


class ChildError(Exception):
    """A child has failed."""


async def run_children(function: Function, arguments: Sequence[Sequence[Any]]) -> list[Any]:
    """Run the function in a process for each of the arguments; return what they answer.

    They begin together, and each is to call `begin` once.
    """
    children: list[Process] = []
    try:
        for each in arguments:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", __name__, function.__module__, function.__name__,
                stdin=PIPE, stdout=PIPE, cwd=ROOT, start_new_session=True,
            )  # fmt: skip
            children.append(child)
            _write(child, each)
        for child in children:
            if await _read(child) != READY:
                raise ChildError("a process has not begun")
        for child in children:
            _write(child, READY)
        return [await _read(child) for child in children]
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()
            await child.wait()


def _write(child: Process, value: object) -> None:
    if child.stdin is not None:
        child.stdin.write(json.dumps(value).encode() + b"\n")


async def _read(child: Process) -> Any:
    line = await child.stdout.readline() if child.stdout is not None else b""
    result, error = json.loads(line) if line else (None, "a process has ended")
    if error:
        raise ChildError(error)
    return result


async def _be_child(module: str, name: str) -> None:
    def answer(result: object, error: str = "") -> None:
        sys.stdout.write(json.dumps([result, error]) + "\n")
        sys.stdout.flush()

    async def begin() -> None:
        answer(READY)
        if not await asyncio.to_thread(sys.stdin.readline):
            raise ChildError("the parent has gone")

    try:
        function = getattr(import_module(module), name)
        answer(await function(begin, *json.loads(sys.stdin.readline())))
    except Exception as error:
        answer(None, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    asyncio.run(_be_child(*sys.argv[1:]))
