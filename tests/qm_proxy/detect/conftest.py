"""Exchanges as the observer tells of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qm_proxy.events import Asked, Nanoseconds
from qm_proxy.record import Opened, Record

SECOND = 1_000_000_000


@pytest.fixture
def make_opened() -> Callable[..., Opened]:
    def make(
        exchange_id: str,
        at_s: float = 0.0,
        *,
        model: str | None = "m",
        client: str = "aider",
        dialect: str = "ollama",
        **asked: Any,
    ) -> Opened:
        t_ns = Nanoseconds(round(at_s * SECOND))
        request = Asked(t_ns, dialect, "chat", model, True, **asked)  # type: ignore[arg-type]
        return Opened(
            id=exchange_id,
            t_ns=t_ns,
            started_at="2026-11-24T00:00:00Z",
            method="POST",
            route="/api/chat",
            dialect=dialect,  # type: ignore[arg-type]
            operation="chat",
            model=model,
            streamed=True,
            client=client,
            user_agent=None,
            origin="client",
            asked=request,
        )

    return make


@pytest.fixture
def make_record() -> Callable[..., Record]:
    def make(
        opened: Opened, *, total_s: float = 1.0, load_s: float | None = 0.002, ending: str = "complete", **more: Any
    ) -> Record:
        values: dict[str, Any] = dict.fromkeys(Record.__dataclass_fields__)
        values |= {
            "id": opened.id,
            "model": opened.model,
            "client": opened.client,
            "dialect": opened.dialect,
            "operation": opened.operation,
            "ending": ending,
            "total_s": total_s,
            "load_s": load_s,
            "ttft_s": 0.2 if ending == "complete" else None,
            "http_status": 200 if ending == "complete" else None,
            "chunks": 10 if ending == "complete" else 0,
            "bytes_in": 500,
            "opened": opened,
            **more,
        }
        return Record(**values)

    return make
