# SPDX-License-Identifier: MIT
"""A session manager on Redis: a hash for each session, and a script for each write.

A script is atomic and one round trip. Each top-level key of the data is a field of its own, as
JSON, so that an update is one HSET. There is no index by child, for which the SQL rivals do pay.
"""

import asyncio
import json
from pathlib import Path
from typing import Any, ClassVar

import redis.asyncio

from .base import Durability, Rival
from .redis_server import HOST, RedisServer, program, server_version
from .table import new_id, now

LIFETIME = 86_400  # seconds after its last use that Redis keeps a session
CONNECTIONS = 50  # calls beyond wait for one; more connections were no faster
CHUNK = 1_000  # sessions that fill() sends at once

# ARGV: whether it is to be active already, interactions to add, lifetime; then fields and values.
WRITE = """
if ARGV[1] == '1' and redis.call('HGET', KEYS[1], 'status') ~= 'active' then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
if ARGV[2] ~= '0' then redis.call('HINCRBY', KEYS[1], 'interaction_count', ARGV[2]) end
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""

Command = tuple[str | int, ...]


def connect(server: RedisServer, **options: Any) -> Any:
    """Return a client with a pool of connections."""
    pool = redis.asyncio.BlockingConnectionPool(
        host=HOST, port=server.port, max_connections=CONNECTIONS, timeout=None, **options
    )
    return redis.asyncio.Redis.from_pool(pool)


class RedisRival(Rival):
    """What needs a redis-server."""

    @classmethod
    def check_needs(cls, release: Path | None) -> None:
        """Look for the program, too."""
        super().check_needs(release)
        program()

    @classmethod
    def version(cls) -> str:
        """Return the server's version, and no SQLite's."""
        return f"{server_version()}, {super().version().rpartition(', ')[0]}"


class RedisHash(RedisRival):
    """Sends each command by itself and waits for the answer, over a pool of connections."""

    name: ClassVar = "Redis, a round trip a call"
    distributions: ClassVar = ("redis", "hiredis")

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Start or find the server, connect, and load the script."""
        self._server = RedisServer(folder, durability)
        self._client = connect(self._server, decode_responses=True)
        self._script = await self._client.script_load(WRITE)

    async def close(self) -> None:
        """Disconnect and stop the server."""
        try:
            await self._client.aclose()
        finally:
            self._server.stop()

    async def fill(self, count: int, data: dict[str, Any]) -> list[str]:
        """Run the script in pipelines."""
        ids = [new_id() for _ in range(count)]
        for start in range(0, count, CHUNK):
            pipeline = self._client.pipeline(transaction=False)
            for id_ in ids[start : start + CHUNK]:
                pipeline.execute_command(*self._creation(id_, f"child-{id_[:8]}", data))
            await pipeline.execute()
        return ids

    async def create(self, child_id: str, data: dict[str, Any]) -> str:
        """Set a new hash and its time to live."""
        id_ = new_id()
        await self._call(*self._creation(id_, child_id, data))
        return id_

    async def get(self, session_id: str) -> object | None:
        """Return the hash as a dict, its JSON not decoded."""
        return await self._call("HGETALL", _key(session_id)) or None

    async def touch(self, session_id: str) -> bool:
        """Set the time and raise the count, if the session is active."""
        return await self._write(session_id, 1, "last_activity", now())

    async def update(self, session_id: str, data: dict[str, Any]) -> bool:
        """Set the fields, if the session is active."""
        return await self._write(session_id, 0, "last_activity", now(), *_fields(data))

    async def end(self, session_id: str) -> bool:
        """Set the status, if the session is active."""
        return await self._write(session_id, 0, "status", "ended", "ended_at", now())

    async def _call(self, *command: str | int) -> Any:
        return await self._client.execute_command(*command)

    async def _write(self, session_id: str, count: int, *fields: str) -> bool:
        key = _key(session_id)
        return bool(await self._call("EVALSHA", self._script, 1, key, 1, count, LIFETIME, *fields))

    def _creation(self, id_: str, child_id: str, data: dict[str, Any]) -> Command:
        at = now()
        return (
            *("EVALSHA", self._script, 1, _key(id_), 0, 0, LIFETIME),
            *("child_id", child_id, "status", "active", "started_at", at, "last_activity", at),
            *("interaction_count", "0", *_fields(data)),
        )


class RedisPipelined(RedisHash):
    """Sends the commands that come in one pass of the event loop together: the best case of Redis.

    Few programs do this; the client does not do it by itself.
    """

    name: ClassVar = "Redis, pipelined"

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Start or find the server, connect, and load the script."""
        self._waiting: list[tuple[Command, asyncio.Future[Any]]] = []
        self._batches: set[asyncio.Task[None]] = set()
        await super().open(folder, durability, cache_size)

    async def _call(self, *command: str | int) -> Any:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append((command, answer))
        return await answer

    def _send(self) -> None:
        batch, self._waiting = self._waiting, []
        task = asyncio.create_task(self._execute(batch))
        self._batches.add(task)  # the event loop itself keeps only a weak reference
        task.add_done_callback(self._batches.discard)

    async def _execute(self, batch: list[tuple[Command, asyncio.Future[Any]]]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for command, _ in batch:
            pipeline.execute_command(*command)
        try:
            results = await pipeline.execute(raise_on_error=False)
        except Exception as error:
            results = [error] * len(batch)
        for (_, answer), result in zip(batch, results, strict=True):
            if answer.done():  # its caller was cancelled
                continue
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)


def _key(session_id: str) -> str:
    return f"session:{session_id}"


def _fields(data: dict[str, Any]) -> list[str]:
    return [text for key, value in data.items() for text in (f"data.{key}", json.dumps(value))]
