"""`/api/v1/…` and `/healthz`: CONTRACT's JSON over the named queries. Nothing here computes; it asks and shapes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qm_proxy import __version__
from qm_proxy.console.guard import problem
from qm_proxy.console.openapi import document
from qm_proxy.errors import QmError, SettingsError
from qm_proxy.store.queries import Archive

__all__ = ["Status", "problem_response", "routes"]

Status = Callable[[], dict[str, Any]]
Endpoint = Callable[[Request], Awaitable[Response]]
StartRun = Callable[[str, Any, dict[str, Any]], dict[str, Any]]
CancelRun = Callable[[str], Awaitable[dict[str, Any] | None]]
CompareRuns = Callable[[str, str, bool], Awaitable[dict[str, Any]]]
Replays = Callable[[Mapping[str, Any]], Path | None]
LIMIT_MAX = 500
BODY_MAX = 64 * 1024
RUN_KINDS = {"inspect", "audit", "agent", "report"}
RUN_SETTINGS = {"quick", "seed", "tiers", "max_tokens"}
_ONLY_ITS_STYLE = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
"""For a page that was written from a model's words: whatever found its way into it can load and run nothing."""


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value, separators=(",", ":"), allow_nan=False), status, media_type="application/json")


def problem_response(status: int, title: str, detail: str) -> Response:
    code, body = problem(status, title, detail)
    return Response(body, code, media_type="application/problem+json")


async def http_problem(_: Request, exc: Exception) -> Response:
    """Starlette's own errors (404, 405) as problem documents."""
    assert isinstance(exc, HTTPException)
    answer = problem_response(exc.status_code, exc.detail, f"{exc.detail.rstrip('.')}.")
    answer.headers.update(exc.headers or {})
    return answer


async def crash_problem(_: Request, exc: Exception) -> Response:
    """What nobody foresaw: said in the same form, without its insides."""
    return problem_response(
        500, "Internal error", f"The console failed on this request ({type(exc).__name__}). The proxy goes on."
    )


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


def _no_jobs(kind: str, model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    raise SettingsError("This console starts no probes.", remedy="Use qm-proxy inspect, audit or agent.")


async def _no_cancel(run_id: str) -> dict[str, Any] | None:
    return None


async def _no_compare(a: str, b: str, force: bool) -> dict[str, Any]:
    raise SettingsError("This console compares no runs.", remedy="Use qm-proxy compare.")


def _no_replays(run: Mapping[str, Any]) -> Path | None:
    return None


async def _body(request: Request) -> bytes:
    """At most `BODY_MAX` bytes of it: more is refused before it is read."""
    read = b""
    async for piece in request.stream():
        read += piece
        if len(read) > BODY_MAX:
            raise HTTPException(413, f"A body has at most {BODY_MAX} bytes here", {"connection": "close"})
    return read


def routes(
    queries: Archive,
    status: Status,
    start: StartRun = _no_jobs,
    cancel: CancelRun = _no_cancel,
    compare: CompareRuns = _no_compare,
    replays: Replays = _no_replays,
) -> list[Route]:
    """The API's routes. `status` is called for each request of `/api/v1/status`; `start`, `cancel`, `compare` and `replays` are
    the probes': (kind, model, settings) → the run as JSON, raising `QmError`; run id → the run, or `None`; two run ids, whether
    to compare what is not comparable → the comparison, raising `QmError`; a run's row → the page of its agent runs, or `None`."""

    async def healthz(_: Request) -> Response:
        return _json({"status": "ok", "name": "qm-proxy"})

    async def openapi(_: Request) -> Response:
        return _json(document(__version__))

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

    async def report(request: Request) -> Response:
        found = await run_in_threadpool(queries.run, request.path_params["id"])
        if found is None or not found.get("report"):
            raise HTTPException(404, f"No report of a run {request.path_params['id']!r}: it is not finished, or never was")
        return Response(found["report"], media_type="text/markdown")

    def run_with_links(run_id: str) -> dict[str, Any] | None:
        found = queries.run(run_id)
        if found is None:
            return None
        return {**found, "replays": f"/api/v1/runs/{quote(run_id)}/replays" if replays(found) is not None else None}

    def replays_page(run_id: str) -> bytes | None:
        found = queries.run(run_id)
        page = replays(found) if found is not None else None
        return None if page is None else page.read_bytes()

    async def walked(request: Request) -> Response:
        page = await run_in_threadpool(replays_page, request.path_params["id"])
        if page is None:
            raise HTTPException(404, f"No agent runs of {request.path_params['id']!r} are kept here: it made none, or elsewhere")
        return Response(page, media_type="text/html", headers=_ONLY_ITS_STYLE)

    async def start_run(request: Request) -> Response:
        try:
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise HTTPException(415, "Send Content-Type: application/json")  # a form on a foreign page cannot
            asked = json.loads(await _body(request))
            kind, model = asked.pop("kind"), asked.pop("model")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as exc:
            raise HTTPException(400, 'Send a JSON object such as {"kind": "inspect", "model": "…", "quick": true}') from exc
        if (unknown := sorted(set(asked) - RUN_SETTINGS)) or kind not in RUN_KINDS:
            what = f"setting {unknown[0]!r}" if unknown else f"kind {kind!r}"
            known = ", ".join(sorted(RUN_SETTINGS if unknown else RUN_KINDS))
            raise HTTPException(400, f"There is no {what}; there are: {known}")
        try:
            return _json(start(kind, model, asked), 202)
        except QmError as exc:
            raise HTTPException(409, str(exc)) from exc

    async def compare_runs(request: Request) -> Response:
        given = request.query_params
        if not given.get("a") or not given.get("b") or set(given) - {"a", "b", "force"}:
            raise HTTPException(400, "Give a and b, two ids of finished runs; force=1 compares what is not comparable")
        try:
            return _json(await compare(given["a"], given["b"], given.get("force") == "1"))
        except QmError as exc:
            raise HTTPException(409, str(exc)) from exc

    async def cancel_run(request: Request) -> Response:
        found = await cancel(request.path_params["id"])
        if found is None:
            raise HTTPException(404, f"No run {request.path_params['id']!r} that could be cancelled")
        return _json(found)

    return [
        Route("/healthz", healthz),
        Route("/api/v1/status", get_status),
        Route("/api/v1/openapi.json", openapi),
        Route("/api/v1/exchanges", listing(queries.exchanges, "session", "model", "client", "finding", "since")),
        Route("/api/v1/exchanges/{id}", one(queries.exchange, "exchange")),
        Route("/api/v1/exchanges/{id}/chunks", one(queries.chunks, "exchange with chunks")),
        Route("/api/v1/findings", listing(queries.findings, "kind", "since")),
        Route("/api/v1/sessions", listing(queries.sessions, "model", "client", "finding", "since")),
        Route("/api/v1/sessions/{id}", one(queries.session, "session")),
        Route("/api/v1/runs", listing(queries.runs, "state")),
        Route("/api/v1/runs", start_run, methods=["POST"]),
        Route("/api/v1/runs/{id}", one(run_with_links, "run")),
        Route("/api/v1/runs/{id}", cancel_run, methods=["DELETE"]),
        Route("/api/v1/runs/{id}/report", report),
        Route("/api/v1/runs/{id}/replays", walked),
        Route("/api/v1/compare", compare_runs),
    ]
