"""The database's schema, as small named steps. A step is never edited after a release: another one follows.

Rules that hold here:

- Steps are sqlite-utils migrations; which of them a database has is written in it (`_sqlite_migrations`). sqlite-utils, which
  is slow to import, is loaded only when a step is missing.
- Views and indexes that can be made anew are not steps: `store.views` renews them when their text changes.
- Times are UTC, ISO 8601; durations are seconds; unknown is NULL. What every table and column means stands in `store.schema`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from qm_proxy.errors import StoreError

__all__ = ["APPLICATION_ID", "STEPS", "migrate"]

APPLICATION_ID = 0x514D5058
"""`PRAGMA application_id`, "QMPX": `file(1)` and we ourselves know the database by it."""

_SET = "qm_proxy"

_FIRST = """
create table meta (
    key text primary key,
    value text
) without rowid;

create table machines (
    id text primary key,
    name text not null,
    platform text,
    version text,
    first_seen text not null,
    last_seen text not null
);

create table models (
    name text primary key,
    digest text,
    size_bytes integer,
    size_vram_bytes integer,
    context_window_tokens integer,
    first_seen text not null,
    last_seen text not null
);

create table sessions (
    id text primary key,
    machine_id text not null references machines(id),
    client text not null,
    user_agent text,
    origin text not null,
    source text not null,
    client_session text,
    started_at text not null,
    last_at text not null,
    exchanges integer not null,
    turns integer not null,
    trajectories integer not null,
    retries integer not null,
    forks integer not null,
    compactions integer not null,
    subagents integer not null,
    side_calls integer not null,
    tool_calls integer not null,
    tool_results integer not null,
    tool_errors integer not null,
    turnaround_s real not null,
    input_tokens integer,
    output_tokens integer,
    model_s real not null,
    tools_s real not null,
    user_s real not null,
    prompt_characters integer not null,
    reused_characters integer not null,
    prefix_breaks integer not null,
    lost_s real,
    findings integer not null,
    violations integer not null
);

create table session_models (
    session_id text not null references sessions(id) on delete cascade,
    model text not null references models(name),
    exchanges integer not null,
    primary key (session_id, model)
) without rowid;

create table exchanges (
    id text primary key,
    machine_id text not null references machines(id),
    session_id text references sessions(id),
    started_at text not null,
    method text not null,
    route text not null,
    dialect text not null,
    operation text,
    model text references models(name),
    response_model text,
    streamed integer not null,
    http_status integer,
    ending text,
    session_source text,
    turn integer,
    client text not null,
    user_agent text,
    origin text not null,
    ttft_s real,
    ttft_content_s real,
    queue_s real,
    load_s real,
    prefill_s real,
    decode_s real,
    client_wait_s real,
    unexplained_s real,
    total_s real,
    slow_because text,
    itl_n integer,
    itl_mean_s real,
    itl_p50_s real,
    itl_p90_s real,
    itl_p99_s real,
    itl_max_s real,
    tokens_per_s real,
    rate_source text,
    input_tokens integer,
    output_tokens integer,
    cached_tokens integer,
    withheld_tokens integer,
    chunks integer,
    thinking_chunks integer,
    context_window_tokens integer,
    finish_reason text,
    bytes_in integer,
    bytes_out integer,
    written_lag_s real,
    proxy_overhead_s real,
    trace_id text,
    error text,
    undecoded text,
    doubts text
);

create table turns (
    exchange_id text primary key references exchanges(id) on delete cascade,
    session_id text not null references sessions(id) on delete cascade,
    trajectory integer not null,
    turn integer not null,
    relation text not null,
    parent_trajectory integer,
    previous_exchange_id text,
    new_messages integer not null,
    wait_s real,
    waited_for text,
    model_s real,
    prompt_characters integer,
    previous_characters integer,
    common_characters integer,
    previous_messages integer,
    common_messages integer,
    broken_at text,
    broken_message integer,
    broken_role text,
    broken_character integer,
    lost_tokens integer,
    lost_s real,
    tip integer,
    expected integer
);

create table chunks (
    exchange_id text primary key references exchanges(id) on delete cascade,
    n integer not null,
    start_unix_ns integer not null,
    resolution_ns integer not null,
    arrival blob not null,
    written blob,
    kinds text not null,
    suspended text
);

create table tool_calls (
    exchange_id text not null references exchanges(id) on delete cascade,
    position integer not null,
    call_id text not null,
    name text not null,
    model text,
    t_s real not null,
    argument_bytes integer not null,
    valid integer,
    problems text,
    turnaround_s real,
    result_exchange_id text,
    result_is_error integer,
    primary key (exchange_id, position)
) without rowid;

create table findings (
    id text primary key,
    machine_id text not null references machines(id),
    exchange_id text references exchanges(id) on delete cascade,
    session_id text references sessions(id) on delete cascade,
    found_at text not null,
    kind text not null,
    severity text not null,
    model text,
    client text,
    t_s real,
    chunk integer,
    summary text not null,
    evidence text not null,
    tokens_wasted integer
);

create table contents (
    exchange_id text primary key references exchanges(id) on delete cascade,
    request text,
    answer text,
    thinking text,
    redactions integer not null,
    cut_bytes integer not null
);

create table runs (
    id text primary key,
    machine_id text not null references machines(id),
    kind text not null,
    model text,
    state text not null,
    step integer,
    steps integer,
    message text,
    summary text,
    started_at text not null,
    ended_at text,
    elapsed_s real,
    settings text,
    result text,
    report text
);
"""


def first_tables(db: Any) -> None:
    """Machines, models, sessions, exchanges and what belongs to them, probe runs."""
    for statement in _FIRST.split(";"):
        if statement.strip():
            db.execute(statement)


def lengths_of_chunks(db: Any) -> None:
    """Where in a captured text each chunk begins."""
    for name in ("answer_pieces", "thinking_pieces"):
        db["contents"].add_column(name, "blob")


STEPS: tuple[Callable[[Any], None], ...] = (first_tables, lengths_of_chunks)
"""In the order in which they apply; a step's name is its function's."""


def migrate(connection: sqlite3.Connection) -> list[str]:
    """Bring the database to this version; answers with the names of the steps applied. The caller holds no transaction.

    Raises `StoreError` when the file is another program's, or of a newer version than this one knows.
    """
    found = connection.execute("pragma application_id").fetchone()[0]
    tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
    if found != APPLICATION_ID and (found or tables):  # ours has its mark before its first table
        raise StoreError(
            f"The database holds something else (application id {found:#x}, {len(tables)} tables), not what qm-proxy stored.",
            remedy="Name another file with --db.",
            application_id=found,
            tables=sorted(tables),
        )
    applied: set[str] = set()
    if "_sqlite_migrations" in tables:
        rows = connection.execute("select name from _sqlite_migrations where migration_set = ?", (_SET,))
        applied = {row[0] for row in rows}
    names = [step.__name__ for step in STEPS]
    if unknown := sorted(applied - set(names)):
        raise StoreError(
            f"The database was written by a newer qm-proxy: it has the step {unknown[0]!r}, which this version does not know.",
            remedy="Upgrade qm-proxy, or name another file with --db.",
            steps=unknown,
        )
    pending = [name for name in names if name not in applied]
    if pending:
        from sqlite_utils import Database, Migrations

        steps = Migrations(_SET)
        for step in STEPS:
            steps(name=step.__name__)(step)
        connection.execute(f"pragma application_id = {APPLICATION_ID}")
        steps.apply(Database(connection))
    return pending
