"""`--guard cut`: ends a stream that provably loops, and nothing else. Decides; wiring sends the order, the relay carries it out.

Rules that hold here:

- Only an exact loop at twice its threshold, in text or thinking, never inside a tool call, never in an answer from the cloud
  (its chunks do not end where records do).
- Each cut is an abort of ours, and Ollama 0.33 loses a slot to some aborts (see detect.hung_slot): at most `CUTS` for a model
  in `PERIOD_NS`; beyond it the guard only observes, and says so, with the remedy for a lost slot.
- What the client gets is its dialect's own end (finish reason "length"), with no duration or count invented.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from qm_proxy.detect.token_loop import CutPoint, TokenLoop
from qm_proxy.events import Began, Dialect, Event, Nanoseconds, TextDelta, ThinkingDelta, ToolArguments, ToolCall
from qm_proxy.findings import Finding

__all__ = ["CUTS", "PERIOD_NS", "Guard", "GuardWatch"]

CUTS = 3
PERIOD_NS = 600 * 1_000_000_000
_TEXT_MAX = 1024 * 1024


@dataclass(slots=True)
class Guard:
    """What all exchanges share: how often each model was cut. `end`: (exchange id, what its item said) → was it ordered."""

    end: Callable[[str, str], bool]
    cuts: int = 0
    refused: int = 0
    held_back: int = 0  # loops let run because the model had its cuts
    _when: dict[str, deque[int]] = field(default_factory=dict)

    def may_cut(self, model: str, t_ns: Nanoseconds) -> bool:
        """Whether `model` has a cut left now."""
        recent = self._when.setdefault(model, deque())
        while recent and t_ns - recent[0] > PERIOD_NS:
            recent.popleft()
        return len(recent) < CUTS

    def cut(self, exchange_id: str, model: str, said: str, t_ns: Nanoseconds) -> bool:
        """Order the end, if the model has a cut left; False if it has none."""
        if not self.may_cut(model, t_ns):
            self.held_back += 1
            return False
        if self.end(exchange_id, said):
            self._when[model].append(t_ns)
            self.cuts += 1
        else:
            self.refused += 1
        return True

    def status(self) -> dict[str, int]:
        return {"cuts": self.cuts, "refused": self.refused, "held_back": self.held_back}


class GuardWatch:
    """One exchange's watch, behind its `TokenLoop` in the list of detectors."""

    def __init__(self, guard: Guard, loop: TokenLoop, exchange_id: str, model: str, dialect: Dialect) -> None:
        self._guard = guard
        self._loop = loop
        self._exchange_id = exchange_id
        self._model = model
        self._keeps_text = dialect == "openai-responses"  # its end repeats what was said
        self._said: list[str] = []
        self._size = 0
        self._over = False

    def see(self, event: Event) -> Iterable[Finding]:
        if self._over:
            return ()
        if isinstance(event, Began) and event.remote_host is not None:
            self._over = True
        elif isinstance(event, ToolArguments | ToolCall):
            self._over = True  # from the first piece of a call on, its client may act on it
        elif isinstance(event, TextDelta | ThinkingDelta):
            if self._keeps_text:
                self._said.append(event.text)
                self._size += len(event.text)
                self._over = self._size > _TEXT_MAX
            if self._loop.cut is not None:
                self._over = True
                if not self._guard.cut(self._exchange_id, self._model, "".join(self._said), event.t_ns):
                    return (self._held_back(self._loop.cut, event.t_ns),)
        return ()

    def _held_back(self, loop: CutPoint, t_ns: int) -> Finding:
        remedy = f"qm-proxy doctor --unhang {self._model}"
        minutes = PERIOD_NS // 60_000_000_000
        says = (
            f"The guard lets this loop run: it ended {CUTS} answers of {self._model} in {minutes} minutes, and Ollama may lose a "
            f"slot to each end; should the model stop answering, run `{remedy}`."
        )
        evidence: dict[str, object] = {
            "form": "exact",
            "channel": loop.channel,
            "times_the_bar": loop.ratio,
            "held_back": True,
            "remedy": remedy,
        }
        return Finding("loop.token", "info", says, t_ns, evidence)
