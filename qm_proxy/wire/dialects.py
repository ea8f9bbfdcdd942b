"""Which decoder reads an answer. The answer's own Content-Type decides before the request's wish does: a stream that was asked
for can be refused with a JSON body and status 500 after minutes of prefill."""

from __future__ import annotations

from collections.abc import Callable

from qm_proxy.events import Dialect
from qm_proxy.wire.anthropic import AnthropicAnswer, AnthropicWhole
from qm_proxy.wire.bodies import ErrorBody, Opaque
from qm_proxy.wire.decoder import Decoder
from qm_proxy.wire.ollama import NativeAnswer, NativeEmbeddings, NativeWhole
from qm_proxy.wire.openai_chat import OpenAIAnswer, OpenAIWhole
from qm_proxy.wire.openai_responses import ResponsesAnswer, ResponsesWhole
from qm_proxy.wire.routes import Route

__all__ = ["decoder_for"]

_LINES = ("application/x-ndjson", "application/ndjson")

_STREAMED: dict[Dialect, Callable[[], Decoder]] = {
    "openai-chat": OpenAIAnswer,
    "openai-completions": OpenAIAnswer,
    "openai-responses": ResponsesAnswer,
    "anthropic": AnthropicAnswer,
}
_WHOLE: dict[Dialect, Callable[[], Decoder]] = {
    "openai-chat": OpenAIWhole,
    "openai-completions": OpenAIWhole,
    "openai-responses": ResponsesWhole,
    "anthropic": AnthropicWhole,
}


def decoder_for(route: Route, *, streamed: bool, status: int, content_type: str | None) -> Decoder:
    """A fresh decoder for the answer's (decoded) body. `streamed`: what the request asked for."""
    if status >= 400:
        return ErrorBody(status)
    if not 200 <= status < 300 or status == 204:
        return Opaque()
    kind = (content_type or "").partition(";")[0].strip().lower()
    if route.operation == "embeddings":
        return NativeEmbeddings()
    if route.dialect == "ollama":
        generate = route.operation == "text_completion"
        # A streaming native route may call its lines JSON (`load` does; so do imitations): lines hold one document too.
        lines = kind in _LINES or streamed or not kind.endswith("json")
        return NativeAnswer(generate=generate) if lines else NativeWhole(generate=generate)
    if route.dialect not in _STREAMED:
        return Opaque()
    events = kind == "text/event-stream" or (streamed and not kind.endswith("json"))
    return (_STREAMED if events else _WHOLE)[route.dialect]()
