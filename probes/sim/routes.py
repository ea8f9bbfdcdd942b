"""Which handler answers which method and path, and what the server says where there is none.

Host and Origin are judged as the real server does when it is bound to loopback; OPTIONS, HEAD, 404 and 405 included.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeAlias
from urllib.parse import parse_qs, unquote

from probes.sim import native, openai
from probes.sim.dialect import Ask, BadRequest, Writer
from probes.sim.generation import Engine, Refusal
from probes.sim.gojson import JSON, BadJson, decode, encode
from probes.sim.http import Request, Response
from probes.sim.library import Library
from probes.sim.policies import Speaker
from probes.sim.truth import RequestTruth, Truth

__all__ = ["Routes"]

JSON_UTF8 = "application/json; charset=utf-8"
Read: TypeAlias = Callable[[JSON], Ask]
Handler: TypeAlias = Callable[[Request, Response, RequestTruth], Awaitable[None]]


class Routes:
    """The routing table of one server."""

    def __init__(self, engine: Engine, library: Library, speakers: dict[str, Speaker], truth: Truth) -> None:
        self._engine = engine
        self._library = library
        self._speakers = speakers
        self._truth = truth
        self._serial = 0
        table: dict[str, dict[str, Handler]] = {
            "/": {"GET": self._root, "HEAD": self._root},
            "/api/version": {"GET": self._version, "HEAD": self._version},
            "/api/tags": {"GET": self._tags, "HEAD": self._tags},
            "/api/ps": {"GET": self._ps},
            "/api/show": {"POST": self._show},
            "/api/chat": {"POST": self._generation},
            "/api/generate": {"POST": self._generation},
            "/v1/chat/completions": {"POST": self._generation},
            "/v1/completions": {"POST": self._generation},
            "/v1/models": {"GET": self._models},
            "/sim/truth": {"GET": self._sim_truth},
            "/sim/personas": {"GET": self._sim_personas},
        }
        self._table = table

    async def answer(self, request: Request, response: Response, truth: RequestTruth) -> None:
        path = unquote(request.path)
        methods = self._table.get(path)
        if methods is None and path.startswith("/v1/models/"):
            methods = {"GET": self._model}
        if methods is None:
            self._text(response, 404, "404 page not found")
            return
        handler = methods.get(request.method)
        if handler is None:
            response.headers["Allow"] = ", ".join(methods)
            self._text(response, 405, "405 method not allowed")
            return
        await handler(request, response, truth)

    # --- generations --------------------------------------------------------------------------------------------------

    async def _generation(self, request: Request, response: Response, truth: RequestTruth) -> None:
        path = request.path
        raw = await request.body()
        openai_route = path.startswith("/v1/")
        try:
            body = decode(raw) if raw else None
            if body is None:
                raise BadRequest("missing request body")
            if not isinstance(body, dict):
                raise BadRequest(f"json: cannot unmarshal {native._kind(body)} into Go value of type api.ChatRequest")
            rng = self._next_rng()
            ask, writer = self._read(path, body, rng)
        except (BadJson, BadRequest) as bad:
            truth.ending, truth.status, truth.note = "refused", 400, str(bad)
            response.status = 400
            response.headers["Content-Type"] = JSON_UTF8
            response.write(openai.error_body(400, str(bad)) if openai_route else f'{{"error":{encode(str(bad))}}}'.encode())
            return
        truth.dialect, truth.model, truth.streamed = ask.dialect, ask.model, ask.streamed
        persona = self._library.find(ask.model)
        try:
            if persona is None:
                raise Refusal(404, f"model '{ask.model}' not found")
            truth.persona = persona.full_name
            speaker = self._speakers[persona.full_name]
            await self._engine.run(persona, speaker, ask, writer, request, response, truth)
        except Refusal as refused:
            truth.ending, truth.status = truth.ending or "refused", refused.status
            self._refuse(response, writer, refused, openai_route=openai_route)

    def _read(self, path: str, body: JSON, rng: Random) -> tuple[Ask, Writer]:
        if path == "/api/chat":
            ask = native.read_chat(body)
            return ask, native.NativeWriter(ask, rng)
        if path == "/api/generate":
            ask = native.read_generate(body)
            return ask, native.NativeWriter(ask, rng)
        usage = openai.wants_usage(body)
        if path == "/v1/chat/completions":
            ask = openai.read_chat(body)
            return ask, openai.ChatWriter(ask, rng, usage=usage)
        ask = openai.read_completions(body)
        return ask, openai.CompletionsWriter(ask, rng, usage=usage)

    @staticmethod
    def _refuse(response: Response, writer: Writer, refused: Refusal, *, openai_route: bool) -> None:
        response.status = refused.status
        body = writer.refusal(refused.status, refused.text)
        response.headers["Content-Type"] = JSON_UTF8
        if openai_route:
            response.headers["Content-Type"] = "application/json"
            body += b"\n"
        if refused.streaming:
            response.headers["Content-Type"] = "application/json"
            response.stream(body)
        else:
            response.write(body)

    def _next_rng(self) -> Random:
        self._serial += 1
        return Random(f"{self._engine.rng.random()}/{self._serial}")

    # --- the rest -----------------------------------------------------------------------------------------------------

    async def _root(self, request: Request, response: Response, truth: RequestTruth) -> None:
        response.headers["Content-Type"] = "text/plain; charset=utf-8"
        response.write(b"Ollama is running")

    async def _version(self, request: Request, response: Response, truth: RequestTruth) -> None:
        self._json(response, encode({"version": self._library.version}))

    async def _tags(self, request: Request, response: Response, truth: RequestTruth) -> None:
        self._json(response, self._library.tags())

    async def _ps(self, request: Request, response: Response, truth: RequestTruth) -> None:
        self._json(response, self._library.ps())

    async def _show(self, request: Request, response: Response, truth: RequestTruth) -> None:
        raw = await request.body()
        try:
            body = decode(raw) if raw else None
            if body is None:
                raise BadRequest("missing request body")
        except (BadJson, BadRequest) as bad:
            self._json(response, encode({"error": str(bad)}), status=400)
            return
        name = body.get("model") or body.get("name") or ""
        if not name:
            self._json(response, encode({"error": "model is required"}), status=400)
        elif self._library.find(name) is None:
            self._json(response, encode({"error": f"model '{name}' not found"}), status=404)
        else:
            self._json(response, self._library.show(name, verbose=bool(body.get("verbose"))))

    async def _models(self, request: Request, response: Response, truth: RequestTruth) -> None:
        response.headers["Content-Type"] = "application/json"
        response.write(self._library.openai_models().encode())

    async def _model(self, request: Request, response: Response, truth: RequestTruth) -> None:
        name = unquote(request.path).removeprefix("/v1/models/")
        response.headers["Content-Type"] = "application/json"
        if self._library.find(name) is None:
            response.status = 404
            response.write(openai.error_body(404, f"model '{name}' not found") + b"\n")
        else:
            response.write(self._library.openai_model(name).encode())

    async def _sim_truth(self, request: Request, response: Response, truth: RequestTruth) -> None:
        asked = parse_qs(request.target.partition("?")[2])
        found = [r for r in self._truth.requests if r is not truth]
        if "request" in asked:
            found = [r for r in found if r.n == int(asked["request"][0])]
        if "label" in asked:
            found = [r for r in found if r.label == asked["label"][0]]
        if "since" in asked:
            found = [r for r in found if r.n >= int(asked["since"][0])]
        self._json(response, encode({"requests": [r.as_dict() for r in found]}))

    async def _sim_personas(self, request: Request, response: Response, truth: RequestTruth) -> None:
        personas = [p for name in self._library.names if (p := self._library.find(name)) is not None]
        self._json(response, encode({"speed": self._engine.speed, "personas": [p.truth() for p in personas]}))

    @staticmethod
    def _json(response: Response, body: str, *, status: int = 200) -> None:
        response.status = status
        response.headers["Content-Type"] = JSON_UTF8
        response.write(body.encode("utf-8", "replace"))

    @staticmethod
    def _text(response: Response, status: int, body: str) -> None:
        response.status = status
        response.headers["Content-Type"] = "text/plain"
        response.write(body.encode())
