"""What a detector concluded. Kinds, severities and field names are CONTRACT's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["EXCERPT_CHARACTERS", "Finding", "Kind", "Severity"]

EXCERPT_CHARACTERS = 80
"""The longest piece of a user's text that a finding may keep. Local only: never exported."""

Severity = Literal["info", "suspect", "violation"]
Kind = Literal[
    "loop.token",
    "loop.trajectory",
    "tool.unknown",
    "tool.bad_json",
    "tool.schema",
    "tool.coercible",
    "tool.leaked",
    "tool.not_offered",
    "tool.choice",
    "tool.swallowed",
    "tool.parser_error",
    "tool.bad_schema",
    "claim.unsupported",
    "stall",
    "context.truncated",
    "model.reload",
    "model.hung",
    "cache.broken",
    "upstream.aborted",
    "stream.silent",
]


@dataclass(slots=True)
class Finding:
    """One detection. A detector fills what it knows; the exchange adds ids and the time relative to its start.

    `evidence` holds JSON values only. Text of a user's goes into `evidence["excerpt"]` (≤ 80 characters) and nowhere else.
    """

    kind: Kind
    severity: Severity
    summary: str  # one plain sentence
    t_ns: int  # monotonic, of the deciding event
    evidence: dict[str, object] = field(default_factory=dict)
    chunk: int | None = None  # index of the deciding chunk in its exchange
    tokens_wasted: int | None = None
    id: str = ""
    exchange_id: str | None = None
    session_id: str | None = None
    t_s: float | None = None  # since the exchange's first byte
