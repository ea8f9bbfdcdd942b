"""`/api/v1/…` and `/healthz`: CONTRACT's JSON over the named queries. Nothing here computes; it asks and shapes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qm_proxy.console.guard import problem
from qm_proxy.store.queries import Archive

__all__ = ["Status", "problem_response", "routes"]

Status = Callable[[], dict[str, Any]]
Endpoint = Callable[[Request], Awaitable[Response]]
LIMIT_MAX = 500


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value, separators=(",", ":"), allow_nan=False), status, media_type="application/json")


def problem_response(status: int, title: str, detail: str) -> Response:
    code, body = problem(status, title, detail)
    return Response(body, code, media_type="application/problem+json")


async def http_problem(_: Request, exc: Exception) -> Response:
    """Starlette's own errors (404, 405) as problem documents."""
    assert isinstance(exc, HTTPException)
    answer = problem_response(exc.status_code, exc.detail, f"{exc.detail}.")
    answer.headers.update(exc.headers or {})
    return answer


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", "50")
    if not text.isdigit() or not 1 <= int(text) <= LIMIT_MAX:
        raise HTTPException(400, f"limit must be a whole number from 1 to {LIMIT_MAX}; found {text!r}")
    return int(text)


def _filters(request: Request, allowed: tuple[str, ...]) -> dict[str, str]:
    unknown = sorted(set(request.query_params) - {*allowed, "limit", "cursor"})
    if unknown:
        raise HTTPException(400, f"Unknown parameter {unknown[0]!r}; known: {', '.join((*allowed, 'limit', 'cursor'))}")
    return {name: request.query_params[name] for name in allowed if name in request.query_params}


def routes(queries: Archive, status: Status) -> list[Route]:
    """The API's routes. `status` is called for each request of `/api/v1/status`."""

    async def healthz(_: Request) -> Response:
        return _json({"status": "ok", "name": "qm-proxy"})

    async def get_status(_: Request) -> Response:
        return _json(status())

    def listing(ask: Callable[..., dict[str, Any]], *filters: str) -> Endpoint:
        async def answer(request: Request) -> Response:
            given = _filters(request, filters)
            try:
                found = await run_in_threadpool(ask, limit=_limit(request), cursor=request.query_params.get("cursor"), **given)
            except ValueError as exc:
                raise HTTPException(400, str(exc)) from exc
            return _json(found)

        return answer

    def one(ask: Callable[[str], dict[str, Any] | None], what: str) -> Endpoint:
        async def answer(request: Request) -> Response:
            found = await run_in_threadpool(ask, request.path_params["id"])
            if found is None:
                raise HTTPException(404, f"No {what} {request.path_params['id']!r}: it never was, or is no longer kept")
            return _json(found)

        return answer

    return [
        Route("/healthz", healthz),
        Route("/api/v1/status", get_status),
        Route("/api/v1/exchanges", listing(queries.exchanges, "session", "model", "client", "finding", "since")),
        Route("/api/v1/exchanges/{id}", one(queries.exchange, "exchange")),
        Route("/api/v1/exchanges/{id}/chunks", one(queries.chunks, "exchange with chunks")),
        Route("/api/v1/findings", listing(queries.findings, "kind", "since")),
        Route("/api/v1/sessions", listing(queries.sessions, "model", "client", "finding", "since")),
        Route("/api/v1/sessions/{id}", one(queries.session, "session")),
        Route("/api/v1/runs", listing(queries.runs, "state")),
        Route("/api/v1/runs/{id}", one(queries.run, "run")),
    ]
