from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from probes.agent.dialogue import Conduct
from probes.agent.generator import generate
from probes.agent.replay import replay
from probes.agent.run import play_run
from probes.agent.taxonomy import Outcome, judge
from probes.agent.tiers import tier_named
from probes.agent.trace import Played
from probes.report import replays
from probes.report.replays import STYLE, folded, fragment, page, spoken_run
from probes.runner import replay as drive
from probes.sim.agent_policies import POLICIES, answer_with

Scripted = Callable[..., tuple[Played, Outcome]]


@pytest.fixture
def scripted() -> Scripted:
    """Policy, tier name, seed → the run and its outcome."""

    def run(policy: str, tier: str, seed: int, *, go_on: bool = False) -> tuple[Played, Outcome]:
        instance = generate(tier_named(tier), seed)
        played = drive(play_run(instance, Conduct("m"), f"agent/native/{tier}/{seed}/0", go_on=go_on), answer_with(policy))
        return played, judge(played)

    return run


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
        reader = _read(page([replay(played, outcome)], "one"))
        assert "script" not in reader.tags
        assert reader.tags.count("section") == 1


def test_what_is_shown(scripted: Scripted) -> None:
    played, outcome = scripted("looper", "hard", 0, go_on=True)
    shown = replay(played, outcome)
    text = "".join(_read(fragment(shown)).words)
    assert "InfiniteLoop / repeat" in text
    assert text.count("the oracle") >= 3
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
    reader = _read(page([shown], hostile))
    assert not {"script", "img"} & set(reader.tags)
    assert "".join(reader.words).count("alert(1)") >= 7


def test_both_themes_and_reduced_widths_are_styled() -> None:
    assert "prefers-color-scheme:dark" in STYLE
    assert "overflow-wrap:anywhere" in STYLE


def test_several_runs_stand_behind_their_lines(scripted: Scripted) -> None:
    shown = [replay(*scripted(policy, "hard", 0)) for policy in ("looper", "oracle", "mumbler")]
    reader = _read(folded(shown))
    assert reader.tags.count("details") == 6  # a line for each run, and its task
    whole = _read(page(shown, "three runs"))
    assert whole.tags.count("h1") == 1
    text = "".join(reader.words)
    assert "no step brought the goal nearer" in text
    assert "First I would read the file" in text  # what a turn without a call said


def test_a_run_let_go_on_says_so(scripted: Scripted) -> None:
    played, outcome = scripted("looper", "hard", 0, go_on=True)
    assert "Let go on after the proven loop" in fragment(replay(played, outcome))


def test_a_page_of_many_runs_is_bounded_and_shows_one_of_each_first(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound a run is a line and the command that walks it; the first of every outcome is always laid open."""
    shown = [replay(*scripted("looper", "hard", seed)) for seed in range(12)] + [replay(*scripted("oracle", "hard", 12))]
    whole = page(shown, "all")
    assert whole.count('<section class="qm-replay">') == 13
    monkeypatch.setattr(replays, "LARGEST", len(whole) // 3)
    small = page(shown, "few")
    _read(small)
    laid = small.count('<section class="qm-replay">')
    assert 2 <= laid < 13
    assert small.count("not laid out here") == 13 - laid
    assert '<details id="hard/0">' in small
    assert '<details id="hard/12">' in small  # the only one that passed
    assert '<p class="line" id="hard/11">' in small
    assert len(small) < len(whole) // 2


def test_copies_point_at_the_first(scripted: Scripted) -> None:
    one = replay(*scripted("looper", "hard", 0))
    other = replay(*scripted("oracle", "hard", 1)) | {"run": "agent/native/hard/3/0"}
    copies = [one | {"run": f"agent/native/hard/{n}/0"} for n in (1, 2, 4)]
    text = page([one, *copies[:2], other, copies[2]], "five")
    _read(text)
    assert text.count('<section class="qm-replay">') == 2
    assert text.count('the same calls and answers as <a href="#hard/0">hard/0</a>') == 2
    assert "2 runs, hard/1 to hard/2" in text
    assert "</b> hard/4 <" in text


def test_runs_are_named_as_a_reader_names_them() -> None:
    assert spoken_run("agent/native/hard/3/0") == "hard/3"
    assert spoken_run("agent/prompt-json/hard/3/1") == "prompt-json/hard/3/1"
    assert spoken_run("compat/hard-2/7") == "compat/hard-2/7"
