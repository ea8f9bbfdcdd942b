from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qm_proxy.record import Progress
from qm_proxy.store.both import Both
from qm_proxy.store.queries import Ring
from qm_proxy.store.sqlite import Stored
from qm_proxy.store.writer import Writer


def _walk(ask: Callable[..., Any], limit: int, **asked: Any) -> list[Any]:
    items, cursor = [], None
    while True:
        page = ask(limit=limit, cursor=cursor, **asked)
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return items


def test_it_is_one_list_of_what_is_in_flight_in_the_ring_and_in_the_file(
    path: Path, records: Any, writing: Callable[..., Writer]
) -> None:
    writer, ring = writing(path), Ring(10)
    ids = []
    for i in range(30):
        record = records.record(findings=[records.finding()])
        ids.append(record.id)
        ring.opened(record.opened)
        ring.found(record.findings[0])
        ring.closed(record)
        if i < 27:  # the last three are not written yet
            writer.closed(record)
    assert writer.flush()
    opened = records.opened()
    ring.opened(opened)
    ring.progress(Progress(opened.id, opened.t_ns, "thinking", 3, 1.0, 0.5, 90.0))
    ids.append(opened.id)
    both = Both(ring, Stored(path))
    for limit in (1, 4, 500):
        assert [item["id"] for item in _walk(both.exchanges, limit)] == ids[::-1]
        assert len(_walk(both.findings, limit)) == 30
    assert both.exchanges(limit=1)["items"][0]["phase"] == "thinking"
    assert both.exchange(opened.id)["phase"] == "thinking"  # type: ignore[index]
    assert both.exchange(ids[0])["ending"] == "complete"  # type: ignore[index]
    assert both.exchange(ids[28])["ending"] == "complete"  # type: ignore[index]
    assert both.chunks(ids[0]) is not None
    assert both.chunks(ids[29]) is not None
    assert both.exchange("nobody") is both.chunks("nobody") is None
    assert (both.status()["exchanges"], both.status()["in_flight"]) == (27, 1)


def test_while_the_file_cannot_be_read_the_ring_answers(path: Path, records: Any) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all" * 100)
    ring = Ring(10)
    record = records.record()
    ring.closed(record)
    both = Both(ring, Stored(path))
    assert [item["id"] for item in both.exchanges()["items"]] == [record.id]
    assert both.exchange(record.id) is not None
    assert both.exchange("nobody") is None
    assert both.status()["exchanges"] == 1
    assert both.sessions() == {"items": [], "next_cursor": None}
