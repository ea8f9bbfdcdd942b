"""The OpenAPI document of `/api/v1`, made from one table; a test holds table and routes to each other."""

from __future__ import annotations

from typing import Any

__all__ = ["PATHS", "document"]

Json = dict[str, Any]

_PAGE = ("limit", "cursor")
_WHAT: dict[str, str] = {
    "limit": "how many, 1–500, 50 unless told",
    "cursor": "next_cursor of the page before",
    "session": "only of this session",
    "model": "only of this model",
    "client": "only of this client (claude-code, opencode, …)",
    "finding": "only with a finding of this kind or family",
    "since": "ISO instant, inclusive",
    "kind": "a kind of finding, or a family (loop, tool, …)",
    "state": "queued, running, done, failed or cancelled",
    "names": "comma list of event names; all when left out",
    "a": "id of a finished run",
    "b": "id of another",
    "force": "1: compare what is not comparable",
    "after": "events behind this number (or the header Last-Event-ID)",
}
PATHS: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    ("GET", "/api/v1/status"): ("The proxy's state: upstream, models, what was missed, the database", ()),
    ("GET", "/api/v1/exchanges"): (
        "Exchanges, newest first; those in flight have ending null",
        (*_PAGE, "session", "model", "client", "finding", "since"),
    ),
    ("GET", "/api/v1/exchanges/{id}"): ("One exchange", ()),
    ("GET", "/api/v1/exchanges/{id}/chunks"): ("When each chunk came and was taken, ns since the request", ()),
    ("GET", "/api/v1/sessions"): ("Sessions, last active first", (*_PAGE, "model", "client", "finding", "since")),
    ("GET", "/api/v1/sessions/{id}"): ("One session with its turns", ()),
    ("GET", "/api/v1/findings"): ("What was detected, newest first", (*_PAGE, "kind", "since")),
    ("GET", "/api/v1/runs"): ("Runs of probes, newest first", (*_PAGE, "state")),
    ("POST", "/api/v1/runs"): ("Start a probe: {kind, model, quick?, seed?, tiers?, max_tokens?}", ()),
    ("GET", "/api/v1/runs/{id}"): ("One run with its result", ()),
    ("DELETE", "/api/v1/runs/{id}"): ("Cancel a run; what was measured is kept", ()),
    ("GET", "/api/v1/runs/{id}/report"): ("The report of a finished run, Markdown", ()),
    ("GET", "/api/v1/runs/{id}/replays"): ("Every agent run of a probe's run, step by step, a page", ()),
    ("GET", "/api/v1/compare"): ("Two finished runs compared: differences with their intervals", ("a", "b", "force")),
    ("GET", "/api/v1/events"): ("Server-sent events: exchange.opened, .progress, .closed, finding, run", ("names", "after")),
    ("GET", "/api/v1/openapi.json"): ("This document", ()),
}
_MEDIA = {
    "/api/v1/events": "text/event-stream",
    "/api/v1/runs/{id}/report": "text/markdown",
    "/api/v1/runs/{id}/replays": "text/html",
}
_PROBLEM: Json = {
    "description": "RFC 9457 problem document",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def document(version: str) -> Json:
    """OpenAPI 3.1."""
    paths: Json = {}
    for (method, path), (summary, parameters) in PATHS.items():
        named = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}] if "{id}" in path else []
        named += [
            {
                "name": p,
                "in": "query",
                "description": _WHAT[p],
                "schema": {"type": "integer" if p in ("limit", "after") else "string"},
            }
            for p in parameters
        ]
        schema: Json = {"$ref": "#/components/schemas/Page"} if "cursor" in parameters else {"type": "object"}
        good = {"description": summary, "content": {_MEDIA.get(path, "application/json"): {"schema": schema}}}
        operation: Json = {"summary": summary, "responses": {"202" if method == "POST" else "200": good, "4XX": _PROBLEM}}
        if named:
            operation["parameters"] = named
        if method == "POST":
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
        paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "qm-proxy console", "version": version, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": {"Page": _page(), "Problem": _problem()}},
    }


def _page() -> Json:
    return {
        "type": "object",
        "required": ["items", "next_cursor"],
        "properties": {"items": {"type": "array", "items": {"type": "object"}}, "next_cursor": {"type": ["string", "null"]}},
    }


def _problem() -> Json:
    texts = {name: {"type": "string"} for name in ("type", "title", "detail")}
    return {"type": "object", "required": [*texts, "status"], "properties": texts | {"status": {"type": "integer"}}}
