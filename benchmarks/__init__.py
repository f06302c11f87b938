# SPDX-License-Identifier: MIT
"""Measures sessionstore side by side with other ways to keep sessions: `python -m benchmarks`.

A scenario asks a question, a rival is a way to keep sessions; each is a module in its folder.
bench.py lets the rivals take turns, work.py makes the calls that are timed, figures.py keeps the
samples, aims.py says what sessionstore wants to reach, and report.py and chart.py show all that.
"""
