from __future__ import annotations

from typing import Any

from qm_proxy.store.database import in_memory, open_for_writing
from qm_proxy.store.queries import record_json
from qm_proxy.store.shapes import (
    EXCHANGE,
    EXCHANGE_COLUMNS,
    FINDING_COLUMNS,
    RUN_COLUMNS,
    TURN_COLUMNS,
    call_json,
    exchange_json,
    place_json,
    session_json,
)


def test_every_column_asked_for_is_there() -> None:
    connection, _ = open_for_writing(in_memory())
    for columns, table in (
        (EXCHANGE_COLUMNS, "exchanges e"),
        (FINDING_COLUMNS, "findings"),
        (RUN_COLUMNS, "runs"),
        (TURN_COLUMNS, "turns t"),
    ):
        assert connection.execute(f"select {columns} from {table}").fetchall() == []
    connection.close()


def test_an_exchange_has_the_rings_keys_in_their_order_and_unknown_is_null(records: Any) -> None:
    item = exchange_json([None] * len(EXCHANGE), [], [])
    assert list(item) == list(record_json(records.record()))
    assert {name for name, value in item.items() if value is not None} == {"streamed", "tool_calls", "findings", "doubts"}


def test_gaps_are_one_object_or_null() -> None:
    row = [5 if name == "itl_n" else 0.5 if name.startswith("itl_") else None for name in EXCHANGE]
    assert exchange_json(row, [], [])["itl"] == {
        "n": 5, "mean_s": 0.5, "p50_s": 0.5, "p90_s": 0.5, "p99_s": 0.5, "max_s": 0.5,
    }  # fmt: skip


def test_a_call_without_a_result_says_nothing_of_one() -> None:
    assert call_json(["c", "bash", 1.0, 2, None, None, None, None, None]) == {
        "id": "c", "name": "bash", "t_s": 1.0, "argument_bytes": 2, "valid": None, "problems": [],
    }  # fmt: skip
    assert call_json(["c", "bash", 1.0, 2, 0, '["x"]', 2.0, "e", 1])["result_is_error"] is True


def test_a_first_turn_has_no_prefix() -> None:
    place = place_json(["e", 0, 1, "start", None, None, 2, None, None, 2.0, *[None] * 11])
    assert (place["relation"], place["prefix"], "exchange_id" in place) == ("start", None, False)


def test_a_session_without_results_or_prompts_knows_no_means() -> None:
    row = {"prompt_characters": 0, "reused_characters": 0, "turnaround_s": 0.0, "tool_results": 0, "machine_id": "m", "id": "s"}
    assert session_json(row, ["m"]) == {
        "tool_results": 0, "id": "s", "models": ["m"], "turnaround_mean_s": None, "prefix_reused": None,
    }  # fmt: skip
