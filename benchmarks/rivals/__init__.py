# SPDX-License-Identifier: MIT
"""The ways to keep sessions that are measured, in the order of the tables.

Importing this needs sessionstore alone: each rival imports its libraries when it is opened.
"""

from .disk_cache import DiskCache
from .django_sessions import DjangoSessions
from .manager import Sessionstore
from .plain_aiosqlite import AiosqliteAutocommit, AiosqliteLocked, AiosqliteUsual
from .plain_sqlite import PlainSqlite, PlainSqliteOneTransaction
from .protocol import Durability, Rival
from .redis_hash import RedisHash, RedisPipelined
from .sqlalchemy_orm import SqlalchemyOrm
from .starsessions_redis import StarsessionsRedis

__all__ = ["RIVALS", "Durability", "Rival"]

RIVALS: tuple[type[Rival], ...] = (
    Sessionstore,
    PlainSqlite,
    PlainSqliteOneTransaction,
    AiosqliteUsual,
    AiosqliteLocked,
    AiosqliteAutocommit,
    SqlalchemyOrm,
    RedisHash,
    RedisPipelined,
    StarsessionsRedis,
    DjangoSessions,
    DiskCache,
)
