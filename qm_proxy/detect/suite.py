"""All detectors of one exchange, and what they share across exchanges.

suite = Suite()                              one for the whole observer
detectors = suite.detectors_for(opened)      when an exchange opens, after it was placed in its session
suite.reload, suite.hung_slot                look across exchanges; whoever sees all of them feeds them
"""

from __future__ import annotations

from collections.abc import Callable

from qm_proxy.detect.call_loop import CallLoops
from qm_proxy.detect.detector import Detector
from qm_proxy.detect.ends import Ends, How
from qm_proxy.detect.hung_slot import HungSlot
from qm_proxy.detect.reload import Reload
from qm_proxy.detect.schemas import Schemas
from qm_proxy.detect.stall import Stall, Surroundings
from qm_proxy.detect.token_loop import TokenLoop
from qm_proxy.detect.tool_schema import ToolSchema
from qm_proxy.detect.truncation import Calibration, Truncation
from qm_proxy.record import Opened

__all__ = ["Suite"]


class Suite:
    """Compiled schemas, what was learnt about tokens, what sessions did: shared, bounded, never read from outside."""

    def __init__(self) -> None:
        self.schemas = Schemas()
        self.calibration = Calibration()
        self.call_loops = CallLoops()
        self.reload = Reload()
        self.hung_slot = HungSlot()

    def detectors_for(
        self,
        opened: Opened,
        *,
        window_tokens: int | None = None,
        surroundings: Callable[[int, int], Surroundings] | None = None,
        how: Callable[[], How] | None = None,
    ) -> list[Detector]:
        """Who watches this exchange. `window_tokens`: of the loaded model; `surroundings`: what else happened in a span of time;
        `how`: what the connection knows about its end."""
        asked = opened.asked
        found: list[Detector] = [TokenLoop(asked), ToolSchema(asked, self.schemas)]
        found += [Stall(surroundings), Ends(opened.dialect, how)]
        if asked is not None:
            line = (opened.placed.session_id, opened.placed.trajectory) if opened.placed is not None else None
            found.append(Truncation(asked, self.calibration, window_tokens=window_tokens, line=line))
            if (loop := self.call_loops.watch(opened)) is not None:
                found.append(loop)
        return found
