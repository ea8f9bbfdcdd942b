from __future__ import annotations

import io
from typing import Any

import pytest

from qm_proxy.record import ToolCallSeen
from qm_proxy.terminal import Terminal, line, seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0 ms"),
        (0.8124, "812 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (3.214, "3.21 s"),
        (99.99, "99.99 s"),
        (100.0, "1m40s"),
        (247.9, "4m07s"),
        (3600.0, "60m00s"),
    ],
)
def test_seconds_at_a_glance(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_a_line_says_who_what_and_how_it_ended(make: Any) -> None:
    calls = [ToolCallSeen("c", "bash", 1.0, 10), ToolCallSeen("d", "bash", 1.0, 10)]
    text = line(make.record(tool_calls=calls, slow_because="It waited 2 s for the model to load."))
    first, second = text.splitlines()
    for part in ("opencode", "qwen3:8b", "250 ms", "97.5 tok/s", "900→5", "3.50 s", "stop", "2 calls"):
        assert part in first
    assert second.strip() == "It waited 2 s for the model to load."
    assert "1 call" in line(make.record(tool_calls=calls[:1]))
    assert "calls" not in line(make.record(tool_calls=calls[:1]))


def test_unknown_is_a_dash(make: Any) -> None:
    unknown = {"ttft_s": None, "tokens_per_s": None, "output_tokens": None, "input_tokens": None, "slow_because": None}
    text = line(make.record(model=None, **unknown))
    assert text.count("–") == 4
    assert "/api/chat" in text
    assert "0" not in text.split("ttft", 1)[1].replace("3.50 s", "")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"ending": "client_disconnect"}, "client left"),
        ({"ending": "upstream_truncated"}, "cut short"),
        ({"ending": "upstream_unreachable"}, "unreachable"),
        ({"ending": "guard_cut"}, "cut by guard"),
        ({"ending": "shutdown"}, "shut down"),
        ({"ending": "upstream_error", "http_status": 404}, "error 404"),
        ({"ending": "upstream_error", "http_status": 200}, "error"),
        ({"finish_reason": None}, "ok"),
    ],
)
def test_how_it_ended(make: Any, changes: dict[str, Any], word: str) -> None:
    assert line(make.record(slow_because=None, **changes)).rstrip().endswith(word)


def test_an_error_has_a_line_of_its_own(make: Any) -> None:
    text = line(make.record(ending="upstream_error", http_status=500, error="model runner has died", slow_because=None))
    assert text.splitlines()[1].strip() == "model runner has died"
    assert "died" not in line(make.record(error="model runner has died"))


def test_the_sink_prints_answers_and_findings_only(make: Any) -> None:
    out = io.StringIO()
    terminal = Terminal(out)
    terminal.opened(make.opened())
    terminal.closed(make.record(make.opened(operation=None, route="/api/tags", model=None)))
    assert out.getvalue() == ""
    terminal.closed(
        make.record(make.opened(operation=None, route="/api/tags", model=None), ending="upstream_unreachable", slow_because=None)
    )
    terminal.found(make.finding("stall", severity="violation"))
    terminal.closed(make.record())
    lines = out.getvalue().splitlines()
    assert "/api/tags" in lines[0]
    assert lines[1].strip() == "! stall: A gap of 0.4 s."
    assert "\033" not in out.getvalue()


def test_colour_where_there_is_a_terminal(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Terminal(Screen()).colour is True
    monkeypatch.setenv("NO_COLOR", "1")
    assert Terminal(Screen()).colour is False
    out = io.StringIO()
    Terminal(out, colour=True).closed(make.record())
    assert "\033[32mstop\033[0m" in out.getvalue()


@pytest.mark.parametrize("evil", ["a\033[2Jb", "a\rb", "a\nb", "a\x9b31mb", "a\x00b", "a\u202eb"])
def test_what_others_wrote_cannot_command_the_terminal(make: Any, evil: str) -> None:
    """A model's name and an error's text come from outside."""
    out = io.StringIO()
    terminal = Terminal(out)
    terminal.closed(
        make.record(model=evil, client="x", error=evil, ending="upstream_error", finish_reason=evil, slow_because=evil)
    )
    terminal.closed(make.record(finish_reason=evil, slow_because=None))
    terminal.found(make.finding(summary=evil))
    printed = out.getvalue()
    assert all(c == "\n" or c.isprintable() for c in printed)
    assert printed.count("\n") == 5
