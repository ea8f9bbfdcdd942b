"""Every recorded answer of a real Ollama 0.33, asked of the simulation: the same bytes, but for ids, stamps and durations."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from probes.sim.personas import Persona
from tests.probes.sim.conftest import Answer, Running, ask, parse, post

CAPTURES = Path(__file__).parent / "captures"
NAMES = sorted(p.stem for p in CAPTURES.glob("*.wire"))
TEXT = "an error was encountered while running the model: unexpected EOF"

_ROUTES = (
    ("v1_chat", "/v1/chat/completions"), ("v1_completions", "/v1/completions"), ("v1_messages", "/v1/messages"),
    ("v1_responses", "/v1/responses"), ("v1_embeddings", "/v1/embeddings"), ("embeddings", "/api/embeddings"),
    ("embed", "/api/embed"), ("err_msg", "/v1/messages"), ("err_v1_", "/v1/chat/completions"),
    ("err_trunc_truncate_false", "/api/generate"), ("generate", "/api/generate"),
)  # fmt: skip


def route_of(name: str) -> str:
    return next((path for part, path in _ROUTES if part in name), "/api/chat")


_VOLATILE = (
    (rb'"created_at":"[^"]*"', b'"created_at":"T"'),
    (rb'"(created|created_at|completed_at)":\d+', rb'"\1":0'),
    (rb'"(total|load|prompt_eval|eval)_duration":\d+', rb'"\1_duration":0'),
    (rb"\b(chatcmpl|cmpl)-\d+", rb"\1-N"),
    (rb"\b(msg|req)_[0-9a-f]{24}", rb"\1_N"),
    (rb"\b(resp|msg|rs)_\d+", rb"\1_N"),
    (rb"\bfc_\d+_", b"fc_N_"),
    (rb'"(id|call_id)":"(call_)?[A-Za-z0-9]{8}([A-Za-z0-9]{24})?"', rb'"\1":"\2N"'),
    (rb'"context":\[[\d,]*\]', b'"context":[]'),
    (rb'"logprob":-?[\d.]+(e-\d+)?', b'"logprob":0'),
    (rb'"top_logprobs":\[.*?\]\}\]', b'"top_logprobs":[]}]'),
    (rb"\[-?\d[\d.,e-]*\]", b"[numbers]"),
)


def stable(data: bytes) -> bytes:
    for pattern, replacement in _VOLATILE:
        data = re.sub(pattern, replacement, data)
    return data


_COUNTS = rb"eval_count|completion_tokens|output_tokens|total_tokens|prompt_eval_count|prompt_tokens|input_tokens"


def without_counts(data: bytes) -> bytes:
    return re.sub(rb'"(%b)":\d+' % _COUNTS, rb'"\1":0', data)


def documents(answer: Answer) -> list[dict[str, Any]]:
    """The JSON documents of an answer of any dialect."""
    found = []
    for line in answer.body.decode().split("\n"):
        text = line.removeprefix("data: ")
        if text.startswith("{"):
            found.append(json.loads(text))
    return found


def spoken(answer: Answer) -> tuple[list[str], list[str], list[dict[str, Any]]]:
    """What the real model said: thoughts, pieces of text, calls."""
    thoughts: list[str] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    streamed = answer.header("Content-Type") in ("application/x-ndjson", "text/event-stream")

    def call(name: str, arguments: Any) -> None:
        calls.append({"name": name, "arguments": arguments})

    for d in documents(answer):
        kind = d.get("type", "")
        for message in [d.get("message"), *(c.get("delta") or c.get("message") for c in d.get("choices") or [])]:
            if not isinstance(message, dict) or (kind and kind.startswith("message_")):
                continue
            thoughts.append(message.get("thinking") or message.get("reasoning") or "")
            texts.append(message.get("content") or "")
            for c in message.get("tool_calls") or []:
                call(c["function"]["name"], c["function"]["arguments"])
        for choice in d.get("choices") or []:
            texts.append(choice.get("text") or "")
        texts.append(response if isinstance(response := d.get("response"), str) else "")
        if kind.endswith("output_text.delta"):
            texts.append(d["delta"])
        elif kind.endswith("reasoning_summary_text.delta"):
            thoughts.append(d["delta"])
        elif kind.endswith("function_call_arguments.done"):
            call("get_weather", d["arguments"])
        elif kind == "content_block_delta":
            delta = d["delta"]
            texts.append(delta.get("text", ""))
            thoughts.append(delta.get("thinking", ""))
            if "partial_json" in delta:
                call("get_weather", delta["partial_json"])
        if not streamed:
            for block in d.get("content") or []:
                texts.append(block.get("text", ""))
                if block.get("type") == "tool_use":
                    call(block["name"], block["input"])
            for item in d.get("output") or []:
                texts += [part["text"] for part in item.get("content") or []]
    return [t for t in thoughts if t], [t for t in texts if t], calls


def counts(answer: Answer) -> tuple[int | None, int | None]:
    """Prompt and answer tokens that the real server reported."""
    read = sampled = None
    for d in documents(answer):
        usage = (
            d.get("usage") or (d.get("response") or {}).get("usage") if isinstance(d.get("response"), dict) else d.get("usage")
        )
        usage = usage or {}
        read = d.get("prompt_eval_count") or usage.get("prompt_tokens") or usage.get("input_tokens") or read
        sampled = d.get("eval_count") or usage.get("completion_tokens") or usage.get("output_tokens") or sampled
    return read, sampled


def persona_for(name: str, real: Answer, request: dict[str, Any]) -> Persona:
    """A persona that says just what the real model said."""
    thoughts, texts, calls = spoken(real)
    read, sampled = counts(real)
    model = request.get("model") or "tiny"
    say: dict[str, Any] = {"calls": calls}
    if len(texts) == 1:
        texts = re.findall(r" ?[^ ]+", texts[0])  # a whole answer: the toy model's tokens are its words
    if texts:
        say["pieces"] = texts
    if thoughts:
        say["thinking"] = thoughts
    if "midstream_kill" in name:
        say["misbehave"] = {"error_after": max(1, len(texts))}
        say["pieces"] = [*(texts or [" one"]), " more"]
    elif "prefill_kill" in name:
        say["misbehave"] = {"error_before": TEXT}
    elif "repeat_abort" in name:
        say["pieces"] = [*(texts if "_stream" in name else '{"x" :"'), *("a" * 60)]
    elif name == "err_v1_responses_truncated_tool_args":
        say = {"calls": [{"name": "get_weather", "arguments": '{"city":"' + "x " * 200 + '"}'}]}
    elif sampled is not None and not calls and not thoughts:
        limit = request.get("max_tokens") or request.get("max_output_tokens") or (request.get("options") or {}).get("num_predict")
        if sampled == limit:
            say["pieces"] = [*texts, *[" more"] * 400] if len(texts) >= sampled else texts
    capabilities = ["completion", "tools"] if model != "tiny-embed" else ["embedding"]
    if "think" in model:
        capabilities.append("thinking")
    truncating = "trunc" in name or "dropped" in name or "context_" in name
    tokenizer: dict[str, Any] = {"rule": "bytes", "per_token": 1, "mark_tokens": 1, "bos": True}
    if "jinja" in name:  # its template has one special token more
        tokenizer["fixed"] = [{"pattern": r"<\|assistant\|>", "tokens": 2}]
    if read is not None and not truncating:
        tokenizer = {"fixed": [{"pattern": r"\A.+\Z", "tokens": read}]}
    return Persona.model_validate({
        "name": model,
        "mode": "native" if "jinja" in model else "rendered",
        "capabilities": capabilities,
        "details": {"embedding_length": 64 if name == "embeddings" else 256},  # the recorded vectors have 64 that are not 0
        "load": {"cold_ms": 0}, "prefill": {"fixed_ms": 0.5, "tokens_per_s": 1e6}, "decode": {"token_ms": 0.5}, "overhead_ms": 0,
        "context": {"trained": 8192, "automatic": 4096},
        "tokenizer": tokenizer,
        "rules": [{"say": say}],
    })  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_is_the_captured_one(name: str, running: Running) -> None:
    real = parse((CAPTURES / f"{name}.wire").read_bytes())
    body = (CAPTURES / f"{name}.request.json").read_bytes().rstrip(b"\n")
    try:
        request = json.loads(body)
    except ValueError:
        request = {}
    persona = persona_for(name, real, request)

    async def exchange() -> Answer:
        async with running(persona, speed=1.0) as sim:
            return await ask(
                sim, post(route_of(name) if name != "err_v1_responses_truncated_tool_args" else "/v1/responses", body)
            )

    if request.get("model") == "absent":
        persona = persona.model_copy(update={"name": "other"})
    simulated = asyncio.run(exchange())

    assert simulated.status_line == real.status_line
    assert [k for k, _ in simulated.headers] == [k for k, _ in real.headers]
    volatile = ("Date", "Content-Length")
    assert [h for h in simulated.headers if h[0] not in volatile] == [h for h in real.headers if h[0] not in volatile]
    assert simulated.complete
    assert real.complete
    if simulated.header("Content-Length") is not None:
        assert int(simulated.header("Content-Length") or 0) == len(simulated.body)
    tidy = stable
    if "tools" in name or "think" in name or "dropped" in name or "embed" in name or "utf8" in name or "nostream" in name:
        # tool calls and thoughts cost as many tokens as the real tokenizer makes of them; whole answers are cut anew
        tidy = lambda data: without_counts(stable(data))  # noqa: E731
    assert [tidy(c) for c in simulated.chunks] == [tidy(c) for c in real.chunks]
