"""What Datasette and sqlite-utils load by themselves (entry points of this package): our SQL functions on every connection.

Imported by those two only; pluggy comes with them.
"""

from __future__ import annotations

import sqlite3

import pluggy

from qm_proxy.store.functions import register

__all__ = ["prepare_connection"]

_for_datasette = pluggy.HookimplMarker("datasette")
_for_sqlite_utils = pluggy.HookimplMarker("sqlite_utils")


@_for_datasette
@_for_sqlite_utils
def prepare_connection(conn: sqlite3.Connection) -> None:
    """The hook's name and its argument's are theirs."""
    register(conn)
