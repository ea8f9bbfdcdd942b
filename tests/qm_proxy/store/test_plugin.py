"""The database in the hands of those it is documented for: Datasette and sqlite-utils, as they run."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.store.plugin import prepare_connection
from qm_proxy.store.views import VIEWS
from qm_proxy.store.writer import Writer


@pytest.fixture
def database(path: Path, records: Any, writing: Callable[..., Writer]) -> Path:
    """A database that is open for writing, as in service."""
    writer = writing(path)
    session = records.ids.new(records.now_ns)
    first = records.turn(session, 1)
    second = records.turn(session, 2, findings=[records.finding()])
    second.opened.placed.results = [records.result_of(first)]
    writer.closed(first)
    writer.closed(second)
    assert writer.flush()
    return path


def test_a_prepared_connection_has_our_functions() -> None:
    connection = sqlite3.connect(":memory:")
    prepare_connection(connection)
    assert connection.execute("select qm_gaps(x'00')").fetchone() == (None,)


_DATASETTE = """
import asyncio, json, sys
from datasette.app import Datasette
from datasette.plugins import pm
from qm_proxy.store import plugin
if not any(p is plugin for p in pm.get_plugins()):
    pm.register(plugin)
async def main():
    ds = Datasette([sys.argv[1]])
    out = {}
    tables = (await ds.client.get("/qm.json")).json()
    out["tables"] = {t["name"]: t["foreign_keys"] for t in tables["tables"] if not t["hidden"]}
    for page in json.loads(sys.argv[2]):
        answer = await ds.client.get(f"/qm/{page}.json?_shape=array")
        out[page] = [answer.status_code, answer.json()]
        out[f"{page} as a page"] = (await ds.client.get(f"/qm/{page}")).status_code
    print(json.dumps(out))
asyncio.run(main())
"""


def test_datasette_serves_every_table_and_view(database: Path) -> None:
    pytest.importorskip("datasette")
    tables = ["exchanges", "sessions", "turns", "chunks", "tool_calls", "findings", "models", "machines", "runs", "contents"]
    pages = [*tables, *VIEWS]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _DATASETTE, str(database), json.dumps(pages)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {page: said[page][0] for page in pages} == dict.fromkeys(pages, 200)
    assert {page: said[f"{page} as a page"] for page in pages} == dict.fromkeys(pages, 200)
    assert {key["other_table"] for key in said["tables"]["exchanges"]["incoming"]} >= {
        "turns",
        "chunks",
        "tool_calls",
        "findings",
    }
    assert said["token_gaps"][1][0]["gaps_s"] == "[0.01,0.01,0.01,0.01]"
    assert said["sessions_overview"][1][0]["turns"] == 2


def test_sqlite_utils_reads_it_while_it_is_written(database: Path) -> None:
    from sqlite_utils import Database

    opened = Database(database)
    assert opened["exchanges"].count == 2  # type: ignore[union-attr,unused-ignore]
    assert set(VIEWS) <= set(opened.view_names())
    assert opened["turns"].foreign_keys  # type: ignore[union-attr,unused-ignore]
    opened.conn.close()


def test_the_entry_points_name_the_plugin() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    for tool in ("datasette", "sqlite_utils"):
        assert f'[project.entry-points.{tool}]\nqm_proxy = "qm_proxy.store.plugin"' in text
