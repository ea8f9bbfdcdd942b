"""Indexes and views: what can be made anew from the tables at any time. Renewed when their text here changes."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b

__all__ = ["INDEXES", "VIEWS", "renew"]

INDEXES: dict[str, str] = {
    # lists are newest first, a page at a time: the filter, then the id; the column behind it spares a look at the row
    "exchanges_session": "exchanges(session_id, id)",
    "exchanges_model": "exchanges(model, id, client)",
    "exchanges_client": "exchanges(client, id, model)",
    "exchanges_total": "exchanges(total_s)",
    # everything that daily_by_model reads, in the order in which it groups: the view never touches a row
    "exchanges_day": "exchanges(substr(started_at, 1, 10), model, ending, input_tokens, output_tokens, ttft_s, tokens_per_s, "
    "total_s) where operation is not null and ending is not null and origin = 'client'",
    "sessions_last": "sessions(last_at, id)",
    "sessions_client": "sessions(client, last_at)",
    "sessions_named": "sessions(client_session) where client_session is not null",
    "session_models_model": "session_models(model, session_id)",
    "turns_session": "turns(session_id, exchange_id)",
    "tool_calls_model": "tool_calls(model, name, valid, result_is_error, turnaround_s)",  # all that tools_by_model reads
    "findings_kind": "findings(kind, id)",
    "findings_kind_exchange": "findings(kind, exchange_id)",
    "findings_exchange": "findings(exchange_id)",
    "findings_session": "findings(session_id, id)",
    "runs_state": "runs(state, id)",
}
"""Name → what it indexes."""

VIEWS: dict[str, tuple[str, str]] = {
    "slowest_exchanges": (
        "Exchanges, slowest first, with where their time went.",
        """select id, started_at, client, model, total_s, ttft_s, queue_s, load_s, prefill_s, decode_s, client_wait_s,
    unexplained_s, slow_because, input_tokens, output_tokens, tokens_per_s, ending, session_id
from exchanges where ending is not null and operation is not null order by total_s desc""",
    ),
    "findings_by_model": (
        "How often each kind of finding was made with each model, and what it cost.",
        """select coalesce(model, '(none)') as model, kind, severity, count(*) as findings,
    count(distinct exchange_id) as exchanges, sum(tokens_wasted) as tokens_wasted, max(found_at) as last_at
from findings group by 1, 2, 3 order by findings desc""",
    ),
    "sessions_overview": (
        "Sessions, latest first: whose, how long, where the time went, what went wrong.",
        """select id, client, started_at, last_at,
    (select group_concat(model, ', ') from session_models where session_id = sessions.id) as models,
    turns, exchanges, tool_calls, tool_errors, input_tokens, output_tokens,
    round(model_s, 1) as model_s, round(tools_s, 1) as tools_s, round(user_s, 1) as user_s,
    round(100.0 * reused_characters / nullif(prompt_characters, 0), 1) as prefix_reused_percent, prefix_breaks,
    compactions, subagents, findings, violations, client_session
from sessions order by last_at desc""",
    ),
    "daily_by_model": (
        "Each day's work with each model: exchanges, failures, tokens and typical times (means; quantiles are per exchange).",
        """select substr(started_at, 1, 10) as day, model, count(*) as exchanges,
    sum(ending not in ('complete', 'client_disconnect')) as failed, sum(ending = 'client_disconnect') as left_early,
    sum(input_tokens) as input_tokens, sum(output_tokens) as output_tokens, round(avg(ttft_s), 3) as ttft_mean_s,
    round(avg(tokens_per_s), 1) as tokens_per_s_mean, round(max(total_s), 1) as total_max_s
from exchanges where operation is not null and ending is not null and origin = 'client'
group by 1, 2 order by 1 desc, 3 desc""",
    ),
    "tools_by_model": (
        "Each tool as each model calls it: how often, how often wrongly, and how long its result takes.",
        """select model, name as tool, count(*) as calls, sum(valid = 0) as invalid, sum(result_is_error = 1) as errors,
    round(avg(turnaround_s), 3) as turnaround_mean_s, round(max(turnaround_s), 3) as turnaround_max_s
from tool_calls group by 1, 2 order by calls desc""",
    ),
    "broken_prefixes": (
        "Turns whose prompt did not repeat the one before it to its end: where it broke, what that cost.",
        """select t.exchange_id, t.session_id, t.turn, t.relation, e.started_at, e.client, e.model, t.broken_at,
    t.broken_message, t.broken_role, t.broken_character,
    round(100.0 * t.common_characters / nullif(t.previous_characters, 0), 1) as repeated_percent, t.lost_tokens, t.lost_s
from turns t join exchanges e on e.id = t.exchange_id where t.broken_at is not null order by t.lost_s desc""",
    ),
    "token_gaps": (
        "The time between consecutive chunks of each exchange, as JSON (needs the function qm_gaps; see docs).",
        "select exchange_id, n, qm_gaps(arrival) as gaps_s from chunks",
    ),
}
"""Name → what it is for, its SELECT."""


def renew(connection: sqlite3.Connection) -> bool:
    """Make indexes and views as this version has them; whether anything had to be done. One transaction."""
    text = repr((INDEXES, VIEWS)).encode()
    mark = blake2b(text, digest_size=16).hexdigest()
    row = connection.execute("select value from meta where key = 'views'").fetchone()
    if row is not None and row[0] == mark:
        return False
    connection.execute("begin immediate")
    try:
        existing = connection.execute("select type, name from sqlite_master where sql is not null").fetchall()
        for kind, name in existing:
            if kind == "view" or (kind == "index" and not name.startswith("idx_")):
                connection.execute(f'drop {kind} "{name}"')
        for name, on in INDEXES.items():
            connection.execute(f"create index {name} on {on}")
        for name, (_, select) in VIEWS.items():
            connection.execute(f"create view {name} as {select}")
        connection.execute("insert or replace into meta values ('views', ?)", (mark,))
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise
    return True
