"""The reading commands: `sessions`, `show`, `tail`, `findings`, `export`; and `merge`. They open the database read-only; a
running proxy is not needed, and not disturbed (SQLite's WAL). `tail` follows a running console's event feed."""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qm_proxy.errors import QmError, SettingsError
from qm_proxy.ids import unix_ms_of
from qm_proxy.measure.wall_clock import iso, unix_ns_of_iso
from qm_proxy.store.merge import merge
from qm_proxy.store.sqlite import Stored
from qm_proxy.terminal import ending, printable, seconds
from qm_proxy.waterfall import cut, draw, draw_session, many, short, wrapped

__all__ = [
    "export_lines",
    "follow",
    "list_findings",
    "list_sessions",
    "merge_stores",
    "open_store",
    "page_out",
    "screen_width",
    "show",
]

Json = dict[str, Any]
_TABLE = 118  # columns that a line of the sessions' table takes
_BEGINNING = 8  # characters of an id that are enough to look for it
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a http_proxy variable is not meant for loopback


def open_store(db: Path | None) -> Stored:
    """The database to read. Raises `SettingsError` when there is none yet."""
    if db is None:
        raise SettingsError("There is no database to read: --db is off.", remedy="Give the file with --db.")
    if not db.exists():
        raise SettingsError(f"There is no database at {db}.", remedy="Run qm-proxy serve first, or give another --db.")
    return Stored(db)


def merge_stores(into: Path, sources: list[Path]) -> dict[str, int]:
    """Rows that came or changed, by table.

    Raises `SettingsError` (a file named twice, or none there) and `StoreError` (none of ours, a newer version's, not writable).
    """
    for n, source in enumerate(sources):
        if not source.is_file():
            raise SettingsError(f"There is no database at {source}.", remedy="Name files that exist.")
        if any(other.exists() and source.samefile(other) for other in (into, *sources[:n])):
            raise SettingsError(f"{source} is named twice.", remedy="INTO and each FROM are different files.")
    return merge(into, sources)


def screen_width() -> int | None:
    """Columns of the terminal that reads our output; None: something else does, and wants each thing in one line."""
    return shutil.get_terminal_size((100, 40)).columns if sys.stdout.isatty() else None


def list_sessions(stored: Stored, *, width: int | None = None, **filters: Any) -> tuple[Json, list[str]]:
    """(the page, its lines: a table, or two lines for each where `width` is too small for one)."""
    page = stored.sessions(**filters)
    if width is not None and width < _TABLE:
        return page, [line for s in page["items"] for line in _session_lines(s, width)]
    head = f"{'session':36}  {'started, UTC':16}  {'client':<13} {'model':<18} {'req':>4} {'tokens':>12} {'calls':>5} found"
    rows = [_session_row(s) for s in page["items"]]
    return page, [head, *rows] if rows else []


def _session_row(s: Json) -> str:
    tokens = f"{short(s['input_tokens'])}→{short(s['output_tokens'])}"
    models = ", ".join(s["models"])
    return (
        f"{s['id']}  {_clock(s['started_at'])[:16]}  {s['client']:<13.13} {cut(models, 18):<18} {s['exchanges']:>4} {tokens:>12}"
        f" {s['tool_calls']:>5} {s['findings']:>5}"
    )


def _session_lines(s: Json, width: int) -> list[str]:
    parts = [
        f"{s['client']} → {', '.join(s['models']) or '–'}",
        many(s["exchanges"], "request"),
        f"{short(s['input_tokens'])} → {short(s['output_tokens'])} tokens",
        many(s["tool_calls"], "call") if s["tool_calls"] else "",
        many(s["findings"], "finding") if s["findings"] else "",
    ]
    return [f"{s['id']}  {_clock(s['started_at'])}", *("    " + line for line in wrapped(filter(None, parts), width - 4))]


def list_findings(stored: Stored, *, width: int | None = None, **filters: Any) -> tuple[Json, list[str]]:
    """(the page, its lines: one for each; on a screen the summary wrapped below)."""
    page = stored.findings(**filters)
    lines: list[str] = []
    for f in page["items"]:
        head = f"{_clock(iso(unix_ms_of(f['id']) * 1_000_000))}  {f['severity']:<9} {f['kind']:<18}"
        if width is None:
            lines.append(f"{head} {f['summary']}" + (f"  ({f['exchange_id']})" if f.get("exchange_id") else ""))
            continue
        one_line = f.get("exchange_id") and len(head) + 1 + len(f["exchange_id"]) <= width
        lines.append(f"{head} {f['exchange_id']}" if one_line else head.rstrip())
        lines += textwrap.wrap(f["summary"], width, initial_indent="    ", subsequent_indent="    ")
        if f.get("exchange_id") and not one_line:
            lines.append(f"    in {f['exchange_id']}")
    return page, lines


def show(stored: Stored, wanted: str, width: int) -> tuple[Json, list[str]]:
    """One exchange with its waterfall, or one session with its turns, by its id or a beginning of it that only one has.

    Raises `SettingsError` when there is no such thing, or several.
    """
    exchange, session = stored.exchange(wanted), None
    if exchange is None and (session := stored.session(wanted)) is None:
        names = stored.named(wanted.lower()) if len(wanted) >= _BEGINNING else []
        if len(names) > 1:
            raise SettingsError(f"{wanted!r} begins several ids: {', '.join(names)}.", remedy="Give one of them.")
        if names:
            exchange = stored.exchange(names[0])
            session = stored.session(names[0]) if exchange is None else None
    if exchange is not None:
        chunks = stored.chunks(exchange["id"])
        exchange["findings"] = stored.findings_of([exchange["id"]]).get(exchange["id"], exchange["findings"])
        return {"exchange": exchange, "chunks": chunks}, [printable(line) for line in draw(exchange, chunks, width)]
    if session is not None:
        found = stored.findings_of([turn["id"] for turn in session["items"]])
        for turn in session["items"]:
            turn["findings"] = found.get(turn["id"], turn["findings"])
        lines = draw_session(session, width)
        if session.get("next_cursor"):
            lines.append(f"     the first {len(session['items'])} of {session['exchanges']} requests; export has them all")
        return {"session": session}, [printable(line) for line in lines]
    raise SettingsError(f"There is no exchange and no session {wanted!r}.", remedy="qm-proxy sessions lists what there is.")


def export_lines(stored: Stored, *, since: str | None, chunks: bool) -> Iterator[str]:
    """One JSON line for each exchange, oldest first. Raises `ValueError`, at once, for a `since` that is no instant."""
    if since is not None:
        unix_ns_of_iso(since)
    rows = stored.export(since=since, chunks=chunks)
    return (json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in rows)


def follow(console: str, *, as_json: bool, token: str | None = None) -> None:
    """Print what happens, live, until interrupted or the console ends. Raises `QmError` when no console answers there."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{console}/api/v1/events?names=exchange.closed,finding", headers=headers)
    try:
        feed = _DIRECT.open(request, timeout=60)
    except urllib.error.HTTPError as exc:
        remedy = "Set QM_CONSOLE_TOKEN to its token." if exc.code == 401 else "Is that a qm-proxy?"
        raise QmError(f"The console at {console} answers {exc.code}.", remedy=remedy) from exc
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise QmError(f"No console answers at {console}: {exc}.", remedy="Start qm-proxy serve, or give its --console.") from exc
    width = None if as_json else screen_width()
    if width is not None:
        print(_screen_line("UTC", "client", "model", "ttft", "tok/s", "tokens", "total", "", width), flush=True)
    try:
        with feed:
            for line in feed:
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    print(json.dumps(event) if as_json else _told(event, width), flush=True)
    except BrokenPipeError:
        raise  # our own reader has left
    except (OSError, http.client.HTTPException) as exc:
        raise QmError(f"The console at {console} broke off: {exc!r}.", remedy="Is qm-proxy serve still running?") from exc


def _told(event: Json, width: int | None) -> str:
    """What happened, as one line; on a screen in columns, and what is longer wrapped."""
    if width is None:
        return printable(_event(event))
    if "started_at" in event and "client" in event:
        rate = "–" if event["tokens_per_s"] is None else f"{event['tokens_per_s']:.1f}"
        model, clock = event["model"] or event["route"], _clock(event["started_at"])[11:]
        tokens, how = _amount(event["output_tokens"]), ending(event["ending"])
        times = seconds(event["ttft_s"]), seconds(event["total_s"])
        return printable(_screen_line(clock, event["client"], model, times[0], rate, tokens, times[1], how, width))
    return "\n".join(textwrap.wrap(printable(_event(event).strip()), width, initial_indent=" " * 9, subsequent_indent=" " * 11))


def _screen_line(clock: str, client: str, model: str, ttft: str, rate: str, tokens: str, total: str, how: str, width: int) -> str:
    room = max(8, min(28, width - 66))
    return f"{clock:8} {client:<11.11} {cut(model, room):<{room}} {ttft:>7} {rate:>6} {tokens:>6} {total:>7}  {how}".rstrip()


def _event(event: Json) -> str:
    if "tokens_per_s" not in event and "events" in event:
        return f"         missed {_amount(event['events'])} events"
    if "severity" in event and "summary" in event:
        return f"         {event['severity']} {event['kind']}: {event['summary']}"
    rate = "–" if event["tokens_per_s"] is None else f"{event['tokens_per_s']:.1f}"
    return (
        f"{_clock(event['started_at'])} {event['client']:<13.13} {(event['model'] or event['route']):<28.28}"
        f" ttft {seconds(event['ttft_s']):>7}  {rate:>6} tok/s  {_amount(event['output_tokens']):>6} tokens"
        f"  {seconds(event['total_s']):>7}  {event['ending']}"
    )


def _clock(instant: str | None) -> str:
    return "–" if not instant else instant[:19].replace("T", " ")


def _amount(value: Any) -> str:
    return "–" if value is None else str(value)


def page_out(page: Json, lines: list[str], as_json: bool) -> None:
    """The page as one JSON document, or its lines and where it goes on."""
    if as_json:
        print(json.dumps(page, indent=2))
        return
    for line in lines:
        print(printable(line))
    if not page["items"]:
        print("Nothing there, or nothing that matches.", file=sys.stderr)
    if page.get("next_cursor"):
        print(f"more: --cursor {page['next_cursor']}", file=sys.stderr)
