"""A database as `serve` leaves it, and the store's records, for everything that reads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.store.writer import Writer

_SPEC = importlib.util.spec_from_file_location("store_records", Path(__file__).parent / "store" / "conftest.py")
assert _SPEC is not None
assert _SPEC.loader is not None
_store = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_store)


@pytest.fixture
def make() -> Any:
    """Makes Opened, Placed, Finding and Record with every field set (tests of the store use the same)."""
    return _store.Records()


@pytest.fixture
def filled(tmp_path: Path, make: Any) -> tuple[Path, list[Any]]:
    """A database with two sessions of three turns, the last of each with a stall; and its records, oldest first."""
    path = tmp_path / "data" / "qm.db"
    writer = Writer(path, linger_s=0.0)
    writer.start()
    kept: list[Any] = []
    for client in ("opencode", "codex"):
        session = make.ids.new(make.now_ns)
        for turn in (1, 2, 3):
            opened = make.opened(placed=make.placed(session, turn=turn), client=client)
            found = [make.finding("stall", evidence={"gap_s": 0.4})] if turn == 3 else []
            record = make.record(opened, findings=found)
            kept.append(record)
            writer.closed(record)
    assert writer.flush()
    writer.stop()
    return path, kept
