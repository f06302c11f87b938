# SPDX-License-Identifier: MIT
"""The seeds of tests that draw at random: another one each time, printed, and to be given again.

`SEED=123 python -m pytest tests/test_x.py` repeats what a test with that seed has drawn. The moment
at which a process is killed or a thread goes on is the machine's all the same.
"""

import os
import random


def draw_seed() -> int:
    """Return the seed that was asked for, or a new one, and print it."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().getrandbits(32))
    print(f"SEED={seed}")
    return seed
