# SPDX-License-Identifier: MIT
"""A redis-server of the benchmark's own, with its files in a folder, on a free port of loopback.

Whoever opens the folder first starts it, in whatever process; the last one to leave stops it. Two
files tell: redis-users is locked by each user, shared, and redis-change by who joins or leaves.
"""

import atexit
import fcntl
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .protocol import Durability

HOST = "127.0.0.1"
PATIENCE = 30.0  # seconds for a start, which may have a log to read, and for a stop

# `always` answers after the disk has it. `everysec` is the default of Redis where it keeps a log: a
# power cut may take the last second or two, where SQLite's NORMAL may lose more.
FSYNC = {Durability.FULL: "always", Durability.NORMAL: "everysec"}

_children: dict[int, subprocess.Popen[bytes]] = {}  # what this process has started, by port


def server_version() -> str:
    """Return the name and version of the program."""
    answer = subprocess.run([_program(), "--version"], capture_output=True, text=True, check=True)  # noqa: S603 - a fixed command
    return f"Redis {answer.stdout.partition('v=')[2].split()[0]}"


class RedisServer:
    """A share in the server of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._users: IO[bytes] | None = None

    def join(self, durability: Durability) -> int:
        """Start the server unless it runs; return its port."""
        users = (self._folder / "redis-users").open("wb")
        try:
            with _locked(self._folder / "redis-change"):
                fcntl.flock(users, fcntl.LOCK_SH)
                port = self._find() or self._start(durability)
        except BaseException:
            users.close()
            raise
        self._users = users
        atexit.register(self.leave)
        return port

    def leave(self) -> None:
        """Stop the server unless somebody else uses it. Safe to call twice."""
        users, self._users = self._users, None
        if users is None:
            return
        atexit.unregister(self.leave)
        with users, _locked(self._folder / "redis-change"):
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            self._stop()

    def _find(self) -> int | None:
        """Return the port of the folder's server, if one is running."""
        try:
            port = int((self._folder / "redis-port").read_text())
            answer = _ask(port, b"CONFIG GET dir")
        except OSError:
            return None
        return port if str(self._folder).encode() in answer.splitlines() else None

    def _start(self, durability: Durability) -> int:
        port = _free_port()
        command = [_program(), "--bind", HOST, "--port", str(port), "--logfile", "redis.log"]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", FSYNC[durability]]
        process = subprocess.Popen(command, cwd=self._folder)  # noqa: S603 - a fixed command
        try:
            self._wait_until_ready(process, port)
            (self._folder / "redis-port").write_text(str(port))
        except BaseException:
            _end(process)
            raise
        _children[port] = process
        return port

    def _wait_until_ready(self, process: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if _ask(port, b"PING").startswith(b"+PONG"):
                    return
            except OSError:  # it does not listen yet
                pass
            time.sleep(0.01)
        raise RuntimeError(f"redis-server did not start; see {self._folder / 'redis.log'}")

    def _stop(self) -> None:
        port = self._find()
        if port is None:
            return
        process = _children.pop(port, None)
        if process is None:
            _ask(port, b"SHUTDOWN")
        else:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Terminate it, which writes its log out, and wait; kill it where that takes too long."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    finally:
        process.kill()  # does nothing after wait() has returned
        process.wait()


def _program() -> str:
    program = shutil.which("redis-server")
    if program is None:
        raise FileNotFoundError("redis-server is not installed")
    return program


def _free_port() -> int:
    """Return a port that was free just now."""
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _ask(port: int, command: bytes) -> bytes:
    """Send an inline command and return the answer, which is short; b"" after SHUTDOWN."""
    with socket.create_connection((HOST, port), timeout=PATIENCE) as connection:
        connection.sendall(command + b"\r\n")
        return connection.recv(65_536)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
