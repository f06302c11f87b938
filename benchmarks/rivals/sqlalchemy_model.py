# SPDX-License-Identifier: MIT
# mypy: disallow-subclassing-any=False
"""The declarative model of sqlalchemy_orm.py, in a module of its own to be imported when needed."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Index, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


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
