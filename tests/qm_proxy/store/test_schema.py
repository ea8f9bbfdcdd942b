from __future__ import annotations

from pathlib import Path

import pytest

from qm_proxy.errors import StoreError
from qm_proxy.store import schema


def test_the_page_says_what_the_database_has(update_golden: bool) -> None:
    file = Path(schema.__file__).with_name("SCHEMA.md")
    if update_golden:
        file.write_text(schema.page())
    assert file.read_text() == schema.page(), "run `python -m qm_proxy.store.schema > qm_proxy/store/SCHEMA.md`"


def test_a_column_without_a_meaning_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    purpose, meanings = schema.TABLES["meta"]
    monkeypatch.setitem(schema.TABLES, "meta", (purpose, meanings | {"ghost": "not there"}))
    with pytest.raises(StoreError, match="ghost"):
        schema.page()


def test_a_table_without_a_meaning_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(schema.TABLES, "runs")
    with pytest.raises(StoreError, match="runs"):
        schema.page()


def test_every_column_says_something() -> None:
    for purpose, meanings in schema.TABLES.values():
        assert purpose
        assert all(meanings.values())
