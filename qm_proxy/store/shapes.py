"""Rows of the database → what is answered. The keys of `store.queries`, and those of sessions, places and runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qm_proxy.store.queries import Json

__all__ = [
    "EXCHANGE",
    "EXCHANGE_COLUMNS",
    "FINDING_COLUMNS",
    "RUN",
    "RUN_COLUMNS",
    "TURN_COLUMNS",
    "call_json",
    "exchange_json",
    "finding_json",
    "place_json",
    "session_json",
]


def _fields(names: str) -> tuple[str, ...]:
    return tuple(names.split())


EXCHANGE = _fields(
    "id started_at method route dialect operation model response_model streamed http_status ending session_id session_source "
    "turn client user_agent origin ttft_s ttft_content_s queue_s load_s prefill_s decode_s client_wait_s unexplained_s total_s "
    "slow_because itl_n itl_mean_s itl_p50_s itl_p90_s itl_p99_s itl_max_s tokens_per_s rate_source input_tokens output_tokens "
    "cached_tokens withheld_tokens chunks thinking_chunks context_window_tokens finish_reason bytes_in bytes_out written_lag_s "
    "proxy_overhead_s trace_id error undecoded doubts"
)
EXCHANGE_COLUMNS = ", ".join(f"e.{name}" for name in EXCHANGE)
FINDING = _fields("id exchange_id session_id kind severity t_s chunk summary evidence tokens_wasted")
FINDING_COLUMNS = ", ".join(FINDING)
RUN = _fields("id kind model state step steps message summary started_at ended_at elapsed_s")
RUN_COLUMNS = ", ".join(RUN)
TURN = _fields(
    "exchange_id trajectory turn relation parent_trajectory previous_exchange_id new_messages wait_s waited_for model_s "
    "prompt_characters previous_characters common_characters previous_messages common_messages broken_at broken_message "
    "broken_role broken_character lost_tokens lost_s"
)
TURN_COLUMNS = ", ".join(f"t.{name}" for name in TURN)


_PREFIX = _fields("prompt_characters previous_characters common_characters previous_messages common_messages")
_PLACE = _fields("trajectory turn relation parent_trajectory previous_exchange_id new_messages wait_s waited_for model_s")
_ITL = ("n", "mean_s", "p50_s", "p90_s", "p99_s", "max_s")


def exchange_json(row: Sequence[Any], calls: list[Json], findings: list[Json]) -> Json:
    """A closed exchange, with the keys of `store.queries.record_json` and in their order."""
    found = dict(zip(EXCHANGE, row, strict=True))
    item: Json = {}
    for name, value in found.items():
        if name == "itl_n":
            item["itl"] = None if value is None else {key: found[f"itl_{key}"] for key in _ITL}
        elif name.startswith("itl_"):
            continue
        elif name == "streamed":
            item[name] = bool(value)
        elif name == "doubts":
            item[name] = json.loads(value) if value else []
        else:
            item[name] = value
            if name == "ending":
                item["phase"] = None
            elif name == "finish_reason":
                item["tool_calls"], item["findings"] = calls, findings
    return item


def call_json(row: Sequence[Any]) -> Json:
    call_id, name, t_s, size, valid, problems, turnaround_s, result_exchange_id, is_error = row
    item = {"id": call_id, "name": name, "t_s": t_s, "argument_bytes": size, "valid": _truth(valid)}
    item["problems"] = json.loads(problems) if problems else []
    if turnaround_s is not None:
        item |= {"turnaround_s": turnaround_s, "result_exchange_id": result_exchange_id, "result_is_error": _truth(is_error)}
    return item


def _truth(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def finding_json(row: Sequence[Any]) -> Json:
    item = dict(zip(FINDING, row, strict=True))
    item["evidence"] = json.loads(item["evidence"])
    return item


def place_json(row: Sequence[Any]) -> Json:
    """Where an exchange stands in its session, and what its prompt repeats of the one before."""
    found = dict(zip(TURN, row, strict=True))
    found.pop("exchange_id")
    prefix = None
    if found["previous_characters"] is not None:
        prefix = {name: found[name] for name in _PREFIX}
        prefix |= {
            "broken_at": found["broken_at"], "message": found["broken_message"], "role": found["broken_role"],
            "character": found["broken_character"], "lost_tokens": found["lost_tokens"], "lost_s": found["lost_s"],
        }  # fmt: skip
    return {name: found[name] for name in _PLACE} | {"prefix": prefix}


def session_json(row: Json, models: list[str]) -> Json:
    """A session: whose, how much, where its time went, what its prompts repeat."""
    prompt, reused = row.pop("prompt_characters"), row.pop("reused_characters")
    turnaround, results = row.pop("turnaround_s"), row["tool_results"]
    row.pop("machine_id")
    return row | {
        "models": models,
        "turnaround_mean_s": turnaround / results if results else None,
        "prefix_reused": reused / prompt if prompt else None,
    }
