# SPDX-License-Identifier: MIT
"""The speed of sessionstore, measured side by side with other ways to keep sessions."""
