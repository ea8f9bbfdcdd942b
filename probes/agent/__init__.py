"""Can a model finish long work? The Agent Report: a fair simulated world, honest counts, failures that can be proven.

`report_agent(plan)` is the probe; `plan_for` builds its plan from the command's flags, `cost` prices it, `compat_rows` gives
the origin's view.
"""

from __future__ import annotations

from probes.agent.compat_replay import compat_kept, compat_key, walk_compat
from probes.agent.generator import GENERATOR_VERSION, generate
from probes.agent.origin import compat_rows
from probes.agent.plan import Cost, Plan, cost, plan_for
from probes.agent.replay import replay, terminal
from probes.agent.report import Seen, conclude, report_agent
from probes.agent.walk import find_run, sections, walk

__all__ = [
    "GENERATOR_VERSION",
    "Cost",
    "Plan",
    "Seen",
    "compat_kept",
    "compat_key",
    "compat_rows",
    "conclude",
    "cost",
    "find_run",
    "generate",
    "plan_for",
    "replay",
    "report_agent",
    "sections",
    "terminal",
    "walk",
    "walk_compat",
]
