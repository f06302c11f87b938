# SPDX-License-Identifier: MIT
"""A redis-server of the benchmark's own, with its files in a folder, on a free port of loopback.

Whoever opens the folder first starts it, and stops it when closing; others join it meanwhile.
"""

import shutil
import socket
import subprocess
import time
from pathlib import Path

from .base import Durability

HOST = "127.0.0.1"
PATIENCE = 30.0  # seconds for a start, which may have a log to read, and for a stop

# `always` answers after the disk has it. `everysec` is the default of Redis if it keeps a log: a
# power cut may take the last second or two, where SQLite's NORMAL may lose more.
FSYNC = {Durability.FULL: "always", Durability.NORMAL: "everysec"}


def program() -> str:
    """Return the path of the program; raise ImportError if it is not installed."""
    path = shutil.which("redis-server")
    if path is None:
        raise ImportError("the program redis-server")
    return path


def server_version() -> str:
    """Return the name and version of the program."""
    command = [program(), "--version"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return f"Redis {answer.stdout.partition('v=')[2].split()[0]}"


class RedisServer:
    """The server of a folder, started here unless it runs already."""

    def __init__(self, folder: Path, durability: Durability) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._port_file = folder / "redis-port"
        if self._port_file.exists():
            self.port = int(self._port_file.read_text())
            return
        with socket.create_server((HOST, 0)) as listener:
            self.port = listener.getsockname()[1]
        command = [program(), "--bind", HOST, "--port", str(self.port), "--logfile", "redis.log"]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", FSYNC[durability]]
        self._process = subprocess.Popen(command, cwd=folder, start_new_session=True)  # noqa: S603
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.stop()
                raise RuntimeError(f"redis-server did not start; see {folder / 'redis.log'}")
            time.sleep(0.01)
        self._port_file.write_text(str(self.port))

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=PATIENCE) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100).startswith(b"+PONG")
        except OSError:  # it does not listen yet
            return False

    def stop(self) -> None:
        """Stop the server if it was started here, which writes its log out."""
        if self._process is None:
            return
        self._port_file.unlink(missing_ok=True)
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()  # does nothing after wait() has returned
            self._process.wait()
