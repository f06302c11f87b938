# SPDX-License-Identifier: MIT
"""The fuzzer that is guided by coverage, run for a while, and on bugs that are there."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 600

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None, reason='needs atheris: pip install ".[fuzz]"'
    ),
]


def fuzz(folder: Path, *options: object) -> tuple[int, str]:
    """Run the fuzzer; return its exit code, and what it said."""
    command = [sys.executable, "-m", "tests.torture.fuzz", "--failures", str(folder)]
    command += map(str, options)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=SECONDS + 120)
    return done.returncode, (done.stdout + done.stderr).decode(errors="backslashreplace")


def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    """No input breaks a check, a document, a row, or the command line."""
    code, said = fuzz(tmp_path, "--seconds", SECONDS)
    assert code == 0, said[-3_000:]
    assert not list(tmp_path.iterdir())
    (executions,) = re.findall(r"number_of_executed_units: (\d+)", said)
    print(f"{executions} executions", *re.findall(r"Seed: \d+|DONE +cov: \d+ ft: \d+", said))
    assert int(executions) > 50 * SECONDS


def test_the_fuzzer_finds_its_way_to_a_planted_bug(tmp_path: Path) -> None:
    """Eight bytes that must be right lead to it; it is found one by one, and can be run again."""
    code, said = fuzz(tmp_path, "--seconds", 120, "--planted")
    assert code != 0
    assert "the planted bug was found" in said
    (failure,) = tmp_path.iterdir()
    assert failure.read_bytes().startswith(b"session?")
    code, said = fuzz(tmp_path, "--planted", failure)
    assert code != 0
    assert "the planted bug was found" in said


def test_the_fuzzer_sees_a_check_that_is_missing(tmp_path: Path) -> None:
    """A text with NUL that is let through is told by the oracle."""
    code, said = fuzz(tmp_path, "--seconds", 120, "--broken")
    assert code != 0
    assert "in check_data" in said or "in check_text" in said
    assert "AssertionError" in said
