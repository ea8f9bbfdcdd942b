"""rows.jsonl: every answer of a run as it came, appended and flushed at once; what `resume` answers from.

One JSON object a line: {"key", "asked": fingerprint, "body": {…}, "at", "times": {…}, "status", "ending", "events": […]}.
Event times are ns since the request was written. A last line cut short by a crash is ignored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, TextIO

from probes.ask import Answer, Ask, fingerprint
from qm_proxy import events as nouns
from qm_proxy.errors import StoreError
from qm_proxy.events import Event

__all__ = ["Rows", "decode", "encode"]

_LONGEST_BODY = 2000
"""A request body is kept for reading up to so many characters; its fingerprint always covers all of it."""


def encode(ask: Ask, answer: Answer) -> dict[str, Any]:
    """An answer as JSON values; nothing that `decode` needs is lost."""
    body = json.dumps(ask.body, separators=(",", ":")) if ask.body is not None else None
    return {
        "key": answer.key,
        "asked": fingerprint(ask),
        "path": ask.path,
        "body": body if body is None or len(body) <= _LONGEST_BODY else body[:_LONGEST_BODY] + "…",
        "at": answer.at_unix_s,
        "total_ns": answer.ended_ns - answer.started_ns,
        "started_ns": answer.started_ns,
        "connect_ns": answer.connect_ns,
        "head_ns": None if answer.head_ns is None else answer.head_ns - answer.started_ns,
        "status": answer.status,
        "ending": answer.ending,
        "error": answer.error,
        "silent": answer.silent,
        "document": answer.document,
        "events": [_event(event, answer.started_ns) for event in answer.events],
        "host": [_event(event, answer.started_ns) for event in answer.host],
        "pauses": [[start - answer.started_ns, end - answer.started_ns] for start, end in answer.pauses],
    }


def decode(row: dict[str, Any]) -> Answer:
    """The answer that `encode` wrote, marked as replayed."""
    start = int(row["started_ns"])
    return Answer(
        key=row["key"],
        started_ns=start,
        ended_ns=start + int(row["total_ns"]),
        at_unix_s=row["at"],
        connect_ns=row["connect_ns"],
        head_ns=None if row["head_ns"] is None else start + row["head_ns"],
        status=row["status"],
        ending=row["ending"],
        events=[_revive(event, start) for event in row["events"]],
        document=row["document"],
        error=row["error"],
        silent=row.get("silent", False),
        host=[sample for event in row["host"] if isinstance(sample := _revive(event, start), nouns.HostSample)],
        pauses=[(start + begin, start + end) for begin, end in row.get("pauses", ())],
        replayed=True,
    )


def _event(event: Event, start_ns: int) -> list[Any]:
    values = [getattr(event, field.name) for field in dataclasses.fields(event)]
    return [type(event).__name__, values[0] - start_ns, *values[1:]]


def _revive(stored: list[Any], start_ns: int) -> Event:
    name, t_ns, *rest = stored
    made: Event = getattr(nouns, name)(start_ns + t_ns, *rest)
    return made


class Rows:
    """The file of one run, or nothing but memory when `path` is `None`."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: TextIO | None = None
        self._known: dict[str, dict[str, Any]] = {}
        self.written = 0
        self._broken = False

    def load(self) -> int:
        """Read what an earlier run left; answers how many rows can be replayed."""
        if self.path is None or not self.path.exists():
            return 0
        kept = 0
        with self.path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                kept += len(line)
                self._known[row["key"]] = row
        with self.path.open("r+b") as file:  # a row cut short would glue itself to the next one
            file.truncate(kept)
        return len(self._known)

    def recall(self, ask: Ask) -> Answer | None:
        """The recorded answer to exactly this question."""
        row = self._known.get(ask.key)
        return decode(row) if row is not None and row["asked"] == fingerprint(ask) else None

    def add(self, ask: Ask, answer: Answer) -> None:
        """Append and flush: after this call the row survives the process. StoreError once when the disk says no; after that
        nothing more is written, so that the rows on disk are an unbroken row."""
        if self.path is not None and not self._broken:
            try:
                if self._file is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = self.path.open("a", encoding="utf-8")
                self._file.write(json.dumps(encode(ask, answer), separators=(",", ":"), ensure_ascii=False) + "\n")
                self._file.flush()
            except OSError as cause:
                self._broken = True
                self.close()
                raise StoreError(
                    f"{self.path} cannot be written: {cause.strerror or cause}.",
                    remedy="Make room and give the same command again: it goes on from the rows that are there.",
                ) from cause
        self.written += 1

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be flushed was told of when it was added
                self._file.close()
            self._file = None
