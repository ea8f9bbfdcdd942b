"""Routes that generate nothing: what the server is and has, and the ones that change it. Beside them /sim/…, our own.

pull streams its progress for a model that ships as a persona and fails for any other; blobs are taken and forgotten.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias
from urllib.parse import parse_qs, unquote

from probes.sim import embed, openai
from probes.sim.dialect import BadRequest
from probes.sim.generation import Engine
from probes.sim.gojson import JSON, BadJson, decode, encode
from probes.sim.http import Request, Response
from probes.sim.library import Library, digest
from probes.sim.native import keep_alive_seconds, kind_of
from probes.sim.personas import Persona
from probes.sim.scheduler import Launch
from probes.sim.truth import RequestTruth, Truth

__all__ = ["JSON_UTF8", "Handler", "Management"]

JSON_UTF8 = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
Handler: TypeAlias = Callable[[Request, Response, RequestTruth], Awaitable[None]]
_SIGN_IN = "https://ollama.com/connect?name=simulated&key=simulated"


class Management:
    """Handlers of one server, listed in `table`."""

    def __init__(self, engine: Engine, library: Library, truth: Truth) -> None:
        self._engine = engine
        self._library = library
        self._truth = truth
        self._blobs: set[str] = set()
        self.table: dict[str, dict[str, Handler]] = {
            "/": {"GET": self._root, "HEAD": self._root},
            "/api/version": {"GET": self._version, "HEAD": self._version},
            "/api/status": {"GET": self._status},
            "/api/tags": {"GET": self._tags, "HEAD": self._tags},
            "/api/ps": {"GET": self._ps},
            "/api/show": {"POST": self._show},
            "/api/pull": {"POST": self._pull},
            "/api/push": {"POST": self._push},
            "/api/create": {"POST": self._create},
            "/api/copy": {"POST": self._copy},
            "/api/delete": {"DELETE": self._delete},
            "/api/me": {"POST": self._me},
            "/api/signout": {"POST": self._me},
            "/api/embed": {"POST": self._embed},
            "/api/embeddings": {"POST": self._embeddings},
            "/v1/embeddings": {"POST": self._v1_embeddings},
            "/v1/models": {"GET": self._models},
            "/sim/truth": {"GET": self._sim_truth},
            "/sim/personas": {"GET": self._sim_personas},
        }

    def below(self, path: str) -> dict[str, Handler] | None:
        """Routes with a parameter in their path."""
        if path.startswith("/v1/models/"):
            return {"GET": self._model}
        if path.startswith("/api/blobs/"):
            return {"POST": self._blob, "HEAD": self._has_blob}
        return None

    # --- what it is and has -------------------------------------------------------------------------------------------

    async def _root(self, request: Request, response: Response, truth: RequestTruth) -> None:
        response.headers["Content-Type"] = "text/plain; charset=utf-8"
        response.write(b"Ollama is running")

    async def _version(self, request: Request, response: Response, truth: RequestTruth) -> None:
        say(response, encode({"version": self._library.version}))

    async def _status(self, request: Request, response: Response, truth: RequestTruth) -> None:
        say(response, encode({"cloud": {"disabled": False, "source": "none"}}))

    async def _tags(self, request: Request, response: Response, truth: RequestTruth) -> None:
        say(response, self._library.tags())

    async def _ps(self, request: Request, response: Response, truth: RequestTruth) -> None:
        say(response, self._library.ps())

    async def _show(self, request: Request, response: Response, truth: RequestTruth) -> None:
        body = await self._body(request, response)
        if body is None:
            return
        name = body.get("model") or body.get("name") or ""
        if not name:
            fail(response, 400, "model is required")
        elif self._library.find(name) is None:
            fail(response, 404, f"model '{name}' not found")
        else:
            say(response, self._library.show(name, verbose=bool(body.get("verbose"))))

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

    async def _me(self, request: Request, response: Response, truth: RequestTruth) -> None:
        say(response, encode({"error": "unauthorized", "signin_url": _SIGN_IN}), status=401)

    # --- what changes it ----------------------------------------------------------------------------------------------

    async def _pull(self, request: Request, response: Response, truth: RequestTruth) -> None:
        """Progress records of the layers, paced as a fast line would."""
        body = await self._body(request, response)
        if body is None:
            return
        name = body.get("model") or body.get("name") or ""
        persona = self._library.find(name)
        streamed = body.get("stream") is not False
        records: list[JSON] = [{"status": "pulling manifest"}]
        if persona is None:
            records.append({"error": "pull model manifest: file does not exist"})
            if not streamed:
                fail(response, 500, "pull model manifest: file does not exist")
                return
        else:
            records += self._layers(persona)
            records += [{"status": s} for s in ("verifying sha256 digest", "writing manifest", "success")]
        await self._progress(response, records, streamed=streamed)

    @staticmethod
    def _layers(persona: Persona) -> list[JSON]:
        blob, size = digest(persona), persona.memory.weights_bytes
        layer = {"status": f"pulling {blob[:12]}", "digest": f"sha256:{blob}", "total": size}
        return [layer, *({**layer, "completed": size * n // 20} for n in range(1, 21))]

    async def _push(self, request: Request, response: Response, truth: RequestTruth) -> None:
        body = await self._body(request, response)
        if body is not None:
            records: list[JSON] = [{"status": "retrieving manifest"}, {"error": "you must be signed in to push to ollama.com"}]
            await self._progress(response, records, streamed=body.get("stream") is not False)

    async def _create(self, request: Request, response: Response, truth: RequestTruth) -> None:
        body = await self._body(request, response)
        if body is None:
            return
        name, source = body.get("model") or body.get("name") or "", body.get("from") or ""
        persona = self._library.find(source)
        if not name:
            fail(response, 400, "invalid model name")
        elif persona is None:
            fail(response, 400, "neither 'from' or 'files' was specified" if not source else f"model '{source}' not found")
        else:
            self._library.add(name, persona)
            steps = ("using existing layer", "writing manifest", "success")
            await self._progress(response, [{"status": s} for s in steps], streamed=body.get("stream") is not False)

    async def _progress(self, response: Response, records: list[JSON], *, streamed: bool) -> None:
        if not streamed:
            response.headers["Content-Type"] = "application/json"
            response.write(encode(records[-1]).encode())
            return
        response.headers["Content-Type"] = NDJSON
        for record in records:
            await self._engine.metronome.sleep(5e6 / self._engine.speed)
            response.stream(encode(record).encode() + b"\n")

    async def _copy(self, request: Request, response: Response, truth: RequestTruth) -> None:
        body = await self._body(request, response)
        if body is None:
            return
        persona = self._library.find(body.get("source") or "")
        if persona is None:
            fail(response, 404, f'model "{body.get("source")}" not found')
        elif not body.get("destination"):
            fail(response, 400, "destination is required")
        else:
            self._library.add(body["destination"], persona)

    async def _delete(self, request: Request, response: Response, truth: RequestTruth) -> None:
        body = await self._body(request, response)
        if body is None:
            return
        name = body.get("model") or body.get("name") or ""
        if not self._library.remove(name):
            fail(response, 404, f"model '{name}' not found")

    async def _blob(self, request: Request, response: Response, truth: RequestTruth) -> None:
        """A blob of any size: hashed piece by piece and forgotten; an existing one is answered without reading."""
        wanted = request.path.removeprefix("/api/blobs/")
        if not re.fullmatch(r"sha256[:-][0-9a-f]{64}", wanted):
            fail(response, 400, "invalid digest format")
            return
        key = wanted.replace("-", ":")
        if key in self._blobs:
            return
        seen = hashlib.sha256()
        async for piece in request.chunks():
            seen.update(piece)
        if key.removeprefix("sha256:") != seen.hexdigest():
            fail(response, 400, f'digest mismatch, expected "sha256:{seen.hexdigest()}", got "{key}"')
            return
        self._blobs.add(key)
        response.status = 201

    async def _has_blob(self, request: Request, response: Response, truth: RequestTruth) -> None:
        if request.path.removeprefix("/api/blobs/").replace("-", ":") not in self._blobs:
            response.status = 404

    # --- embeddings ---------------------------------------------------------------------------------------------------

    async def _embed(self, request: Request, response: Response, truth: RequestTruth) -> None:
        body = await self._body(request, response)
        if body is None:
            return
        began_ns = time.monotonic_ns()
        texts = embed.inputs_of(body.get("input"))
        if texts is None:
            fail(response, 400, "invalid input type")
            return
        persona = self._library.find(body.get("model") or "")
        if persona is None:
            fail(response, 404, f'model "{body.get("model") or ""}" not found, try pulling it first')
            return
        vectors, tokens, load_ns = await self._vectors(persona, body, texts, truth)
        total_ns = time.monotonic_ns() - began_ns
        say(response, embed.native_body(body.get("model") or "", vectors, total_ns, load_ns, tokens))

    async def _embeddings(self, request: Request, response: Response, truth: RequestTruth) -> None:
        body = await self._body(request, response)
        if body is None:
            return
        persona = self._library.find(body.get("model") or "")
        if persona is None:
            fail(response, 404, f"model '{body.get('model') or ''}' not found")
            return
        prompt = body.get("prompt") or ""
        vectors, _, _ = await self._vectors(persona, body, [prompt] if prompt else [], truth)
        say(response, embed.legacy_body(vectors[0] if vectors else []))

    async def _v1_embeddings(self, request: Request, response: Response, truth: RequestTruth) -> None:
        raw = await request.body()
        try:
            body = decode(raw) if raw else None
            if body is None:
                raise BadRequest("missing request body")
            texts = embed.inputs_of(body.get("input"))
            if not texts:
                raise BadRequest("invalid input")
        except (BadJson, BadRequest) as bad:
            response.status = 400
            response.headers["Content-Type"] = JSON_UTF8
            response.write(openai.error_body(400, str(bad)))
            return
        response.headers["Content-Type"] = "application/json"
        persona = self._library.find(body.get("model") or "")
        if persona is None:
            response.status = 404
            response.write(openai.error_body(404, f'model "{body.get("model") or ""}" not found, try pulling it first') + b"\n")
            return
        vectors, tokens, _ = await self._vectors(persona, body, texts, truth)
        as_base64 = body.get("encoding_format") == "base64"
        response.write(embed.openai_body(body.get("model") or "", vectors, tokens, as_base64=as_base64).encode())

    async def _vectors(
        self, persona: Persona, body: JSON, texts: list[str], truth: RequestTruth
    ) -> tuple[list[list[float]], int, int]:
        """Vectors, tokens, load_duration. Takes the load's and the prefill's time."""
        truth.persona, truth.model, truth.dialect = persona.full_name, body.get("model"), "ollama"
        engine = self._engine
        dimensions = body.get("dimensions") or persona.details.embedding_length
        tokens = sum(persona.tokenizer.count(t) + persona.tokenizer.bos for t in texts)
        launch = Launch(persona.context.trained if persona.mode == "mlx" else persona.context.automatic)
        keep_alive_s = keep_alive_seconds(body.get("keep_alive"))
        runner, truth.load_ns, truth.reload, truth.evicted = await engine.scheduler.acquire(
            persona, body["model"], launch, keep_alive_s
        )
        try:
            truth.prompt_tokens = tokens
            truth.prefill_ns = int(persona.prefill.ms(tokens, 0) * 1e6 / engine.speed)
            await engine.metronome.sleep(truth.prefill_ns)
        finally:
            engine.scheduler.release(runner)
        return [embed.vector(t, dimensions) for t in texts], tokens, truth.load_ns

    # --- ours ---------------------------------------------------------------------------------------------------------

    async def _sim_truth(self, request: Request, response: Response, truth: RequestTruth) -> None:
        """`?request=N`, `?label=L`, `?since=N`: what really happened."""
        asked = parse_qs(request.target.partition("?")[2])
        found = [r for r in self._truth.requests if r is not truth]
        for name in ("request", "since"):
            if name in asked and not asked[name][0].isdigit():
                fail(response, 400, f"{name} must be a number")
                return
        if "request" in asked:
            found = [r for r in found if r.n == int(asked["request"][0])]
        if "since" in asked:
            found = [r for r in found if r.n >= int(asked["since"][0])]
        if "label" in asked:
            found = [r for r in found if r.label == asked["label"][0]]
        say(response, encode({"requests": [r.as_dict() for r in found]}))

    async def _sim_personas(self, request: Request, response: Response, truth: RequestTruth) -> None:
        personas = [p for name in self._library.names if (p := self._library.find(name)) is not None]
        say(response, encode({"speed": self._engine.speed, "personas": [p.truth() for p in personas]}))

    @staticmethod
    async def _body(request: Request, response: Response) -> JSON:
        """The body as an object; None when it was refused, which is then already answered."""
        raw = await request.body()
        try:
            body = decode(raw) if raw else None
            if body is None:
                raise BadRequest("missing request body")
            if not isinstance(body, dict):
                raise BadRequest(f"json: cannot unmarshal {kind_of(body)} into Go value of type api.Request")
        except (BadJson, BadRequest) as bad:
            fail(response, 400, str(bad))
            return None
        return body


def say(response: Response, body: str, *, status: int = 200) -> None:
    response.status = status
    response.headers["Content-Type"] = JSON_UTF8
    response.write(body.encode("utf-8", "replace"))


def fail(response: Response, status: int, text: str) -> None:
    say(response, encode({"error": text}), status=status)
