"""A Record → the rows that are stored. Pure; done by whoever closes the exchange, so that the queue holds no request's text.

Rules that hold here:

- A statement is named; the writer knows the names' order (parents before children). Parameters are tuples of what SQLite takes.
- Text from the wire may hold lone surrogates, which SQLite refuses: they become U+FFFD. Integers beyond 64 bits become NULL.
- Content is stored only when asked for, redacted first, then cut. Excerpts are the only text of a user's in a finding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

from qm_proxy.findings import EXCERPT_CHARACTERS, Finding
from qm_proxy.record import Opened, Placed, Record
from qm_proxy.store.redact import Redactor

__all__ = ["ORDER", "STATEMENTS", "Keeping", "Row", "exchange_rows", "finding_row", "run_row", "started_rows"]

Value: TypeAlias = str | int | float | bytes | None


class Row(NamedTuple):
    statement: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Keeping:
    """What may be kept. `content_bytes` caps each of request, answer and thinking."""

    excerpts: bool = True
    content: bool = False
    content_bytes: int = 256 * 1024
    redact: Redactor = field(default_factory=Redactor)


def _fields(names: str) -> list[str]:
    return names.split()


_EXCHANGE_FIELDS = _fields(
    "id session_id started_at method route dialect operation model response_model streamed http_status ending "
    "session_source turn client user_agent origin ttft_s ttft_content_s queue_s load_s prefill_s decode_s client_wait_s "
    "unexplained_s total_s slow_because itl_n itl_mean_s itl_p50_s itl_p90_s itl_p99_s itl_max_s tokens_per_s rate_source "
    "input_tokens output_tokens cached_tokens withheld_tokens chunks thinking_chunks context_window_tokens finish_reason "
    "bytes_in bytes_out written_lag_s proxy_overhead_s trace_id error undecoded doubts"
)
_STARTED_FIELDS = _fields(
    "id session_id started_at method route dialect operation model streamed session_source turn client user_agent origin"
)
_TURN_FIELDS = _fields(
    "exchange_id session_id trajectory turn relation parent_trajectory previous_exchange_id new_messages wait_s waited_for "
    "model_s prompt_characters previous_characters common_characters previous_messages common_messages broken_at "
    "broken_message broken_role broken_character lost_tokens lost_s tip expected"
)
_SESSION_SUMS = _fields(
    "exchanges retries forks compactions subagents side_calls tool_calls tool_results tool_errors turnaround_s input_tokens "
    "output_tokens model_s tools_s user_s prompt_characters reused_characters prefix_breaks lost_s findings violations"
)
_SESSION_FIELDS = [
    *_fields("id client user_agent origin source client_session started_at last_at turns trajectories"),
    *_SESSION_SUMS,
]
_FINDING_FIELDS = _fields(
    "id exchange_id session_id found_at kind severity model client t_s chunk summary evidence tokens_wasted"
)
_RUN_FIELDS = _fields("id kind model state step steps message summary started_at ended_at elapsed_s settings result report")
_RECORD_FIELDS = [name for name in _EXCHANGE_FIELDS if name in Record.__dataclass_fields__]
_PLACED_FIELDS = [name for name in _TURN_FIELDS if name in Placed.__dataclass_fields__]
_of_record, _of_placed = attrgetter(*_RECORD_FIELDS), attrgetter(*_PLACED_FIELDS)
_NULLABLE_SUMS = ("input_tokens", "output_tokens", "lost_s")


def _insert(
    table: str, fields: Iterable[str], conflict: str = "", *, machine: bool = False, instead: Mapping[str, str] | None = None
) -> str:
    """`instead`: for a field, the expression that takes its place; one `?` each."""
    names = list(fields)
    values = [(instead or {}).get(name, "?") for name in names]
    if machine:
        names.append("machine_id")
        values.append("(select value from meta where key = 'machine')")
    return f"insert into {table} ({', '.join(names)}) values ({', '.join(values)}) {conflict}".strip()


def _overwrite(key: str, fields: Iterable[str]) -> str:
    return f"on conflict({key}) do update set " + ", ".join(f"{f} = excluded.{f}" for f in fields if f not in key.split(", "))


def _plus(name: str) -> str:
    if name in _NULLABLE_SUMS:
        return f"{name} = coalesce({name} + excluded.{name}, {name}, excluded.{name})"
    return f"{name} = {name} + excluded.{name}"


STATEMENTS: dict[str, str] = {
    "model": _insert(
        "models",
        ("name", "first_seen", "last_seen"),
        "on conflict(name) do update set last_seen = max(last_seen, excluded.last_seen)",
    ),
    "model_details": "update models set digest = ?, size_bytes = ?, size_vram_bytes = ?, context_window_tokens = ? "
    "where name = ?",
    "session": _insert(
        "sessions",
        _SESSION_FIELDS,
        "on conflict(id) do update set client_session = coalesce(client_session, excluded.client_session), "
        "started_at = min(started_at, excluded.started_at), last_at = max(last_at, excluded.last_at), "
        "turns = max(turns, excluded.turns), "
        "trajectories = max(trajectories, excluded.trajectories), " + ", ".join(_plus(name) for name in _SESSION_SUMS),
        machine=True,
    ),
    "session_model": _insert(
        "session_models",
        ("session_id", "model", "exchanges"),
        "on conflict(session_id, model) do update set exchanges = exchanges + excluded.exchanges",
    ),
    "started": _insert("exchanges", _STARTED_FIELDS, "on conflict(id) do nothing", machine=True),
    "exchange": _insert("exchanges", _EXCHANGE_FIELDS, _overwrite("id", _EXCHANGE_FIELDS), machine=True),
    "turn": _insert("turns", _TURN_FIELDS, _overwrite("exchange_id", _TURN_FIELDS)),
    "chunks": "insert or replace into chunks values (?, ?, ?, ?, ?, ?, ?, ?)",
    "tool_call": "insert or replace into tool_calls "
    "(exchange_id, position, call_id, name, model, t_s, argument_bytes, valid, problems) values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    "turnaround": "update tool_calls set turnaround_s = ?, result_exchange_id = ?, result_is_error = ? "
    "where exchange_id = ? and position = ?",
    "content": "insert or replace into contents values (?, ?, ?, ?, ?, ?, ?, ?)",
    # a finding about no exchange may name a session of which nothing is stored yet
    "finding": _insert(
        "findings",
        _FINDING_FIELDS,
        _overwrite("id", _FINDING_FIELDS),
        machine=True,
        instead={"session_id": "(select id from sessions where id = ?)"},
    ),
    "run": _insert("runs", _RUN_FIELDS, _overwrite("id", _RUN_FIELDS), machine=True),
}
"""Every write there is, by name."""

ORDER = tuple(STATEMENTS)
"""The order in which a batch's statements are executed."""


def exchange_rows(record: Record, ended_at: str, keeping: Keeping) -> list[Row]:
    """Everything one closed exchange leaves. `ended_at`: UTC, ISO; the wall clock at its end."""
    opened = record.opened
    placed = None if opened is None else opened.placed
    rows: list[Row] = []
    if record.model is not None:
        rows.append(Row("model", (_text(record.model), record.started_at, ended_at)))
    if placed is not None:
        rows += _session_rows(record, placed, ended_at)
    rows.append(Row("exchange", _exchange(record, placed)))
    if placed is not None:
        rows.append(Row("turn", _turn(record.id, placed)))
        rows += [Row("turnaround", (t.seconds, record.id, _flag(t.is_error), t.exchange_id, t.index)) for t in placed.results]
    if record.series is not None and record.series.n:
        s = record.series
        kinds = json.dumps(s.kinds, separators=(",", ":"))
        suspended = json.dumps(s.suspended, separators=(",", ":")) if s.suspended else None
        rows.append(Row("chunks", (record.id, s.n, s.start_unix_ns, s.resolution_ns, s.arrival, s.written, kinds, suspended)))
    model = None if record.model is None else _text(record.model)
    for i, call in enumerate(record.tool_calls):
        problems = json.dumps([_text(problem) for problem in call.problems]) if call.problems else None
        named = (record.id, i, _text(call.id), _text(call.name), model)
        rows.append(Row("tool_call", (*named, call.t_s, call.argument_bytes, _flag(call.valid), problems)))
    for finding in record.findings:
        rows.append(finding_row(finding, record.model, record.client, ended_at, keeping))
    if keeping.content:
        rows += _content(record, keeping)
    return rows


def started_rows(opened: Opened) -> list[Row]:
    """An exchange that has not ended, stored only because a finding must name it. `ending` stays NULL."""
    rows: list[Row] = []
    if opened.model is not None:
        rows.append(Row("model", (_text(opened.model), opened.started_at, opened.started_at)))
    placed = opened.placed
    if placed is not None:
        names = dict.fromkeys(_SESSION_SUMS, 0) | {"input_tokens": None, "output_tokens": None, "lost_s": None}
        rows.append(Row("session", _session(opened, placed, opened.started_at, names)))
    values: dict[str, Any] = {
        "id": opened.id, "session_id": placed and placed.session_id,
        "started_at": opened.started_at, "method": opened.method, "route": opened.route, "dialect": opened.dialect,
        "operation": opened.operation, "model": opened.model, "streamed": opened.streamed,
        "session_source": placed and placed.source, "turn": placed and placed.turn, "client": opened.client,
        "user_agent": opened.user_agent, "origin": opened.origin,
    }  # fmt: skip
    rows.append(Row("started", _values(values, _STARTED_FIELDS)))
    return rows


def finding_row(finding: Finding, model: str | None, client: str | None, found_at: str, keeping: Keeping) -> Row:
    """A finding that is stored before its exchange is over, or that belongs to none."""
    evidence = {key: value for key, value in finding.evidence.items() if key != "excerpt" or keeping.excerpts}
    if isinstance(excerpt := evidence.get("excerpt"), str):
        evidence["excerpt"] = excerpt[:EXCERPT_CHARACTERS]
    values: dict[str, Any] = {name: getattr(finding, name, None) for name in _FINDING_FIELDS}
    values |= {"found_at": found_at, "model": model, "client": client}
    values["evidence"] = _json(evidence)
    return Row("finding", _values(values, _FINDING_FIELDS))


def run_row(run: Mapping[str, Any]) -> Row:
    """A run of a probe; `settings` and `result` may be anything JSON can hold."""
    values = {name: run.get(name) for name in _RUN_FIELDS}
    for name in ("settings", "result"):
        if values[name] is not None and not isinstance(values[name], str):
            values[name] = _json(values[name])
    return Row("run", _values(values, _RUN_FIELDS))


# --- one table each ---------------------------------------------------------------------------------------------------


def _exchange(record: Record, placed: Placed | None) -> tuple[Value, ...]:
    itl = record.itl
    values: dict[str, Any] = dict(zip(_RECORD_FIELDS, _of_record(record), strict=True))
    values["session_id"] = placed.session_id if placed is not None else None
    values["doubts"] = json.dumps(record.doubts) if record.doubts else None
    if itl is not None:
        values |= {
            "itl_n": itl.n, "itl_mean_s": itl.mean_s, "itl_p50_s": itl.p50_s, "itl_p90_s": itl.p90_s, "itl_p99_s": itl.p99_s,
            "itl_max_s": itl.max_s,
        }  # fmt: skip
    return _values(values, _EXCHANGE_FIELDS)


def _turn(exchange_id: str, placed: Placed) -> tuple[Value, ...]:
    prefix = placed.prefix
    values: dict[str, Any] = dict(zip(_PLACED_FIELDS, _of_placed(placed), strict=True))
    values["exchange_id"] = exchange_id
    if prefix is not None:
        values |= {
            "prompt_characters": prefix.characters, "previous_characters": prefix.previous_characters,
            "common_characters": prefix.common_characters, "previous_messages": prefix.previous_messages,
            "common_messages": prefix.common_messages, "broken_at": prefix.broken_at, "broken_message": prefix.message,
            "broken_role": prefix.role, "broken_character": prefix.character, "lost_tokens": prefix.lost_tokens,
            "lost_s": prefix.lost_s,
        }  # fmt: skip
    return _values(values, _TURN_FIELDS)


def _session_rows(record: Record, placed: Placed, ended_at: str) -> list[Row]:
    opened, prefix = record.opened, placed.prefix
    assert opened is not None
    goes_on = prefix is not None and placed.relation in ("next", "rewrite", "retry")
    sums: dict[str, Any] = {
        "exchanges": 1,
        "retries": placed.relation == "retry",
        "forks": placed.relation == "fork",
        "compactions": placed.relation == "compaction",
        "subagents": placed.relation == "subagent",
        "side_calls": placed.relation == "side",
        "tool_calls": len(record.tool_calls),
        "tool_results": len(placed.results),
        "tool_errors": sum(bool(result.is_error) for result in placed.results),
        "turnaround_s": sum(result.seconds for result in placed.results),
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "model_s": placed.model_s or 0.0,
        "tools_s": (placed.wait_s or 0.0) if placed.waited_for == "tools" else 0.0,
        "user_s": (placed.wait_s or 0.0) if placed.waited_for == "user" else 0.0,
        "prompt_characters": prefix.characters if prefix is not None and goes_on else 0,
        "reused_characters": prefix.common_characters if prefix is not None and goes_on else 0,
        "prefix_breaks": int(goes_on and prefix is not None and prefix.broken_at is not None),
        "lost_s": prefix.lost_s if prefix is not None and goes_on else None,
        "findings": len(record.findings),
        "violations": sum(finding.severity == "violation" for finding in record.findings),
    }
    rows = [Row("session", _session(opened, placed, ended_at, sums))]
    if record.model is not None:
        rows.append(Row("session_model", (placed.session_id, _text(record.model), 1)))
    return rows


def _session(opened: Opened, placed: Placed, last_at: str, sums: Mapping[str, Any]) -> tuple[Value, ...]:
    values: dict[str, Any] = {
        "id": placed.session_id, "client": opened.client, "user_agent": opened.user_agent,
        "origin": opened.origin, "source": placed.source, "client_session": placed.client_session,
        "started_at": opened.started_at, "last_at": last_at, "turns": placed.turn if placed.trajectory == 0 else 0,
        "trajectories": placed.trajectory + 1,
    }  # fmt: skip
    return _values(values | dict(sums), _SESSION_FIELDS)


def _content(record: Record, keeping: Keeping) -> list[Row]:
    kept: list[str | None] = []
    whole_pieces: list[bytes | None] = []
    redactions = cut = 0
    texts = (record.captured_request, record.captured_answer, record.captured_thinking)
    for text, pieces in zip(texts, (None, record.answer_pieces, record.thinking_pieces), strict=True):
        if text is None:
            kept.append(None)
            whole_pieces.append(None)
            continue
        # what lies far beyond the cap is not searched; a secret that the cap would cut in two is, and goes as a whole
        asked = _text(text[: keeping.content_bytes + 16384])
        plain, taken = keeping.redact(asked)
        whole_pieces.append(pieces if plain == asked else None)  # behind what was taken out, nothing is where it was
        whole = plain.encode()
        kept.append(whole[: keeping.content_bytes].decode("utf-8", "ignore"))
        cut += max(0, len(whole) - keeping.content_bytes) + max(0, len(text) - keeping.content_bytes - 16384)
        redactions += taken
    values = (record.id, *kept, redactions, cut, *whole_pieces[1:])
    return [Row("content", values)] if any(text is not None for text in kept) else []


# --- values -----------------------------------------------------------------------------------------------------------


def _values(values: Mapping[str, Any], fields: list[str]) -> tuple[Value, ...]:
    # a hundred values an exchange: to look the class up once is half the cost of asking for each class in turn
    clean = _CLEAN
    return tuple([None if (v := values.get(name)) is None else clean.get(v.__class__, str)(v) for name in fields])


def _json(value: Any) -> str:
    """Strict JSON: what is no number there (NaN, infinity) is null."""
    try:
        return json.dumps(value, separators=(",", ":"), default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), separators=(",", ":"), default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _integer(value: int) -> int | None:
    return value if -(1 << 63) <= value < 1 << 63 else None


def _text(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _flag(value: bool | None) -> int | None:
    return None if value is None else int(value)


_CLEAN: dict[type, Callable[[Any], Value]] = {str: _text, float: _number, int: _integer, bool: int, bytes: bytes}
"""What SQLite takes, by class; anything else is stored as its text."""
