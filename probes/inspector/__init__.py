"""How fast a model is here and how much memory it takes: the Inspector.

`inspect(plan)` is the probe; `plan_for` builds its plan, `cost` prices it. Times come from two clocks that must agree.
"""

from __future__ import annotations

from probes.ask import Probe, Stopped
from probes.inspector.conclude import conclude
from probes.inspector.phases import Seen, phases
from probes.inspector.plan import Cost, Plan, cost, plan_for
from probes.result import InspectorSection

__all__ = ["Cost", "Plan", "Seen", "conclude", "cost", "inspect", "plan_for"]


def inspect(plan: Plan, seen: Seen | None = None) -> Probe[InspectorSection]:
    """Run the sequence; stopped early, conclude from what there is. `seen` may be passed in to look at afterwards."""
    seen = Seen() if seen is None else seen
    try:
        yield from phases(plan, seen)
    except Stopped as stop:
        seen.stopped = stop
    return conclude(plan, seen)
