"""The table: method and path → dialect, default streaming, is it a generation.

Rules that hold here:

- Only the exact spelling that Ollama answers is a known route. `//api/chat` and `/api/chat/` are redirected by its mux, so they
  are not generations; the request that follows the redirect is.
- The target is only read, never rewritten: query, percent escapes and case stay as sent; `path` is the part before `?`.
- Source: Ollama 0.33 `server/routes.go` GenerateRoutes; the two aliases without `/v1` are llama.cpp's server.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from qm_proxy.events import Dialect, Operation

__all__ = ["Route", "Shape", "route_of", "shape_of"]

Shape = Literal["ollama", "openai", "anthropic"]
"""Whose error object a path's callers expect."""

_MAX_PATH = 1024


class Route(NamedTuple):
    """What a request line promises. `operation` is None for everything that asks no model (lists, pulls, blobs, probes)."""

    path: str  # without query; undecodable bytes replaced, cut at 1 024 characters
    dialect: Dialect
    operation: Operation | None
    streams_by_default: bool  # what an absent `stream` means
    generation: bool  # tokens are sampled; embeddings are an operation but not a generation


_Known = tuple[Dialect, Operation | None, bool, bool]

_CHAT: _Known = ("openai-chat", "chat", False, True)
_COMPLETIONS: _Known = ("openai-completions", "text_completion", False, True)
_EMBEDDINGS: _Known = ("other", "embeddings", False, False)
_PROGRESS: _Known = ("ollama", None, True, False)

_POST: dict[str, _Known] = {
    "/api/chat": ("ollama", "chat", True, True),
    "/api/generate": ("ollama", "text_completion", True, True),
    "/api/embed": ("ollama", "embeddings", False, False),
    "/api/embeddings": ("ollama", "embeddings", False, False),
    "/api/pull": _PROGRESS,
    "/api/push": _PROGRESS,
    "/api/create": _PROGRESS,
    "/v1/chat/completions": _CHAT,
    "/chat/completions": _CHAT,
    "/v1/completions": _COMPLETIONS,
    "/completions": _COMPLETIONS,
    "/v1/responses": ("openai-responses", "chat", False, True),
    "/v1/messages": ("anthropic", "chat", False, True),
    "/v1/embeddings": _EMBEDDINGS,
    "/embeddings": _EMBEDDINGS,
}
_OTHER: _Known = ("other", None, False, False)


def route_of(method: str, target: bytes) -> Route:
    """The route of a request line, in any target form (origin, absolute, `*`, authority). Never raises."""
    path = _path(target)
    known = _POST.get(path, _OTHER) if method == "POST" else _OTHER
    return Route(path, *known)


def shape_of(path: str) -> Shape:
    """Whose error shape the callers of `path` read, whether or not the path exists."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    if path.startswith("/v1/") or (path in _POST and not path.startswith("/api/")):
        return "openai"
    return "ollama"


def _path(target: bytes) -> str:
    if not target.startswith(b"/"):
        scheme = target.find(b"://", 0, 16)
        if scheme >= 0:  # absolute form: http://host:port/path?query
            slash = target.find(b"/", scheme + 3)
            query = target.find(b"?", scheme + 3)
            target = b"/" if slash < 0 or 0 <= query < slash else target[slash:]
    for mark in (b"?", b"#"):
        end = target.find(mark)
        if end >= 0:
            target = target[:end]
    path = target[: 4 * _MAX_PATH].decode("utf-8", "replace")
    return path if len(path) <= _MAX_PATH else path[: _MAX_PATH - 1] + "…"
