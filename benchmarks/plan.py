# SPDX-License-Identifier: MIT
"""How much is measured: lengths, counts and sizes, in three editions.

Only the full one measures. The quick one shows within about a minute what there is; the tiny one
only shows that all of it runs.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """The size of a run. Lengths of time are in seconds."""

    repeats: int = 5  # rounds of the short runs
    long_repeats: int = 3  # rounds of the long ones
    length: float = 0.3  # of one short run, by its number of calls: several checkpoints of activity
    window: float = 0.6  # in which the busy loop and the processes count calls
    patience: float = 60.0  # until a run that does not end counts as failed
    tasks: tuple[int, ...] = (1, 10, 100, 1_000)
    crowd: int = 100  # tasks of the scenarios that have one number of them
    clients: int = 50  # of the busy loop
    processes: tuple[int, ...] = (1, 2, 4)
    sessions: int = 10_000  # in the store; a tenth of them fits into its cache
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)  # sessions
    batch: int = 1_000  # calls of each kind, and sessions that time out, at each of these sizes
    listed: int = 100_000  # sessions listed, cleaned up and purged in one go
    cached: int = 100_000  # sessions in the cache whose memory is measured
    payloads: tuple[int, ...] = (100, 10_000, 100_000)  # bytes

    @property
    def cache_size(self) -> int:
        """How many sessions a rival with a cache may keep in it."""
        return self.sessions // 10


FULL = Plan()
QUICK = Plan(
    repeats=2,
    long_repeats=1,
    length=0.01,
    window=0.2,
    tasks=(1, 100),
    processes=(1, 2),
    sizes=(1_000, 10_000),
    batch=200,
    listed=10_000,
    cached=10_000,
    payloads=(100, 10_000),
)
TINY = Plan(
    repeats=2,
    long_repeats=1,
    length=0.001,
    window=0.05,
    tasks=(1, 5),
    crowd=5,
    clients=5,
    processes=(1, 2),
    sessions=200,
    sizes=(100, 300),
    batch=50,
    listed=1_000,
    cached=300,
    payloads=(100, 1_000),
)
