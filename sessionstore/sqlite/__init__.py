# SPDX-License-Identifier: MIT
"""The embedded engine: one SQLite file in WAL mode, for the processes of one machine."""

from .store import SQLiteStore

__all__ = ["SQLiteStore"]
