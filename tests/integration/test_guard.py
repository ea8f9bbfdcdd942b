"""`--guard cut` ends a looping stream for the real SDKs without an exception in them; after three cuts it only observes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic
import ollama
import openai
import pytest

from qm_proxy.servant import Servant

MODEL = "looper"
ASK: Any = [{"role": "user", "content": "go on"}]
TOKENS = 3000
FEW = 600  # it loops to some 640 chunks when nobody ends it


@pytest.fixture
def proxy(make_sim: Callable[..., Any], serving: Callable[..., Servant]) -> Servant:
    sim = make_sim(personas=[MODEL], speed=3.0)
    return serving(sim.url, guard="cut")


def native(url: str) -> tuple[str | None, int]:
    client = ollama.Client(url)
    answers = list(client.chat(MODEL, ASK, stream=True, options={"num_predict": TOKENS, "num_ctx": 8192}))
    client._client.close()
    return answers[-1].done_reason, len(answers)


def chat(url: str) -> tuple[str | None, int]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        chunks = list(client.chat.completions.create(model=MODEL, messages=ASK, stream=True, max_tokens=TOKENS))
    return [c.choices[0].finish_reason for c in chunks if c.choices][-1], len(chunks)


def responses(url: str) -> tuple[str | None, int]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        events = list(client.responses.create(model=MODEL, input="go on", stream=True, max_output_tokens=TOKENS))
    last: Any = events[-1]
    assert last.type == "response.completed"
    return ("length" if last.response.incomplete_details else last.response.status), len(events)


def messages(url: str) -> tuple[str | None, int]:
    with (
        anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client,
        client.messages.stream(model=MODEL, max_tokens=TOKENS, messages=ASK) as stream,
    ):
        texts = list(stream.text_stream)
        reason = stream.get_final_message().stop_reason
    return ("length" if reason == "max_tokens" else reason), len(texts)


@pytest.mark.parametrize("ask", [native, chat, responses, messages], ids=lambda f: f.__name__)
def test_a_loop_is_ended_as_the_dialect_ends(proxy: Servant, ask: Callable[[str], tuple[str | None, int]]) -> None:
    reason, n = ask(proxy.proxy)
    assert reason == "length"
    assert n < FEW
    rows: list[dict[str, Any]] = []
    while not rows:
        rows = [r for r in proxy.ask("/api/v1/exchanges")["items"] if r["ending"]]
    assert rows[0]["ending"] == "guard_cut"
    assert "loop.token" in {f["kind"] for f in rows[0]["findings"]}
    assert proxy.ask("/api/v1/status")["guard_cuts"]["cuts"] == 1


def test_three_cuts_then_only_looking(proxy: Servant) -> None:
    lengths = [chat(proxy.proxy)[1] for _ in range(4)]
    assert all(n < FEW for n in lengths[:3])
    assert lengths[3] > FEW
    assert proxy.ask("/api/v1/status")["guard_cuts"] == {"cuts": 3, "refused": 0, "held_back": 1}


def test_observe_is_the_default(make_sim: Callable[..., Any], serving: Callable[..., Servant]) -> None:
    proxy = serving(make_sim(personas=[MODEL], speed=3.0).url)
    assert chat(proxy.proxy)[1] > FEW
    assert proxy.ask("/api/v1/status")["guard_cuts"] is None
