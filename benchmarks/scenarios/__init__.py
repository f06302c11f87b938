# SPDX-License-Identifier: MIT
"""The scenarios, in the order in which they run."""

from benchmarks.bench import Scenario

from .busy import BusyLoop
from .gap import LoopGap
from .growth import Growth
from .mix import Mix
from .operations import Operations
from .payload import Payload
from .processes import Processes

SCENARIOS: tuple[Scenario, ...] = (
    Operations(),
    Mix(),
    BusyLoop(),
    Growth(),
    LoopGap(),
    Processes(),
    Payload(),
)
