# SPDX-License-Identifier: MIT
# mypy: disallow-subclassing-any=False
"""A session manager on SQLAlchemy's asynchronous ORM: sessionstore's predecessor, written anew.

One ORM session a call, which selects the row, changes its attributes and commits; and a dict of the
rows last seen in front of it.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import JSON, DateTime, Index, String, event
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .base import Durability
from .document import Document, DocumentRival
from .table import BUSY_TIMEOUT, FILE, fill_table, new_id, pragmas

TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"  # of SQLAlchemy's DateTime in SQLite


class Base(DeclarativeBase):
    """The registry of the models."""


class SessionRecord(Base):
    """A row of the table."""

    __tablename__ = "sessions"
    __table_args__ = (Index("idx_sessions_activity", "status", "last_activity"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    child_id: Mapped[str] = mapped_column(String(36), index=True)
    status: Mapped[str] = mapped_column(String(20), default="active")
    started_at: Mapped[datetime] = mapped_column(DateTime)
    last_activity: Mapped[datetime] = mapped_column(DateTime)
    ended_at: Mapped[datetime | None] = mapped_column(DateTime)
    data: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    session_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", JSON, default=dict)
    interaction_count: Mapped[int] = mapped_column(default=0)


class SqlalchemyOrm(DocumentRival):
    """Keeps rows in the cache for ever: another process's changes to them are not seen by get."""

    name: ClassVar = "SQLAlchemy, asynchronous ORM"
    distributions: ClassVar = ("SQLAlchemy", "greenlet", "aiosqlite")

    def now(self) -> object:
        """Return the time, which SQLAlchemy writes."""
        return datetime.now(UTC)

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Make the engine, its hooks and the table."""
        self._path = folder / FILE
        self._cache: dict[str, SessionRecord] = {}
        self._cache_size = cache_size
        # SQLite has one writer at a time anyway. A pool of one is a fair queue for it; with more,
        # connections poll for the lock in their threads, which is no faster.
        self._engine = create_async_engine(
            f"sqlite+aiosqlite:///{self._path}",
            pool_size=1,
            max_overflow=0,
            pool_timeout=600,
            connect_args={"timeout": BUSY_TIMEOUT},
        )
        _add_hooks(self._engine.sync_engine, durability)
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        self._readers = async_sessionmaker(self._engine.execution_options(is_read_only=True))
        async with self._engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    async def close(self) -> None:
        """Close the pool."""
        self._cache.clear()
        await self._engine.dispose()

    async def fill(self, count: int, data: dict[str, Any]) -> list[str]:
        """Insert the rows past the ORM."""
        return fill_table(self._path, count, data, lambda time: time.strftime(TIME_FORMAT))

    async def create(self, child_id: str, data: dict[str, Any]) -> str:
        """Add an object and commit."""
        now = self.now()
        record = SessionRecord(
            id=new_id(), child_id=child_id, started_at=now, last_activity=now, data=data
        )
        async with self._sessions.begin() as session:
            session.add(record)
        self._remember(record)
        return str(record.id)

    async def get(self, session_id: str) -> object | None:
        """Return the object of the cache, or select it."""
        record = self._cache.get(session_id)
        if record is None:
            async with self._readers() as session:
                record = await session.get(SessionRecord, session_id)
            if record is not None:
                self._remember(record)
        return record

    async def _change(self, session_id: str, change: Callable[[Document], Document]) -> bool:
        """Change the object, which gets new values: the ORM sees no change inside of a dict."""
        async with self._sessions.begin() as session:
            record = await session.get(SessionRecord, session_id)
            if record is None or record.status != "active":
                return False
            changed = {"last_activity": self.now(), **change(vars(record))}
            for name, value in changed.items():
                setattr(record, name, value)
        self._remember(record)
        return True

    def _remember(self, record: Any) -> None:
        """Keep the object; if there are too many, drop the one kept first."""
        self._cache[record.id] = record
        if len(self._cache) > self._cache_size:
            del self._cache[next(iter(self._cache))]


def _add_hooks(engine: Any, durability: Durability) -> None:
    """Set up each connection, and begin transactions as SQLAlchemy's documentation of SQLite says.

    IMMEDIATE, since a transaction that reads before it writes fails at once if another process has
    written in between. A lone SELECT needs no transaction.
    """

    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for statement in pragmas(durability):
            cursor.execute(statement)
        cursor.close()

    def begin(connection: Any) -> None:
        if not connection.get_execution_options().get("is_read_only"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
