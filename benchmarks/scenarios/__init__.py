# SPDX-License-Identifier: MIT
"""The scenarios, in the order in which they run."""

from ..bench import Scenario
from . import busy, create, gap, growth, mix, operations, payload, processes

SCENARIOS: dict[str, Scenario] = {
    "operations": operations,
    "create": create,
    "mix": mix,
    "busy": busy,
    "growth": growth,
    "gap": gap,
    "processes": processes,
    "payload": payload,
}
