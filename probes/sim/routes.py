"""Which handler answers which method and path; the generation routes, and their errors in each dialect's flavours."""

from __future__ import annotations

from random import Random
from urllib.parse import unquote

import zstandard

from probes.sim import anthropic, native, openai, responses
from probes.sim.dialect import Ask, BadRequest, Refusal, Writer
from probes.sim.doors import cors, redirect
from probes.sim.generation import Engine
from probes.sim.gojson import JSON, BadJson, decode, encode
from probes.sim.http import Request, Response
from probes.sim.library import Library
from probes.sim.management import JSON_UTF8, Handler, Management
from probes.sim.policies import Speaker
from probes.sim.truth import RequestTruth, Truth

__all__ = ["Routes"]

ZSTD_LIMIT = 20 << 20
"""Largest decoded zstd body the /v1 routes take."""
_DIALECTS = {
    "/api/chat": "ollama",
    "/api/generate": "ollama",
    "/v1/chat/completions": "openai-chat",
    "/v1/completions": "openai-completions",
    "/v1/responses": "openai-responses",
    "/v1/messages": "anthropic",
}


class Routes:
    """The routing table of one server."""

    def __init__(self, engine: Engine, library: Library, speakers: dict[str, Speaker], truth: Truth) -> None:
        self._engine = engine
        self._library = library
        self._speakers = speakers
        self._serial = 0
        self._management = Management(engine, library, truth)
        self._table: dict[str, dict[str, Handler]] = {
            **self._management.table,
            **{path: {"POST": self._generation} for path in _DIALECTS},
        }

    async def answer(self, request: Request, response: Response, truth: RequestTruth) -> None:
        truth.dialect = _DIALECTS.get(request.path)
        if not request.path.startswith("/sim/") and cors(request, response) == "done":
            return
        path = unquote(request.path)
        methods = self._table.get(path) or self._management.below(path)
        if methods is None:
            if not redirect(request, response, self._table.keys()):
                _plain(response, 404, "404 page not found")
        elif request.method not in methods:
            response.headers["Allow"] = ", ".join(methods)
            _plain(response, 405, "405 method not allowed")
        else:
            await methods[request.method](request, response, truth)

    async def _generation(self, request: Request, response: Response, truth: RequestTruth) -> None:
        raw = await request.body()
        v1 = request.path.startswith("/v1/")
        rng = self._next_rng()
        try:
            body = self._decoded(request, raw, zstd=v1)
            ask, writer = _read(request.path, body, rng)
        except (BadJson, BadRequest) as bad:
            truth.ending, truth.status, truth.note = "refused", 400, str(bad)
            response.status = 400
            response.headers["Content-Type"] = JSON_UTF8
            response.write(_early_error(request.path, str(bad), rng))
            return
        truth.dialect, truth.model, truth.streamed = ask.dialect, ask.model, ask.streamed
        if v1 and ask.streamed:  # set by the middleware before anything can fail
            response.headers.update({k: v for k, v in writer.stream_headers.items() if k != "Content-Type"})
        try:
            persona = self._library.find(ask.model)
            if persona is None:
                raise Refusal(404, f"model '{ask.model}' not found" if ask.model else "model is required")
            truth.persona = persona.full_name
            await self._engine.run(persona, self._speakers[persona.full_name], ask, writer, request, response, truth)
        except Refusal as refused:
            truth.ending, truth.status, truth.note = truth.ending or "refused", refused.status, refused.text
            self._refuse(response, writer, refused, v1=v1)

    @staticmethod
    def _decoded(request: Request, raw: bytes, *, zstd: bool) -> JSON:
        if not raw:
            raise BadRequest("missing request body")
        if zstd and (request.header("content-encoding") or "").lower() == "zstd":
            try:
                raw = zstandard.ZstdDecompressor().decompress(raw, max_output_size=ZSTD_LIMIT)
            except zstandard.ZstdError as bad:
                raise BadRequest(str(bad)) from None
        body = decode(raw)
        if not isinstance(body, dict):
            raise BadRequest(f"json: cannot unmarshal {native.kind_of(body)} into Go value of type api.Request")
        return body

    @staticmethod
    def _refuse(response: Response, writer: Writer, refused: Refusal, *, v1: bool) -> None:
        """Three flavours: the native one, the newline of /v1's encoder, and one chunk when a stream was asked for."""
        response.status = refused.status
        body = writer.refusal(refused.status, refused.text) + (b"\n" if v1 else b"")
        response.headers["Content-Type"] = "application/json" if v1 or refused.streaming else JSON_UTF8
        if refused.streaming:
            response.stream(body)
        else:
            response.write(body)

    def _next_rng(self) -> Random:
        """For ids; tests that compare bytes blank them."""
        self._serial += 1
        return Random(f"{self._engine.seed}/{self._serial}")


def _read(path: str, body: JSON, rng: Random) -> tuple[Ask, Writer]:
    try:
        match path:
            case "/api/chat":
                ask = native.read_chat(body)
                return ask, native.NativeWriter(ask, rng)
            case "/api/generate":
                ask = native.read_generate(body)
                return ask, native.NativeWriter(ask, rng)
            case "/v1/chat/completions":
                ask = openai.read_chat(body)
                return ask, openai.ChatWriter(ask, rng, usage=openai.wants_usage(body))
            case "/v1/completions":
                ask = openai.read_completions(body)
                return ask, openai.CompletionsWriter(ask, rng, usage=openai.wants_usage(body))
            case "/v1/responses":
                ask = responses.read_responses(body)
                return ask, responses.ResponsesWriter(ask, body, rng)
        ask = anthropic.read_messages(body)
        return ask, anthropic.MessagesWriter(ask, body, rng)
    except (AttributeError, TypeError, KeyError) as wrong:  # a field of another JSON type than its name promises
        raise BadRequest(f"json: cannot unmarshal request: {wrong}") from wrong


def _early_error(path: str, text: str, rng: Random) -> bytes:
    if path == "/v1/messages":
        return anthropic.error_body(400, text, rng)
    return openai.error_body(400, text) if path.startswith("/v1/") else f'{{"error":{encode(text)}}}'.encode()


def _plain(response: Response, status: int, body: str) -> None:
    response.status = status
    response.headers["Content-Type"] = "text/plain"
    response.write(body.encode())
