# SPDX-License-Identifier: MIT
"""The ways to keep sessions that are measured, in the order of the tables.

A rival's module imports its libraries, so it is imported only when it is asked for. Without them it
cannot be, and the rival is left out.
"""

from importlib import import_module
from pathlib import Path
from typing import cast

from .base import Rival

CLASSES = {
    "sessionstore": "manager.Sessionstore",
    "release": "manager.Release",  # another one, for the option --release
    "sqlite3": "plain_sqlite.PlainSqlite",
    "sqlite3-one-transaction": "plain_sqlite.PlainSqliteOneTransaction",
    "aiosqlite": "plain_aiosqlite.AiosqliteUsual",
    "aiosqlite-locked": "plain_aiosqlite.AiosqliteLocked",
    "aiosqlite-autocommit": "plain_aiosqlite.AiosqliteAutocommit",
    "sqlalchemy": "sqlalchemy_orm.SqlalchemyOrm",
    "redis": "redis_hash.RedisHash",
    "redis-pipelined": "redis_hash.RedisPipelined",
    "starsessions": "starsessions_redis.StarsessionsRedis",
    "django": "django_sessions.DjangoSessions",
    "diskcache": "disk_cache.DiskCache",
}


def load(key: str, release: Path | None = None) -> type[Rival]:
    """Return the rival of a name; `release` is the folder of another release's package.

    Raises:
        ImportError: a library or program that it needs is not installed.
    """
    module, name = CLASSES[key].split(".")
    rival = cast("type[Rival]", getattr(import_module(f".{module}", __package__), name))
    rival.check_needs(release)
    return rival
