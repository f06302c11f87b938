# SPDX-License-Identifier: MIT
"""The embedded engine: one SQLite file in WAL mode."""
