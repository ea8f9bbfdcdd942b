from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.detect.truncation import Calibration, Truncation, half_window, size_of
from qm_proxy.events import (
    Asked,
    Cut,
    Dialect,
    Event,
    Failed,
    Finished,
    Message,
    Nanoseconds,
    OfferedTool,
    PastCall,
    Residency,
    ResidentModel,
    Usage,
)
from qm_proxy.findings import Finding

T = Nanoseconds(3)
WORDS = "the window of a model holds what was said before and nothing that came earlier than its first token".split()  # noqa: SIM905


def words(n: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(n))


def tokens_of(asked: Asked) -> int:
    return sum(len(message.text.split()) + 4 for message in asked.messages)


def asked(*texts: str, dialect: Dialect = "ollama", model: str = "m", **more: object) -> Asked:
    roles = ("system", "user", "assistant")
    messages = tuple(Message(roles[0] if i == 0 else roles[1 + (i + 1) % 2], text) for i, text in enumerate(texts))
    return Asked(T, dialect, "chat", model, True, messages=messages, **more)  # type: ignore[arg-type]


def found(
    request: Asked,
    *events: Event,
    calibration: Calibration | None = None,
    window: int | None = 4096,
    line: object = None,
) -> list[Finding]:
    truncation = Truncation(request, calibration or Calibration(), window_tokens=window, line=line)
    return [finding for event in events for finding in truncation.see(event)]


def answer(tokens: int | None, output: int | None = 10, reason: str = "stop") -> tuple[Event, Event]:
    return Usage(T, input_tokens=tokens, output_tokens=output), Finished(T, reason)


def learnt(n: int = 10) -> Calibration:
    calibration = Calibration()
    for i in range(n):
        request = asked(words(20, i), words(100 + 40 * i, i))
        assert found(request, *answer(tokens_of(request)), calibration=calibration) == []
    return calibration


@pytest.mark.parametrize(
    ("window", "keep", "expected"),
    [
        (512, 0, 257),
        (512, 1, 257),
        (512, 4, 259),
        (512, 24, 269),
        (512, 300, 407),
        (512, 600, 511),
        (512, -1, 511),
        (2048, 4, 1027),
    ],
)
def test_half_window_is_what_a_real_ollama_leaves(window: int, keep: int, expected: int) -> None:
    assert expected in half_window(window, keep)


def test_half_window() -> None:
    long = asked(words(10), words(6000))
    (finding,) = found(long, *answer(2051))
    assert (finding.kind, finding.severity) == ("context.truncated", "violation")
    assert (finding.evidence["form"], finding.evidence["confidence"]) == ("half_window", "certain")
    assert finding.evidence["window_tokens"] == 4096
    assert isinstance(finding.evidence["lost_tokens"], int)
    assert finding.evidence["lost_tokens"] > 2000
    assert "num_ctx" in finding.summary
    assert found(asked(words(10), words(2000)), *answer(2051)) == [], "a request that happens to have as many"
    assert found(long, *answer(2051), window=None) == [], "no window, no verdict"
    assert found(long, *answer(None)) == [], "no count, no verdict"
    (finding,) = found(asked(words(10), words(6000), options={"num_ctx": 2048}), *answer(1027))
    assert finding.evidence["window_tokens"] == 2048
    (finding,) = found(asked(words(10), words(6000), options={"num_keep": 24}), *answer(half_window(4096, 24).pop()))
    assert finding.evidence["form"] == "half_window"


def test_the_windows_of_v1_do_not_come_from_num_ctx() -> None:
    request = asked(words(10), words(6000), options={"num_ctx": 2048}, dialect="openai-chat")
    assert found(request, *answer(1027), window=None) == []


def test_the_window_that_is_seen_while_the_request_runs_wins() -> None:
    resident = Residency(T, (ResidentModel("m:latest", "d", 1, 1, 8192, None),))
    (finding,) = found(asked(words(10), words(12_000)), resident, *answer(4099))
    assert finding.evidence["window_tokens"] == 8192
    clamped = Residency(T, (ResidentModel("m", "d", 1, 1, 2048, None),))
    (finding,) = found(asked(words(10), words(6000), options={"num_ctx": 8192}), clamped, *answer(1027))
    assert finding.evidence["window_tokens"] == 2048


def test_a_conversation_that_grew_while_its_count_did_not() -> None:
    calibration = learnt()
    texts = [words(50)]
    counts = []
    for i in range(14):
        texts += [words(300, i), words(80, i + 99)]
        request = asked(*texts)
        total = tokens_of(request)
        sizes = [len(text.split()) + 4 for text in texts]
        drop = 1
        while total > 4096:
            total -= sizes[drop]
            drop += 1
        findings = found(request, *answer(total), calibration=calibration, line="l")
        counts.append((drop > 1, bool(findings)))
        if findings:
            assert findings[0].evidence["form"] == "dropped"
            assert findings[0].evidence["confidence"] == "high"
    assert [dropped for dropped, _ in counts].count(True) >= 3
    assert all(dropped == told for dropped, told in counts)


def test_what_was_cut_and_has_only_grown_is_still_cut() -> None:
    calibration = learnt()
    texts = [words(50), words(9000)]
    (first,) = found(asked(*texts), *answer(2051), calibration=calibration, line="l")
    assert first.evidence["form"] == "half_window"
    grown = asked(*texts, words(20, 1), words(1200, 2))
    for tokens in (3990, 3000, 1300):  # after dropping, whatever its oldest messages left
        (again,) = found(grown, *answer(tokens), calibration=calibration, line="l")
        assert (again.evidence["form"], again.evidence["confidence"]) == ("dropped", "high")
    assert found(asked(words(50), words(1200, 2)), *answer(1258), calibration=calibration, line="l") == [], "compacted: it fits"
    assert found(grown, *answer(10_280), calibration=calibration, line="l", window=16_384) == [], "a larger window"


@pytest.mark.parametrize("per_token", ["characters", "bytes"])
def test_scripts_that_mix_are_no_truncation(per_token: str) -> None:
    """English taught it, then came Russian and Chinese: their bytes, characters and words disagree, and so must its doubt."""

    def count(request: Asked) -> int:
        whole = "".join(message.text for message in request.messages)
        return round(len(whole) / 3.3) if per_token == "characters" else round(len(whole.encode()) / 5)

    russian = "окно модели хранит то что было сказано раньше и ничего сверх того "
    chinese = "模型的窗口保存之前说过的话。"
    told = 0
    for seed in range(12):
        calibration, texts, rng = learnt(0), [words(40, seed)], random.Random(seed)
        for i in range(8):
            texts += [words(rng.randint(60, 200), i), words(40, i + 99)]
            request = asked(*texts)
            assert found(request, *answer(count(request)), calibration=calibration, line=seed) == []
        for i in range(6):
            texts += [rng.choice((russian * 4, chinese * 8)), words(10, i)]
            request = asked(*texts)
            if count(request) < 4000:
                told += bool(found(request, *answer(count(request)), calibration=calibration, line=seed))
    assert told == 0


def test_the_first_request_of_all_that_is_far_too_large() -> None:
    request = asked(words(10), *(words(2000, i) for i in range(10)))
    (finding,) = found(request, *answer(3900))
    assert (finding.evidence["form"], finding.evidence["confidence"], finding.severity) == ("dropped", "medium", "suspect")
    (finding,) = found(request, *answer(3900), calibration=learnt())
    assert (finding.evidence["confidence"], finding.severity) == ("high", "violation")
    assert finding.evidence["estimated_tokens"] == pytest.approx(tokens_of(request), rel=0.15)


def test_requests_that_fit_are_no_findings_and_teach() -> None:
    calibration = learnt()
    for n in range(50, 3900, 50):
        request = asked(words(20, n), words(n, n))
        assert found(request, *answer(tokens_of(request)), calibration=calibration) == []


def test_fell_without_a_known_window_is_a_suspicion() -> None:
    calibration = Calibration()
    texts = [words(50), words(800)]
    assert found(asked(*texts), *answer(860), calibration=calibration, window=None, line=1) == []
    texts += [words(50), words(300)]
    (finding,) = found(asked(*texts), *answer(500), calibration=calibration, window=None, line=1)
    assert (finding.evidence["confidence"], finding.evidence["window_tokens"]) == ("medium", None)


def test_a_client_that_shortens_its_history_is_no_truncation() -> None:
    calibration = learnt()
    assert found(asked(words(50), words(2500)), *answer(2558), calibration=calibration, line=1) == []
    assert found(asked(words(50), words(900)), *answer(958), calibration=calibration, line=1) == []


def test_earlier_thinking_does_not_count() -> None:
    calibration = learnt()
    texts = [words(50), words(400), f"<think>{words(900)}</think>yes", words(20)]
    assert found(asked(*texts), *answer(50 + 400 + 1 + 20 + 16), calibration=calibration, line=1) == []
    assert size_of(asked(*texts), calibration)[1].n_symbols < 700


@pytest.mark.parametrize(
    ("failure", "window"),
    [
        (Failed(T, 400, "request (701 tokens) exceeds the available context size", "exceed_context_size_error", 701, 512), 512),
        (Failed(T, 400, "the prompt is longer than the context length currently available to the model; shorten"), None),
        (Failed(T, 400, "input length (9 tokens) exceeds the model's maximum context length (8 tokens)"), None),
    ],
)
def test_refused(failure: Failed, window: int | None) -> None:
    (finding,) = found(asked(words(9)), failure)
    assert (finding.evidence["form"], finding.evidence["window_tokens"]) == ("refused", window)
    assert found(asked(words(9)), Failed(T, 400, '"m" does not support tools')) == []


def test_shifted_and_full() -> None:
    request = asked(words(20), words(400), options={"num_ctx": 512})
    (finding,) = found(request, *answer(451, 150))
    assert (finding.evidence["form"], finding.evidence["confidence"]) == ("shifted", "certain")
    (finding,) = found(request, *answer(451, 61, "length"))
    assert finding.evidence["form"] == "full"
    assert found(request, *answer(451, 61, "stop")) == []
    assert found(asked(words(20), words(400), options={"num_ctx": 512}, max_output_tokens=61), *answer(451, 61, "length")) == []
    stale = asked(words(20), words(400))
    assert found(stale, *answer(451, 150), window=512) == [], "a window that may have been another model's"


def test_pictures_make_estimates_worthless() -> None:
    request = Asked(T, "ollama", "chat", "m", True, messages=(Message("user", words(2000), media=("ab" * 32,)),))
    calibration = learnt()
    assert found(request, *answer(900), calibration=calibration) == []
    assert found(request, *answer(3500), calibration=calibration) == []


def test_estimated_usage_is_not_a_count() -> None:
    request = asked(words(10), words(6000))
    assert found(request, Usage(T, input_tokens=2051, estimated=True), Finished(T, "stop")) == []
    assert len(found(request, Usage(T, input_tokens=9999, estimated=True), Usage(T, input_tokens=2051), Finished(T, "stop"))) == 1


def test_memory_is_bounded() -> None:
    calibration = Calibration()
    for i in range(9000):
        request = asked(words(30, i), words(30, -i), model=f"m{i}", tools=(OfferedTool(f"t{i}", "function", b"{}"),))
        found(request, *answer(60), calibration=calibration, line=i)
    assert (len(calibration._samples), len(calibration._lines)) == (256, 2048)
    assert len(calibration._symbols) <= 8192


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.text(max_size=300), max_size=6),
    st.integers(0, 10**7),
    st.dictionaries(
        st.sampled_from(["num_ctx", "num_keep"]), st.one_of(st.integers(-5, 10**5), st.floats(), st.text(), st.none())
    ),
    st.one_of(st.none(), st.integers(-1, 10**6)),
)
def test_it_never_raises(texts: list[str], tokens: int, options: dict[str, object], window: int | None) -> None:
    calibration = Calibration()
    messages = tuple(Message("assistant", text, calls=(PastCall("c", "f", text),)) for text in texts)
    for _ in range(3):
        request = Asked(T, "ollama", "chat", "m", True, messages=messages, options=options)
        found(request, *answer(tokens, tokens), Cut(T, "shutdown"), calibration=calibration, window=window, line="x")
