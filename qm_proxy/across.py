"""What only shows across exchanges, as a sink: forced reloads, hung slots, and what began beside a stream that paused.

First among the sinks after Sessions: a finding of `Reload` about an exchange that closes is added to its record before the
others see it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from qm_proxy.detect.stall import Surroundings
from qm_proxy.detect.suite import Suite
from qm_proxy.events import HostSample, Nanoseconds, Residency
from qm_proxy.findings import Finding
from qm_proxy.ids import new_id, unix_ms_of
from qm_proxy.record import Opened, Progress, Record

__all__ = ["Across"]

_STARTS = 256


class Across:
    """`tell` hands a finding of a closing exchange to all sinks; `attach` gives one to an exchange in flight by its id."""

    def __init__(self, suite: Suite, tell: Callable[[Finding], None], attach: Callable[[Finding], None]) -> None:
        self._suite = suite
        self._tell = tell
        self._attach = attach
        self._starts: deque[tuple[int, str, str]] = deque(maxlen=_STARTS)

    # --- as a sink ----------------------------------------------------------------------------------------------------

    def opened(self, opened: Opened) -> None:
        if opened.operation is not None:
            self._starts.append((opened.t_ns, opened.id, opened.model or opened.route))
        self._suite.reload.opened(opened)
        self._suite.hung_slot.opened(opened)

    def progress(self, progress: Progress) -> None:
        self._suite.hung_slot.progress(progress)

    def found(self, finding: Finding) -> None:
        """What others found is theirs."""

    def closed(self, record: Record) -> None:
        self._suite.hung_slot.closed(record)
        for finding in self._suite.reload.closed(record):
            finding.id = finding.id or new_id(unix_ms_of(record.id) * 1_000_000)
            finding.exchange_id = record.id
            finding.session_id = record.session_id
            if finding.t_s is None and record.opened is not None:
                finding.t_s = max(0, finding.t_ns - record.opened.t_ns) / 1e9
            record.findings.append(finding)
            self._tell(finding)

    # --- from beside and from the clock -------------------------------------------------------------------------------

    def see(self, event: HostSample | Residency) -> None:
        if isinstance(event, Residency):
            self._suite.reload.see(event)
        self._suite.hung_slot.see(event)

    def tick(self, now_ns: Nanoseconds) -> None:
        for finding in self._suite.hung_slot.tick(now_ns):
            self._attach(finding)

    def beside(
        self, exchange_id: str, client_slow_ns: Callable[[int, int], int | None] = lambda _from, _to: None
    ) -> Callable[[int, int], Surroundings]:
        """What `Stall` asks about a span: how long its client did not read, and which other requests began in it."""

        def between(from_ns: int, to_ns: int) -> Surroundings:
            return Surroundings(
                client_slow_ns(from_ns, to_ns),
                started=tuple(what for at, one, what in self._starts if from_ns <= at <= to_ns and one != exchange_id),
            )

        return between
