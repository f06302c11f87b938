# SPDX-License-Identifier: MIT
"""The tests, a file for each module and for each promise."""
