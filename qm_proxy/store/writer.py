"""The one writer: a Sink whose rows are written by one thread, a batch in one transaction, within a second.

Rules that hold here:

- Nobody waits for the disk. The queue is bounded in rows and bytes; what does not fit is dropped and counted.
- A closed exchange can be read after `LINGER_S` at most, when the disk allows. A batch is written whole or not at all.
- Full, read-only, locked, gone: it says so (`status`), keeps what is queued, tries again with growing pauses, and recovers.
- A row that SQLite refuses costs that row (`rejected`), not the batch and not the rest of the day.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from qm_proxy.events import ResidentModel
from qm_proxy.findings import Finding
from qm_proxy.ids import new_id
from qm_proxy.measure.wall_clock import iso, unix_ns_of_iso
from qm_proxy.record import Opened, Record
from qm_proxy.sinks import unheard
from qm_proxy.store.database import Failure, Place, failure_of, in_memory, open_for_writing
from qm_proxy.store.redact import Redactor
from qm_proxy.store.retention import Retention, sizes
from qm_proxy.store.rows import ORDER, STATEMENTS, Keeping, Row, exchange_rows, finding_row, run_row, started_rows

__all__ = ["Writer"]

LINGER_S = 0.25
"""How long a batch waits for company."""
QUEUE_BYTES = 64 * 1024 * 1024
BATCH_ROWS = 5000
_TICK_S = 5.0
_PAUSE_S = (0.25, 5.0)
_OPEN = 10_000
_MODELS = 10_000
_ROW_BYTES = 700  # what a row holds beside long text and blobs, all in all
_LONG = frozenset({"chunks", "content", "finding", "run", "tool_call"})
_OPENED_FIELDS = list(Opened.__dataclass_fields__)
_of_opened, _ASKED = attrgetter(*_OPENED_FIELDS), _OPENED_FIELDS.index("asked")


class Writer:
    """Writes `path`; None: a database in memory, which others open as `place` while this one lives.

    `start` before the first record, `stop` at the end; between them every method returns at once. `keep_s`, `keep_bytes`:
    retention, None for without limit. `now`: the wall clock, s since the epoch.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        excerpts: bool = True,
        content: bool = False,
        redact: Redactor | None = None,
        keep_s: float | None = None,
        keep_bytes: int | None = None,
        queue_bytes: int = QUEUE_BYTES,
        linger_s: float = LINGER_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.place: Place = in_memory() if path is None else path
        self._keeping = Keeping(excerpts, content, redact=redact or Redactor())
        self._retention = Retention(keep_s, keep_bytes)
        self._queue_bytes = queue_bytes
        self._linger_s = linger_s
        self._now = now
        self._wake = threading.Condition()
        self._queue: deque[tuple[int, list[Row]]] = deque()
        self._queued_bytes = 0
        self._stopping = False
        self._hurry = False
        self._taken = 0  # items taken from the queue, and those of them that are written or refused
        self._settled = 0
        self._open: OrderedDict[str, Opened] = OrderedDict()
        self._stored_open: set[str] = set()
        self._told: dict[str, tuple[str, int | None, int | None, int | None]] = {}
        self._details: dict[str, tuple[str, int | None, int | None, int | None]] = {}  # of them not stored yet
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._failure: Failure | None = None
        self._failing_since: float | None = None
        self._size_bytes: int | None = None
        self._more = False  # retention has more to do
        self._tend_at = 0.0
        self.written = 0  # exchanges
        self.rows = 0
        self.commits = 0
        self.dropped = 0
        self.rejected = 0
        self.rejection: str | None = None
        self.recoveries = 0
        self.latest_failure: Failure | None = None  # how the latest trouble began, also when it is over
        self.commit_s = 0.0  # the last one's duration

    # --- what the loop calls ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def opened(self, opened: Opened) -> None:
        """Held until it closes: a finding made before must be able to name it."""
        values = list(_of_opened(opened))
        values[_ASKED] = None  # its text is not ours to hold
        self._open[opened.id] = Opened(*values)
        if len(self._open) > _OPEN:
            self._stored_open.discard(self._open.popitem(last=False)[0])

    progress = unheard  # nothing is stored of a stream in flight

    def found(self, finding: Finding) -> None:
        """Stored at once: if the process is killed before the exchange ends, the finding is known, and whose it was."""
        opened = self._open.get(finding.exchange_id or "")
        if finding.exchange_id is not None and opened is None:
            return  # it comes with its record
        if not finding.id:
            finding.id = new_id(round(self._now() * 1e9))
        rows: list[Row] = []
        if opened is not None and opened.id not in self._stored_open:
            rows += started_rows(opened)
            self._stored_open.add(opened.id)
        model, client = (None, None) if opened is None else (opened.model, opened.client)
        rows.append(finding_row(finding, model, client, iso(round(self._now() * 1e9)), self._keeping))
        self._put(rows)

    def closed(self, record: Record) -> None:
        self._open.pop(record.id, None)
        self._stored_open.discard(record.id)
        for finding in record.findings:
            finding.id = finding.id or new_id(round(self._now() * 1e9))
        rows = exchange_rows(record, _ended(record), self._keeping)
        if record.model is not None and (details := self._details.pop(record.model.removesuffix(":latest"), None)) is not None:
            rows.append(Row("model_details", (*details, record.model)))
        self._put(rows)

    def models(self, models: Iterable[ResidentModel]) -> None:
        """What `/api/ps` says: stored with the next exchange that names the model, when it is news."""
        for model in models:
            name = model.name.removesuffix(":latest")
            details = (model.digest, model.size, model.size_vram, model.context_window)
            if self._told.get(name) != details and len(self._told) < _MODELS:
                self._told[name] = self._details[name] = details

    def run(self, run: Mapping[str, Any]) -> None:
        """A run of a probe, as it stands now; written over what was known of it. Keys: the columns of `runs`."""
        self._put([run_row(run)])

    def _put(self, rows: list[Row]) -> None:
        cost = _ROW_BYTES * len(rows)
        for statement, values in rows:
            if statement in _LONG:
                cost += sum([len(v) for v in values if v.__class__ is bytes or v.__class__ is str])
        with self._wake:
            if self._queued_bytes + cost > self._queue_bytes:
                self.dropped += 1
                return
            self._queue.append((cost, rows))
            self._queued_bytes += cost
            if len(self._queue) == 1:
                self._wake.notify_all()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until what is queued now is written; False when that takes longer."""
        with self._wake:
            target = self._taken + len(self._queue)
            self._hurry = True
            self._wake.notify_all()
            return self._wake.wait_for(lambda: self._settled >= target, timeout_s)

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Write what is queued and end; False when the disk did not let it."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive() and not self.pending

    @property
    def pending(self) -> int:
        """Exchanges and findings that were given and are not written yet."""
        return self._taken - self._settled + len(self._queue)

    def status(self) -> dict[str, Any]:
        """What the console shows. `state` is "ok" or why nothing can be written; `message` and `remedy` say it in words."""
        failure, since = self._failure, self._failing_since
        return {
            "path": str(self.place) if isinstance(self.place, Path) else None,
            "state": "ok" if failure is None else failure.state,
            "message": None if failure is None else failure.message,
            "remedy": None if failure is None else failure.remedy,
            "failing_s": None if since is None else round(time.monotonic() - since, 3),
            "recoveries": self.recoveries,
            "written": self.written,
            "rows": self.rows,
            "commits": self.commits,
            "commit_s": round(self.commit_s, 6),
            "queued": len(self._queue),
            "queued_bytes": self._queued_bytes,
            "dropped": self.dropped,
            "rejected": self.rejected,
            "rejection": self.rejection,
            "deleted": self._retention.deleted,
            "given_back_bytes": self._retention.given_back_bytes,
            "size_bytes": self._size_bytes,
        }

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        batch: list[list[Row]] = []
        pause_s = _PAUSE_S[0]
        while True:
            if not batch:
                batch = self._take()
            if batch and self._attempt(self._write, batch):
                self._settle(len(batch))
                batch = []
            more = False
            if not batch and (self._failure is not None or self._more or time.monotonic() >= self._tend_at):
                more = self._attempt(self._tend, None) and self._more
            if self._failure is None:
                pause_s = _PAUSE_S[0]
            with self._wake:
                if self._stopping and (self._failure is not None or not (self._queue or batch)):
                    break
                if self._failure is not None:
                    self._wake.wait_for(lambda: self._stopping, pause_s)
                    pause_s = min(_PAUSE_S[1], pause_s * 2)
                elif not more:
                    self._wake.wait_for(lambda: bool(self._queue) or self._stopping, _TICK_S)
        self._close()

    def _take(self) -> list[list[Row]]:
        """The next batch: what is there after a short wait for company."""
        with self._wake:
            if not self._queue:
                return []
            full = self._queue_bytes // 2
            self._wake.wait_for(lambda: self._stopping or self._hurry or self._queued_bytes > full, self._linger_s)
            batch: list[list[Row]] = []
            rows = 0
            while self._queue and rows < BATCH_ROWS:
                cost, item = self._queue.popleft()
                self._queued_bytes -= cost
                rows += len(item)
                batch.append(item)
            self._taken += len(batch)
            if not self._queue:
                self._hurry = False
            return batch

    def _settle(self, n: int) -> None:
        with self._wake:
            self._settled += n
            self._wake.notify_all()

    def _attempt(self, work: Callable[[Any], None], what: Any) -> bool:
        """Do `work` on the database; a failure is told, kept in mind, and no exception."""
        try:
            work(what)
        except Exception as exc:
            failure = failure_of(exc)
            if self._failure is None:
                self._failing_since = time.monotonic()
                self.latest_failure = failure
            self._failure = failure
            if failure.lasting:
                self._close()
            return False
        if self._failure is not None:
            self._failure, self._failing_since = None, None
            self.recoveries += 1
        return True

    def _connected(self) -> sqlite3.Connection:
        """The connection; a new one when there is none, or when the file under it was moved or deleted."""
        if self._connection is not None:
            if self._inode == self._there():
                return self._connection
            self._close()
        self._connection, _ = open_for_writing(self.place)
        self._inode = self._there()
        return self._connection

    def _there(self) -> tuple[int, int] | None:
        if not isinstance(self.place, Path):
            return None
        try:
            there = self.place.stat()
        except FileNotFoundError:
            return None
        return there.st_dev, there.st_ino

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _write(self, batch: list[list[Row]]) -> None:
        connection = self._connected()
        began = time.perf_counter()
        try:
            self._transaction(connection, batch)
        except _REFUSALS as exc:
            if len(batch) == 1:
                self.rejected += 1
                self.rejection = f"{type(exc).__name__}: {exc}"[:200]
            else:
                for item in batch:
                    self._write([item])
                return
        self.commit_s = time.perf_counter() - began

    def _transaction(self, connection: sqlite3.Connection, batch: list[list[Row]]) -> None:
        by_statement: dict[str, list[tuple[Any, ...]]] = {}
        for item in batch:
            for statement, values in item:
                by_statement.setdefault(statement, []).append(values)
        connection.execute("begin immediate")
        try:
            for name in ORDER:
                if rows := by_statement.get(name):
                    connection.executemany(STATEMENTS[name], rows)
            connection.execute("commit")
        except BaseException:
            if connection.in_transaction:
                connection.execute("rollback")
            raise
        self.commits += 1
        self.rows += sum(map(len, by_statement.values()))
        self.written += len(by_statement.get("exchange", ()))

    def _tend(self, _: None) -> None:
        """Between batches: retention, and how large the file is."""
        connection = self._connected()
        self._more = self._retention.step(connection, self._now())
        self._size_bytes = sizes(connection).file
        self._tend_at = time.monotonic() + _TICK_S


_REFUSALS = (
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.DataError,
    sqlite3.ProgrammingError,
    OverflowError,
    TypeError,
    ValueError,
)
"""What says that a row is at fault, not the disk."""


def _ended(record: Record) -> str:
    """When an exchange ended: its wall clock start and its measured length (the wall clock may have been set since)."""
    return iso(unix_ns_of_iso(record.started_at) + round(record.total_s * 1e9))
