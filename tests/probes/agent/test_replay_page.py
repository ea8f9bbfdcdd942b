from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from probes.agent.replay import replay
from probes.agent.replay_page import STYLE, fragment, page
from probes.agent.taxonomy import Outcome
from probes.agent.trace import Played
from probes.sim.agent_policies import POLICIES

Scripted = Callable[..., tuple[Played, Outcome]]
VOID = {"meta", "circle", "line", "path", "br"}


class _Balanced(HTMLParser):
    """Raises when a tag is closed that is not open; keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _read(html: str) -> _Balanced:
    reader = _Balanced()
    reader.feed(html)
    assert reader.open == []
    return reader


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_replay_is_a_well_formed_page_without_script(policy: str, scripted: Scripted) -> None:
    for tier in ("easy", "hard"):
        played, outcome = scripted(policy, tier, 1)
        reader = _read(page(replay(played, outcome)))
        assert "script" not in reader.tags
        assert reader.tags.count("section") == 1


def test_what_is_shown(scripted: Scripted) -> None:
    played, outcome = scripted("looper", "hard", 0, go_on=True)
    shown = replay(played, outcome)
    text = "".join(_read(fragment(shown)).words)
    assert "InfiniteLoop / repeat" in text
    assert text.count("the oracle: ") >= 3
    assert "progress stopped here" in text
    assert f"… the same up to step {played.instance.horizon}" in text
    assert fragment(shown).count("<circle") == 3


def test_a_models_words_are_text_and_never_markup(scripted: Scripted) -> None:
    played, outcome = scripted("oracle", "easy", 0)
    hostile = "<script>alert(1)</script><img src=x onerror=y>"
    shown = replay(played, outcome)
    shown["steps"][0] |= {"answer": hostile, "call": hostile, "arguments": {hostile: hostile}, "detail": hostile}
    shown["steps"][1]["oracle"] = {"call": hostile, "arguments": {"a": hostile}}
    shown |= {"task": hostile, "why": hostile, "sub": hostile, "instance": hostile}
    reader = _read(page(shown))
    assert not {"script", "img"} & set(reader.tags)
    assert "".join(reader.words).count("alert(1)") >= 7


def test_both_themes_and_reduced_widths_are_styled() -> None:
    assert "prefers-color-scheme:dark" in STYLE
    assert "overflow-wrap:anywhere" in STYLE
