"""Routes that generate nothing, and our own /sim/… ones."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from probes.sim.server import SimulatedOllama
from tests.probes.sim.conftest import Answer, Running, ask, parse, post

CAPTURES = Path(__file__).parent / "captures"


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def shape(value: Any) -> Any:
    """Keys in their order, and the types of the values."""
    if isinstance(value, dict):
        return [(k, shape(v)) for k, v in value.items()]
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("version", "/api/version"),
        ("tags", "/api/tags"),
        ("ps", "/api/ps"),
        ("root", "/"),
        ("not_found", "/nope"),
        ("v1_models", "/v1/models"),
        ("v1_model", "/v1/models/steady"),
    ],
)
def test_the_answer_has_the_captured_form(name: str, path: str, running: Running) -> None:
    head, _, body = (CAPTURES / f"{name}.http").read_bytes().partition(b"\r\n\r\n")  # recorded without its chunk framing
    real = parse(head + b"\r\n\r\n")._replace(chunks=[body])

    async def main() -> Answer:
        async with running() as sim:
            await ask(sim, post("/api/generate", b'{"model":"steady"}'))
            await ask(sim, post("/api/generate", b'{"model":"thinker"}'))
            return await ask(sim, get(path))

    simulated = asyncio.run(main())
    assert simulated.status_line == real.status_line
    framing = ("Content-Length", "Transfer-Encoding")
    assert [h for h in simulated.headers if h[0] not in (*framing, "Date")] == [
        h for h in real.headers if h[0] not in (*framing, "Date")
    ]
    assert [k for k, _ in simulated.headers if k not in framing] == [k for k, _ in real.headers if k not in framing]
    assert simulated.chunked == (len(simulated.body) > 2048)
    assert simulated.body.endswith(b"\n") == real.body.endswith(b"\n")
    if real.body.startswith(b"{"):
        assert shape(json.loads(simulated.body)) == shape(json.loads(real.body))
    else:
        assert simulated.body == real.body


async def call(sim: SimulatedOllama, path: str, body: Any, method: str = "POST") -> Answer:
    request = post(path, body if isinstance(body, bytes) else json.dumps(body).encode())
    return await ask(sim, request.replace(b"POST ", f"{method} ".encode(), 1))


def test_pull_create_copy_delete(running: Running) -> None:
    async def main() -> None:
        async with running("steady") as sim:
            pulled = await call(sim, "/api/pull", {"model": "steady"})
            records = [json.loads(line) for line in pulled.body.splitlines()]
            assert pulled.header("Content-Type") == "application/x-ndjson"
            assert len(pulled.chunks) == len(records)
            layers = [r for r in records if "total" in r]
            assert layers[-1]["completed"] == layers[-1]["total"]
            assert re.fullmatch(r"pulling [0-9a-f]{12}", layers[0]["status"])
            last = await call(sim, "/api/pull", {"model": "steady", "stream": False})
            assert json.loads(last.body) == {"status": "success"}
            missing = await call(sim, "/api/pull", {"model": "nope"})
            assert json.loads(missing.body.splitlines()[-1]) == {"error": "pull model manifest: file does not exist"}
            assert (await call(sim, "/api/pull", {"model": "nope", "stream": False})).status == 500

            copied = await call(sim, "/api/copy", {"source": "steady", "destination": "mine"})
            assert (copied.status, copied.body) == (200, b"")
            used = await call(
                sim, "/api/generate", {"model": "mine", "prompt": "hi", "stream": False, "options": {"num_predict": 2}}
            )
            assert json.loads(used.body)["eval_count"] == 2
            assert (await call(sim, "/api/create", {"model": "made", "from": "steady", "stream": False})).status == 200
            assert (await call(sim, "/api/delete", {"model": "mine"}, "DELETE")).status == 200
            assert (await call(sim, "/api/delete", {"model": "mine"}, "DELETE")).status == 404
            assert (await call(sim, "/api/copy", {"source": "mine", "destination": "x"})).status == 404
            names = [m["name"] for m in json.loads((await ask(sim, get("/api/tags"))).body)["models"]]
            assert sorted(names) == ["made:latest", "steady:latest"]

    asyncio.run(main())


def test_blobs(running: Running) -> None:
    data = b"weights" * 1000
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"

    async def main() -> None:
        async with running("steady") as sim:
            assert (
                await ask(sim, get(f"/api/blobs/{digest}", "HEAD").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            ).status == 404
            assert (await call(sim, f"/api/blobs/{digest}", data)).status == 201
            assert (await call(sim, f"/api/blobs/{digest}", data)).status == 200
            wrong = await call(sim, f"/api/blobs/sha256:{'0' * 64}", data)
            assert (wrong.status, b"digest mismatch" in wrong.body) == (400, True)
            assert (await call(sim, "/api/blobs/nonsense", data)).status == 400

    asyncio.run(main())


def test_accounts_and_status(running: Running) -> None:
    async def main() -> None:
        async with running("steady") as sim:
            me = await call(sim, "/api/me", b"")
            assert me.status == 401
            assert "signin_url" in json.loads(me.body)
            assert json.loads((await ask(sim, get("/api/status"))).body) == {"cloud": {"disabled": False, "source": "none"}}
            pushed = await call(sim, "/api/push", {"model": "steady"})
            assert b"error" in pushed.body.splitlines()[-1]

    asyncio.run(main())


def test_embedding_errors(running: Running) -> None:
    async def main() -> None:
        async with running("embedder") as sim:
            missing = await call(sim, "/api/embed", {"model": "nope", "input": "x"})
            assert json.loads(missing.body)["error"] == 'model "nope" not found, try pulling it first'
            assert (await call(sim, "/api/embed", {"model": "embedder", "input": 3})).status == 400
            assert (await call(sim, "/v1/embeddings", {"model": "embedder", "input": ""})).status == 400
            empty = await call(sim, "/api/embed", {"model": "embedder"})
            assert json.loads(empty.body)["embeddings"] == []
            chat = await call(sim, "/api/chat", {"model": "embedder", "messages": [{"role": "user", "content": "hi"}]})
            assert json.loads(chat.body)["error"] == '"embedder" does not support chat'

    asyncio.run(main())


def test_truth_over_http(running: Running) -> None:
    async def main() -> None:
        async with running("steady") as sim:
            body = b'{"model":"steady","prompt":"hi","options":{"num_predict":2}}'
            await ask(sim, post("/api/generate", body, "X-Sim-Label: mine"))
            await ask(sim, post("/api/generate", body))
            everything = json.loads((await ask(sim, get("/sim/truth"))).body)["requests"]
            assert [r["n"] for r in everything] == [0, 1]
            assert everything[0]["sampled_tokens"] == 2
            assert len(everything[0]["written_ns"]) == 3
            labelled = json.loads((await ask(sim, get("/sim/truth?label=mine"))).body)["requests"]
            assert [r["n"] for r in labelled] == [0]
            assert [r["n"] for r in json.loads((await ask(sim, get("/sim/truth?since=1&request=1"))).body)["requests"]] == [1]
            assert (await ask(sim, get("/sim/truth?request=x"))).status == 400
            stated = json.loads((await ask(sim, get("/sim/personas"))).body)
            assert stated["speed"] == 50
            assert stated["personas"][0]["token_ms"] == 16

    asyncio.run(main())
