"""What every table and column means, and the page that says so: `python -m qm_proxy.store.schema` prints SCHEMA.md.

The page is made from a real database: a column without a meaning here, or a meaning without its column, raises `StoreError`, and
a test compares the page with the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from inspect import signature

from qm_proxy.errors import StoreError
from qm_proxy.store.database import in_memory, open_for_writing
from qm_proxy.store.functions import FUNCTIONS
from qm_proxy.store.views import INDEXES, VIEWS

__all__ = ["TABLES", "page"]

_ID = "UUIDv7: sorts by time, unique on every machine"
_MACHINE = "the machine it was observed on"

TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "exchanges": (
        "One request and its answer. Seconds and counts; NULL is unknown, never 0.",
        {
            "id": _ID,
            "machine_id": _MACHINE,
            "session_id": "the session it belongs to; NULL: none (not a generation, or its request could not be read)",
            "started_at": "first byte of the request, UTC",
            "method": "HTTP method",
            "route": "path, without query",
            "dialect": "ollama, openai-chat, openai-completions, openai-responses, anthropic, other",
            "operation": "chat, text_completion, embeddings; NULL: asks no model",
            "model": "as the client named it",
            "response_model": "as the answer names it",
            "streamed": "1: the answer came in pieces",
            "http_status": "of the answer",
            "ending": "complete, client_disconnect, upstream_error, upstream_truncated, upstream_unreachable, guard_cut, "
            "shutdown; NULL: in flight (stored early because something was found)",
            "session_source": "how the session was known: header, metadata, responses, prefix, new",
            "turn": "1, 2, … within its trajectory",
            "client": "who asked: claude-code, opencode, … unknown",
            "user_agent": "as sent",
            "origin": "client, or probe for our own",
            "ttft_s": "first byte of the request → first chunk",
            "ttft_content_s": "first byte of the request → first chunk that is not thinking",
            "queue_s": "waited for a slot: what of the wait the server's own durations leave over",
            "load_s": "the server loaded the model (native dialect)",
            "prefill_s": "the server evaluated the uncached part of the prompt (native dialect)",
            "decode_s": "the server generated (native dialect)",
            "client_wait_s": "the client did not take what there was",
            "unexplained_s": "what is left of the total",
            "total_s": "first byte of the request → last byte of the answer taken",
            "slow_because": "one word for where the time went",
            "itl_n": "inter-token gaps: their number",
            "itl_mean_s": "their mean",
            "itl_p50_s": "their median",
            "itl_p90_s": "90th percentile",
            "itl_p99_s": "99th percentile",
            "itl_max_s": "the longest",
            "tokens_per_s": "decode speed",
            "rate_source": "server: its own count and duration; client: (n − 1) / span of the chunks",
            "input_tokens": "prompt tokens as the server counts them, cached ones included",
            "output_tokens": "generated tokens as the server counts them",
            "cached_tokens": "of the prompt, where the server says so",
            "withheld_tokens": "generated tokens that came in no chunk of their own",
            "chunks": "pieces with payload",
            "thinking_chunks": "of them thinking",
            "context_window_tokens": "of the loaded model",
            "finish_reason": "the wire's own word",
            "bytes_in": "from the client",
            "bytes_out": "to the client",
            "written_lag_s": "longest time a chunk waited for the client to take it",
            "proxy_overhead_s": "median time from read to written",
            "trace_id": "of the client's traceparent",
            "error": "the server's message, ≤ 200 characters",
            "undecoded": "why the body could not be read",
            "doubts": "JSON array: what in these numbers disagrees, in words",
        },
    ),
    "turns": (
        "Where an exchange stands in its session, and what its prompt repeats of the one before (characters of the request).",
        {
            "exchange_id": "the exchange",
            "session_id": "its session",
            "trajectory": "0: the session's main line; forks, sub-agents and side calls count on",
            "turn": "1, 2, … within the trajectory; a retry keeps its number",
            "relation": "start, next, retry, rewrite, fork, compaction, subagent, side",
            "parent_trajectory": "the line it branched from",
            "previous_exchange_id": "the exchange it goes on from (which retention may have deleted)",
            "new_messages": "messages that the previous turn did not have",
            "wait_s": "since the session's last answer ended; NULL: something was in flight",
            "waited_for": "tools: the request brings results; user: it brings a user's words",
            "model_s": "what this exchange adds to the time in which the session waited for the model",
            "prompt_characters": "of this prompt",
            "previous_characters": "of the one before",
            "common_characters": "what this prompt repeats of it from its start",
            "previous_messages": "messages of the one before",
            "common_messages": "of them repeated unchanged",
            "broken_at": "tools or message: where the repetition ends early; NULL: nowhere",
            "broken_message": "index of the first message that differs",
            "broken_role": "its role",
            "broken_character": "offset of the first difference in it",
            "lost_tokens": "estimated: prompt tokens evaluated again",
            "lost_s": "estimated: prefill time spent on them",
            "tip": "keyed hash of the history as sent: how a restart finds the session again",
            "expected": "the same with the answer",
        },
    ),
    "sessions": (
        "A run of an agent, a chat: exchanges that belong together. Sums stay when retention deletes the exchanges of a session "
        "that goes on.",
        {
            "id": _ID,
            "machine_id": _MACHINE,
            "client": "who asks",
            "user_agent": "as sent by its first exchange",
            "origin": "client or probe",
            "source": "how it was first known: header, metadata, responses, prefix, new",
            "client_session": "the client's own id",
            "started_at": "first exchange",
            "last_at": "end of the latest exchange",
            "exchanges": "all of them",
            "turns": "of the main line",
            "trajectories": "lines: the main one, forks, sub-agents, side calls",
            "retries": "exchanges that asked the same again",
            "forks": "branches from an earlier point",
            "compactions": "times the history was shortened or summarised",
            "subagents": "other agents that it started",
            "side_calls": "titles, summaries, topic checks",
            "tool_calls": "made by the model",
            "tool_results": "brought back by the client",
            "tool_errors": "of them errors, as the client says",
            "turnaround_s": "sum of the times from call to result",
            "input_tokens": "sum",
            "output_tokens": "sum",
            "model_s": "wall time in which an exchange was in flight",
            "tools_s": "wall time between exchanges that ended with tool results",
            "user_s": "wall time between exchanges that ended with a user's words",
            "prompt_characters": "sum over turns that go on",
            "reused_characters": "of them repeated from the turn before",
            "prefix_breaks": "turns whose prompt did not repeat the one before to its end",
            "lost_s": "estimated prefill time that these cost",
            "findings": "made in it",
            "violations": "of them of that severity",
        },
    ),
    "session_models": (
        "Which models a session asked.",
        {"session_id": "the session", "model": "the model", "exchanges": "how often"},
    ),
    "tool_calls": (
        "Tool calls as models made them. Arguments are not stored.",
        {
            "exchange_id": "whose answer made it",
            "position": "0, 1, … in that answer",
            "call_id": "as the answer names it; empty: not at all",
            "name": "the tool",
            "model": "the exchange's",
            "t_s": "when the call was complete",
            "argument_bytes": "their length",
            "valid": "1: fits what the request offers; NULL: not judged",
            "problems": "JSON array, in words",
            "turnaround_s": "from the call to the request that brings its result; NULL: none came",
            "result_exchange_id": "that request",
            "result_is_error": "as the client says",
        },
    ),
    "findings": (
        "What detectors concluded.",
        {
            "id": _ID,
            "machine_id": _MACHINE,
            "exchange_id": "where",
            "session_id": "in which session",
            "found_at": "when it was stored, UTC",
            "kind": "loop.token, tool.schema, stall, …",
            "severity": "info, suspect, violation",
            "model": "the exchange's",
            "client": "the exchange's",
            "t_s": "since the exchange's first byte",
            "chunk": "index of the deciding chunk",
            "summary": "one plain sentence",
            "evidence": "JSON object; `excerpt` (≤ 80 characters) is the only text of a user's",
            "tokens_wasted": "what it cost",
        },
    ),
    "chunks": (
        "Every chunk's time, compact. `qm_gaps(arrival)` unpacks it.",
        {
            "exchange_id": "the exchange",
            "n": "chunks",
            "start_unix_ns": "wall clock of the exchange's first byte, taken once",
            "resolution_ns": "to which times are rounded, without accumulation",
            "arrival": "when each chunk arrived: see qm_arrivals, qm_gaps",
            "written": "how long the client took to take each: see qm_written",
            "kinds": "JSON array of [kind, how many], run-length coded",
            "suspended": "JSON array: indices before which the machine slept",
        },
    ),
    "contents": (
        "Prompts and answers, only with --capture-content: redacted, then cut.",
        {
            "exchange_id": "the exchange",
            "request": "body of the request",
            "answer": "text of the answer",
            "thinking": "thinking of the answer",
            "redactions": "pieces that looked like secrets and were taken out",
            "cut_bytes": "what lay beyond the size cap",
            "answer_pieces": "characters of the answer in each of its chunks: see qm_pieces; NULL: text was redacted, or older",
            "thinking_pieces": "the same of the thinking",
        },
    ),
    "models": (
        "Models that were asked.",
        {
            "name": "as clients name it",
            "digest": "as /api/ps says",
            "size_bytes": "loaded",
            "size_vram_bytes": "of it on the GPU",
            "context_window_tokens": "per slot",
            "first_seen": "UTC",
            "last_seen": "UTC",
        },
    ),
    "runs": (
        "Runs of the probes: inspect, audit, agent, report.",
        {
            "id": _ID,
            "machine_id": _MACHINE,
            "kind": "which probe",
            "model": "the model probed",
            "state": "queued, running, done, failed, cancelled",
            "step": "steps done",
            "steps": "steps in all",
            "message": "what it is doing, or why it failed",
            "summary": "one sentence",
            "started_at": "UTC",
            "ended_at": "UTC",
            "elapsed_s": "so far",
            "settings": "JSON: what it was asked to do",
            "result": "JSON: the published result",
            "report": "Markdown",
        },
    ),
    "machines": (
        "Where rows come from, when databases are merged.",
        {
            "id": "random, made with the database",
            "name": "host name",
            "platform": "system and processor",
            "version": "of qm-proxy that wrote last",
            "first_seen": "UTC",
            "last_seen": "UTC",
        },
    ),
    "meta": ("About the database itself.", {"key": "`machine`, `views`", "value": "this machine's id; which views it has"}),
}
"""Table → what it holds, column → what it means."""


def page() -> str:
    """SCHEMA.md."""
    connection, _ = open_for_writing(in_memory())
    try:
        return "\n".join(_lines(connection)) + "\n"
    finally:
        connection.close()


def _lines(connection: sqlite3.Connection) -> Iterator[str]:
    real = {
        row[0] for row in connection.execute("select name from sqlite_master where type = 'table' and name not like '%sqlite%'")
    }
    if real != set(TABLES):
        raise StoreError(f"Tables without a meaning, or meanings without a table: {sorted(real ^ set(TABLES))}.")
    yield "<!-- made by `python -m qm_proxy.store.schema`; a test compares it with the database -->"
    yield "# The database"
    yield ""
    yield "SQLite, WAL. Times are UTC in ISO 8601, durations seconds, sizes bytes; unknown is NULL. Open it while it is written:"
    yield ""
    yield "    datasette qm.db          sqlite-utils query qm.db 'select * from slowest_exchanges limit 10'"
    yield ""
    yield "`qm-proxy merge all.db desk.db laptop.db` brings several machines' databases together: ids are unique everywhere,"
    yield "each row keeps its `machine_id`, and doing it twice adds nothing. Message hashes (`turns.tip`, `turns.expected`) are"
    yield "keyed by a secret beside each database (`qm.db.key`, 0600): they mean something to their own machine alone. So"
    yield "sessions stay as each machine stitched them, and a conversation that moved from one machine to another is two"
    yield "sessions; where its client sends an id of its own, `sessions.client_session` tells that they are one."
    yield ""
    for table, (purpose, meanings) in TABLES.items():
        columns = connection.execute(f"pragma table_info({table})").fetchall()
        if {column[1] for column in columns} != set(meanings):
            raise StoreError(f"{table}: columns and meanings differ: {sorted({c[1] for c in columns} ^ set(meanings))}.")
        parents = {row[3]: f"{row[2]}.{row[4]}" for row in connection.execute(f"pragma foreign_key_list({table})")}
        yield f"## {table}"
        yield ""
        yield purpose
        yield ""
        yield "| column | type | meaning |"
        yield "|---|---|---|"
        for _, name, kind, required, _, key in columns:
            notes = [f"→ {parents[name]}"] if name in parents else []
            notes += ["key"] if key else ["required"] if required else []
            meaning = "; ".join([meanings[name], *notes])
            yield f"| `{name}` | {kind.lower()} | {meaning} |"
        yield ""
    yield "## Views"
    yield ""
    for view, (purpose, _) in VIEWS.items():
        names = ", ".join(row[1] for row in connection.execute(f"pragma table_info({view})"))
        yield f"- **{view}**: {purpose} ({names})"
    yield ""
    yield "## Functions"
    yield ""
    yield "Datasette and sqlite-utils have them where qm-proxy is installed beside them; others call"
    yield "`qm_proxy.store.functions.register`."
    yield ""
    for function, (n, body) in FUNCTIONS.items():
        arguments = signature(body).parameters if n == 1 else ("arrival", "written")
        yield f"- `{function}({', '.join(arguments)})`: {(body.__doc__ or '').strip()}"
    yield ""
    yield "## Indexes"
    yield ""
    for index, on in INDEXES.items():
        yield f"- `{index}` on {on}"


if __name__ == "__main__":
    print(page(), end="")
