# SPDX-License-Identifier: MIT
"""starsessions, the sessions of Starlette and FastAPI, on its RedisStore."""

import json
import time
from pathlib import Path
from typing import Any, ClassVar

from . import document
from .installed import find_missing, versions
from .protocol import Durability, Rival
from .redis_hash import CHUNK, CONNECTIONS

LIFETIME = 86_400  # seconds


class StarsessionsRedis(Rival):
    """Loads, changes and saves a session with the library's handler, as its middleware does.

    The whole session is one JSON text, written back without a lock: of two touches of a session at
    once one is lost, and so may be its end.
    """

    key: ClassVar = "starsessions"
    name: ClassVar = "starsessions on Redis"
    durabilities: ClassVar = frozenset(Durability)
    is_concurrent: ClassVar = True
    has_cache: ClassVar = False
    is_shareable: ClassVar = True

    def missing(self) -> str | None:
        """Return what of the libraries and redis-server is not installed."""
        return find_missing("starsessions", "starlette", "redis", program="redis-server")

    def version(self) -> str:
        """Return the versions of the library, the client and the server."""
        from .redis_server import server_version

        return f"{versions('starsessions', 'starlette', 'redis')}, {server_version()}"

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Start or find the server and connect."""
        import redis.asyncio
        from starsessions import JsonSerializer
        from starsessions.stores.redis import RedisStore

        from .redis_server import HOST, RedisServer

        self._server = RedisServer(folder)
        port = self._server.join(durability)
        pool = redis.asyncio.BlockingConnectionPool(
            host=HOST, port=port, max_connections=CONNECTIONS, timeout=None
        )
        self._client: Any = redis.asyncio.Redis.from_pool(pool)
        self._store = RedisStore(connection=self._client)
        self._serializer = JsonSerializer()

    async def close(self) -> None:
        """Disconnect and stop the server."""
        try:
            await self._client.aclose()
        finally:
            self._server.leave()

    async def fill(self, count: int, data: dict[str, Any]) -> list[str]:
        """Write what the handler would, in pipelines."""
        from starsessions.session import generate_session_id

        ids = [str(generate_session_id()) for _ in range(count)]
        at = time.time()
        metadata = {"lifetime": LIFETIME, "created": at, "last_access": at}
        text = json.dumps({**document.new_document("child", data), "__metadata__": metadata})
        for start in range(0, count, CHUNK):
            pipeline = self._client.pipeline(transaction=False)
            for id_ in ids[start : start + CHUNK]:
                pipeline.set(self._store.prefix(id_), text, ex=LIFETIME)
            await pipeline.execute()
        return ids

    async def create(self, child_id: str, data: dict[str, Any]) -> str:
        """Fill a new session and save it."""
        handler = await self._load(None)
        handler.connection.session.update(document.new_document(child_id, data))
        return str(await handler.save(LIFETIME))

    async def get(self, session_id: str) -> object | None:
        """Load the session; the library decodes it."""
        handler = await self._load(session_id)
        return None if handler.is_empty else handler.connection.session

    async def touch(self, session_id: str) -> bool:
        """Load, count, save."""
        return await self._change(session_id, document.touch)

    async def update(self, session_id: str, data: dict[str, Any]) -> bool:
        """Load, merge, save."""
        return await self._change(session_id, document.merge(data))

    async def end(self, session_id: str) -> bool:
        """Load, mark as ended, save."""
        return await self._change(session_id, document.end)

    async def _change(self, session_id: str, change: document.Change) -> bool:
        handler = await self._load(session_id)
        if not document.is_active(handler.connection.session):
            return False
        change(handler.connection.session)
        await handler.save(LIFETIME)
        return True

    async def _load(self, session_id: str | None) -> Any:
        """Return a handler as the middleware makes one for each request, loaded."""
        from starlette.requests import HTTPConnection
        from starsessions.session import SessionHandler

        request = HTTPConnection({"type": "http"})
        handler = SessionHandler(request, session_id, self._store, self._serializer, LIFETIME)
        await handler.load()
        return handler
