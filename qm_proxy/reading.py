"""The reading commands: `sessions`, `show`, `tail`, `findings`, `export`; and `merge`. They open the database read-only; a
running proxy is not needed, and not disturbed (SQLite's WAL). `tail` follows a running console's event feed."""

from __future__ import annotations

import http.client
import json
import sys
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
from qm_proxy.terminal import printable, seconds
from qm_proxy.waterfall import draw

__all__ = ["export_lines", "follow", "list_findings", "list_sessions", "merge_stores", "open_store", "page_out", "show"]

Json = dict[str, Any]
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


def list_sessions(stored: Stored, **filters: Any) -> tuple[Json, list[str]]:
    """(the page, a line for each)."""
    page = stored.sessions(**filters)
    return page, [_session_line(s) for s in page["items"]]


def _session_line(s: Json) -> str:
    tokens = f"{_amount(s['input_tokens']):>8}→{_amount(s['output_tokens']):<7}"
    marks = f"  {s['findings']} findings" if s["findings"] else ""
    return (
        f"{s['id']}  {_clock(s['started_at'])}  {s['client']:<13.13} {', '.join(s['models']):<28.28} {s['exchanges']:>4} requests"
        f"  {tokens} {s['tool_calls']:>3} calls{marks}"
    )


def list_findings(stored: Stored, **filters: Any) -> tuple[Json, list[str]]:
    page = stored.findings(**filters)
    lines = [
        f"{_clock(iso(unix_ms_of(f['id']) * 1_000_000))}  {f['severity']:<9} {f['kind']:<18} {f['summary']}"
        + (f"  ({f['exchange_id']})" if f.get("exchange_id") else "")
        for f in page["items"]
    ]
    return page, lines


def show(stored: Stored, wanted: str, width: int) -> tuple[Json, list[str]]:
    """One exchange with its waterfall, or one session with its turns, by its whole id.

    Raises `SettingsError` when there is no such thing.
    """
    exchange = stored.exchange(wanted)
    if exchange is not None:
        chunks = stored.chunks(wanted)
        return {"exchange": exchange, "chunks": chunks}, [printable(line) for line in draw(exchange, chunks, width)]
    session = stored.session(wanted)
    if session is not None:
        return {"session": session}, [printable(line) for line in _session(session, width)]
    raise SettingsError(f"There is no exchange and no session {wanted!r}.", remedy="qm-proxy sessions lists what there is.")


def _session(session: Json, width: int) -> list[str]:
    """A session's story: one line a turn, a bar of where its wall time went, the calls between."""
    turns: list[Json] = session["items"]
    lines = [
        f"{session['id']}  {_clock(session['started_at'])}  {session['client']} · {', '.join(session['models'])}",
        f"{len(turns)} requests · {_amount(session.get('input_tokens'))} → {_amount(session.get('output_tokens'))} tokens",
    ]
    split = [(name, session.get(f"{name}_s")) for name in ("model", "tools", "user")]
    known = [(name, value) for name, value in split if value]
    if known:
        total = sum(value for _, value in known)
        bar = "".join(name[0] * max(1, round(value / total * width)) for name, value in known)[:width]
        lines += [bar, " · ".join(f"{name[0]}={name} {seconds(value)}" for name, value in known)]
    lines.append("")
    longest = max((t["total_s"] or 0 for t in turns), default=0) or 1
    for t in turns:
        bar = "█" * max(1, round((t["total_s"] or 0) / longest * 20))
        calls = ", ".join(c["name"] for c in t["tool_calls"])
        marks = "".join(" !" + f["kind"] for f in t.get("findings") or [])
        lines.append(
            f"{_amount(t['turn']):>3} {_clock(t['started_at'])} {_amount(t['input_tokens']):>7}→{_amount(t['output_tokens']):<6} "
            f"{bar:<20} {seconds(t['total_s']):>7}  {t['ending']}{'  → ' + calls if calls else ''}{marks}"
        )
    return lines


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
    try:
        with feed:
            for line in feed:
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    print(json.dumps(event) if as_json else printable(_event(event)), flush=True)
    except BrokenPipeError:
        raise  # our own reader has left
    except (OSError, http.client.HTTPException) as exc:
        raise QmError(f"The console at {console} broke off: {exc!r}.", remedy="Is qm-proxy serve still running?") from exc


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
    if page.get("next_cursor"):
        print(f"more: --cursor {page['next_cursor']}", file=sys.stderr)
