from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.events import (
    Asked,
    Began,
    Cut,
    Event,
    Finished,
    Message,
    Nanoseconds,
    OfferedTool,
    PastCall,
    TextDelta,
    ToolCall,
    Usage,
)
from qm_proxy.findings import Finding
from qm_proxy.ids import Ids
from qm_proxy.measure.known import Known
from qm_proxy.measure.trajectory import Marker
from qm_proxy.measure.wall_clock import iso
from qm_proxy.record import Opened, Placed, Record
from qm_proxy.sessions import PROMPT_CHARACTERS, Sessions, client_ids
from qm_proxy.store.sqlite import Stored
from qm_proxy.store.writer import Writer

S = 10**9


@dataclass
class Said:
    """An answer: its text and calls, and how it ended."""

    text: str = ""
    calls: tuple[PastCall, ...] = ()
    ending: str = "complete"
    response_id: str | None = None
    input_tokens: int | None = None
    prefill_s: float | None = None

    def message(self) -> Message:
        return Message("assistant", self.text, "", self.calls)


@dataclass
class World:
    """A clock, and sessions under test."""

    sessions: Sessions
    now: int = 1000 * S
    n: int = 0
    found: list[Finding] = field(default_factory=list)

    def open(self, *messages: Message, tools: str = "", **how: Any) -> Opened:
        self.n += 1
        operation = how.pop("operation", "chat")
        asked = Asked(
            Nanoseconds(self.now), "ollama", operation, "m", True, messages,
            tuple(OfferedTool(name, "function", b"{}") for name in tools.split()),
            previous_response_id=how.pop("previous", None), options=how.pop("options", None), hints=how.pop("body_hints", None),
        )  # fmt: skip
        values: dict[str, Any] = {"client": "aclient", "user_agent": "ua", "hints": {}, "asked": asked, "connection": 1}
        values |= {"id": f"exchange {self.n}", "started_at": "", "t_ns": Nanoseconds(self.now), "operation": operation}
        values |= {"method": "POST", "route": "/", "dialect": "ollama", "model": "m", "streamed": True, "origin": "client"}
        opened = Opened(**(values | how))
        self.sessions.opened(opened)
        return opened

    def close(self, opened: Opened, said: Said | None = None, seconds: float = 2.0) -> Placed | None:
        said = said or Said("an answer that is long enough to be told from every other answer there is " + opened.id)
        self.now = max(self.now, opened.t_ns + round(seconds * S))
        t = Nanoseconds(opened.t_ns + round(seconds * S))
        events: list[Event] = [Began(t, "m", said.response_id), TextDelta(t, said.text)]
        events += [ToolCall(t, i, call.call_id, call.name, call.arguments) for i, call in enumerate(said.calls)]
        if said.input_tokens is not None:
            events.append(Usage(t, said.input_tokens, prefill_ns=None if said.prefill_s is None else round(said.prefill_s * S)))
        events.append(Finished(t, "stop") if said.ending == "complete" else Cut(t, "client_disconnect"))
        watch = self.sessions.watch(opened.id)
        if watch is not None:
            for event in events:
                self.found += watch.see(event)
        values: dict[str, Any] = dict.fromkeys(Record.__dataclass_fields__)
        values |= {"id": opened.id, "total_s": seconds, "ending": said.ending, "opened": opened, "findings": [], "tool_calls": []}
        values |= {"input_tokens": said.input_tokens, "prefill_s": said.prefill_s}
        self.sessions.closed(Record(**values))
        return opened.placed

    def ask(self, *messages: Message, said: Said | None = None, after: float = 1.0, seconds: float = 2.0, **how: Any) -> Placed:
        """One exchange, whole."""
        self.now += round(after * S)
        opened = self.open(*messages, **how)
        self.close(opened, said, seconds)
        assert opened.placed is not None
        return opened.placed


def new_world(**settings: Any) -> World:
    ids = Ids()
    return World(Sessions(key=b"k", new_id=lambda _: ids.new(0), **settings))


@pytest.fixture
def world() -> World:
    return new_world()


SYSTEM = Message("system", "You are a coding agent. Be brief.")
U1, U2, U3 = (Message("user", f"{text} the parser, then run its tests") for text in ("fix", "rewrite", "document"))
A1 = Said("I have looked at the parser and changed three lines of it, all tests pass now.")
A2 = Said("The parser is rewritten from scratch, and it is twice as fast as it was before that.")
LS = PastCall("call_ab12cd34", "bash", '{"command":"ls"}')
TOOLS = "bash read"


def _is(placed: Placed, relation: str, trajectory: int, turn: int, source: str | None = None) -> bool:
    return (placed.relation, placed.trajectory, placed.turn) == (relation, trajectory, turn) and source in (None, placed.source)


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_conversation_is_one_session(world: World) -> None:
    first = world.ask(SYSTEM, U1, said=A1)
    second = world.ask(SYSTEM, U1, A1.message(), U2, said=A2)
    third = world.ask(SYSTEM, U1, A1.message(), U2, A2.message(), U3)
    assert first.session_id == second.session_id == third.session_id
    assert _is(first, "start", 0, 1, "new")
    assert _is(second, "next", 0, 2, "prefix")
    assert _is(third, "next", 0, 3, "prefix")
    assert (first.previous_exchange_id, third.previous_exchange_id) == (None, "exchange 2")
    assert [p.new_messages for p in (first, second, third)] == [2, 1, 1]


def test_a_long_answer_is_the_same_in_many_small_pieces(world: World) -> None:
    text = "word " * 1000
    opened = world.open(SYSTEM, U1)
    watch = world.sessions.watch(opened.id)
    assert watch is not None
    for i in range(0, len(text), 5):
        watch.see(TextDelta(Nanoseconds(world.now), text[i : i + 5]))
    world.close(opened, Said(""))
    assert _is(world.ask(SYSTEM, U1, Message("assistant", text), U2), "next", 0, 2)
    assert world.sessions.stitcher.known.standing(opened.placed.expected or 0)  # type: ignore[union-attr]


def test_what_is_no_generation_belongs_to_no_session(world: World) -> None:
    assert world.open(U1, operation="embeddings").placed is None
    assert world.open().placed is None
    assert world.sessions.watch("exchange 1") is None
    assert world.close(world.open(U1, operation="embeddings")) is None


def test_parallel_sessions_with_the_same_beginning_stay_apart(world: World) -> None:
    a, b = world.open(SYSTEM, U1), world.open(SYSTEM, U1, connection=2)
    world.close(a, A1)
    world.close(b, A2)
    again_a, again_b = world.ask(SYSTEM, U1, A1.message(), U3), world.ask(SYSTEM, U1, A2.message(), U3)
    assert a.placed is not None
    assert b.placed is not None
    assert a.placed.session_id != b.placed.session_id
    assert (again_a.session_id, again_b.session_id) == (a.placed.session_id, b.placed.session_id)


def test_the_same_question_later_is_a_new_session(world: World) -> None:
    first = world.ask(SYSTEM, U1, said=A1)
    assert world.ask(SYSTEM, U1, said=A2).session_id != first.session_id


def test_few_shot_examples_prove_nothing(world: World) -> None:
    canned = (Message("user", "an example"), Message("assistant", "a canned answer, the same in every session " * 3))
    first = world.ask(SYSTEM, *canned, U1)
    assert world.ask(SYSTEM, *canned, U2).session_id != first.session_id


def test_histories_of_different_clients_never_meet(world: World) -> None:
    first = world.ask(U1, said=A1)
    assert world.ask(U1, A1.message(), U2, client="other").session_id != first.session_id
    one, two = (world.ask(U1, A1.message(), U2, client="unknown", user_agent=agent, said=A2) for agent in ("one", "two"))
    assert one.session_id != two.session_id


def test_a_first_answer_that_comes_back_changed(world: World) -> None:
    first = world.ask(SYSTEM, U1, said=A1)
    changed = world.ask(SYSTEM, U1, Message("assistant", "I changed it."), U2)
    assert changed.session_id == first.session_id
    assert _is(changed, "next", 0, 2)


def test_an_answer_that_we_could_not_read(world: World) -> None:
    first = world.ask(SYSTEM, U1, said=Said(""))
    assert world.ask(SYSTEM, U1, A1.message(), U2).session_id == first.session_id


def test_prompts_without_messages_go_on_where_one_is_the_beginning_of_the_other(world: World) -> None:
    text = "Once upon a time there was a proxy that measured every token of its stream."
    first = world.ask(Message("user", text), operation="text_completion")
    second = world.ask(Message("user", text + " It was quick."), operation="text_completion")
    assert (second.session_id, second.relation, second.turn) == (first.session_id, "next", 2)
    assert world.ask(Message("user", "Once upon"), operation="text_completion").session_id != first.session_id
    assert world.open(Message("user", text), operation="text_completion", options={"suffix": True}).placed is None


# --- again, elsewhere, changed ----------------------------------------------------------------------------------------


def test_a_failed_request_that_is_sent_again_keeps_its_turn(world: World) -> None:
    failed = world.ask(SYSTEM, U1, said=Said("I ha", ending="client_disconnect"))
    again = world.ask(SYSTEM, U1, said=A1)
    assert again.session_id == failed.session_id
    assert _is(again, "retry", 0, 1)
    assert _is(world.ask(SYSTEM, U1, A1.message(), U2), "next", 0, 2)


def test_a_failed_request_is_not_tried_again_an_hour_later(world: World) -> None:
    failed = world.ask(SYSTEM, U1, said=Said("", ending="upstream_error"))
    assert world.ask(SYSTEM, U1, after=3600).session_id != failed.session_id


def test_an_answer_asked_for_again(world: World) -> None:
    world.ask(SYSTEM, U1, said=A1)
    second = world.ask(SYSTEM, U1, A1.message(), U2, said=A2)
    again = world.ask(SYSTEM, U1, A1.message(), U2, said=Said("Another way to rewrite it, which is longer than the first one."))
    assert again.session_id == second.session_id
    assert _is(again, "retry", 0, 2)


def test_an_edited_message_is_a_branch(world: World) -> None:
    world.ask(SYSTEM, U1, said=A1)
    world.ask(SYSTEM, U1, A1.message(), U2, said=A2)
    main = world.ask(SYSTEM, U1, A1.message(), U2, A2.message(), U3)
    branch = world.ask(SYSTEM, U1, A1.message(), U3, said=Said("The documentation is written, see docs, it has four pages."))
    assert branch.session_id == main.session_id
    assert _is(branch, "fork", 1, 2)
    assert (branch.parent_trajectory, branch.previous_exchange_id) == (0, "exchange 1")
    rest = (U3, Message("assistant", "The documentation is written, see docs, it has four pages."), U1)
    assert _is(world.ask(SYSTEM, U1, A1.message(), *rest), "next", 1, 3)
    assert _is(world.ask(SYSTEM, U1, A1.message(), U2, A2.message(), U3, Message("user", "and now")), "next", 0, 4)


def test_a_failed_turn_that_is_left_out(world: World) -> None:
    world.ask(SYSTEM, U1, said=A1)
    world.ask(SYSTEM, U1, A1.message(), U2, said=Said("", ending="upstream_error"))
    assert _is(world.ask(SYSTEM, U1, A1.message(), U3), "retry", 0, 2)


def test_two_branches_at_the_same_time(world: World) -> None:
    world.ask(SYSTEM, U1, said=A1)
    one, other = world.open(SYSTEM, U1, A1.message(), U2), world.open(SYSTEM, U1, A1.message(), U3)
    assert one.placed is not None
    assert other.placed is not None
    assert one.placed.session_id == other.placed.session_id
    assert (_is(one.placed, "next", 0, 2), _is(other.placed, "fork", 1, 2)) == (True, True)


def test_old_results_that_the_client_clears(world: World) -> None:
    history = [SYSTEM, U1]
    first = None
    for i in range(8):
        call = PastCall(f"call_{i:08}", "bash", json.dumps({"command": f"step {i}"}))
        said = Said(f"Now comes step number {i} of the plan that we made together.", (call,))
        placed = world.ask(*history, said=said, tools=TOOLS)
        first = first or placed
        history += [said.message(), Message("tool", f"the long result of step {i} " * 10, call_id=call.call_id)]
    history[3] = replace(history[3], text="[cleared]")
    placed = world.ask(*history, tools=TOOLS)
    assert placed.session_id == first.session_id  # type: ignore[union-attr]
    assert _is(placed, "rewrite", 0, 9)
    assert placed.prefix is not None
    assert (placed.prefix.broken_at, placed.prefix.message, placed.prefix.role) == ("message", 3, "tool")


def test_a_history_that_is_summarised(world: World) -> None:
    first = world.ask(SYSTEM, U1, said=A1, tools=TOOLS)
    world.ask(SYSTEM, U1, A1.message(), U2, said=A2, tools=TOOLS)
    summary = "\n".join(f"{i}. The parser was changed in place {i}, because test {i} had failed before." for i in range(6))
    world.ask(SYSTEM, U1, A1.message(), U2, A2.message(), Message("user", "Summarise."), said=Said(summary), tools=TOOLS)
    compacted = world.ask(SYSTEM, Message("user", f"Go on from this summary:\n{summary}\nThank you."), tools=TOOLS, said=A1)
    assert compacted.session_id == first.session_id
    assert _is(compacted, "compaction", 0, 4, "prefix")
    opening = Message("user", f"Go on from this summary:\n{summary}\nThank you.")
    assert _is(world.ask(SYSTEM, opening, A1.message(), U3, tools=TOOLS), "next", 0, 5)
    assert world.ask(SYSTEM, opening, U2, tools=TOOLS).session_id == first.session_id


def test_a_history_that_loses_its_beginning(world: World) -> None:
    history: list[Message] = [SYSTEM]
    first = None
    for i in range(6):
        history.append(Message("user", f"question number {i} about the parser"))
        said = Said(f"This is the answer to question {i}, and it is long enough to be told from the others.")
        placed = world.ask(*history, said=said)
        first = first or placed
        history.append(said.message())
    shortened = world.ask(SYSTEM, *history[-4:], U1)
    assert shortened.session_id == first.session_id  # type: ignore[union-attr]
    assert _is(shortened, "compaction", 0, 7)


def test_calls_are_known_by_their_ids_where_answers_are_short(world: World) -> None:
    first = world.ask(SYSTEM, U1, said=Said("", (LS,)), tools=TOOLS)
    kept = (Message("user", "go on"), Message("assistant", "", "", (LS,)), Message("tool", "a.py", call_id=LS.call_id))
    assert world.ask(SYSTEM, *kept, tools=TOOLS).session_id == first.session_id


def test_ids_that_every_session_counts_from_zero_tell_nothing(world: World) -> None:
    counted = replace(LS, call_id="functions.bash:0")
    first = world.ask(SYSTEM, U1, said=Said("", (counted,)), tools=TOOLS)
    second = world.ask(SYSTEM, U2, said=Said("", (counted,)), tools=TOOLS)
    third = world.ask(SYSTEM, U3, Message("assistant", "", "", (counted,)), Message("tool", "x"), tools=TOOLS)
    assert len({first.session_id, second.session_id, third.session_id}) == 3


# --- explicit ids -----------------------------------------------------------------------------------------------------


def test_a_clients_own_id_decides(world: World) -> None:
    one, two = {"x-session-id": "ses_1"}, {"x-session-id": "ses_2"}
    first = world.ask(SYSTEM, U1, said=A1, hints=one, tools=TOOLS)
    other = world.ask(SYSTEM, U1, said=A1, hints=two, tools=TOOLS)
    assert first.session_id != other.session_id
    assert (first.source, first.client_session) == ("header", "ses_1")
    assert world.ask(SYSTEM, U1, A1.message(), U2, hints=two, tools=TOOLS).session_id == other.session_id
    assert world.ask(SYSTEM, U1, A1.message(), U2, hints=one, tools=TOOLS).session_id == first.session_id


def test_a_title_is_a_side_call_whenever_it_comes(world: World) -> None:
    hints = {"x-session-id": "ses_1"}
    title = (Message("system", "You name conversations."), Message("user", f"Write a title:\n{U1.text}"))
    early = world.ask(*title, hints=hints)
    main = world.ask(SYSTEM, U1, said=A1, hints=hints, tools=TOOLS)
    late = world.ask(title[0], Message("user", "Write a better title."), hints=hints)
    assert early.session_id == main.session_id == late.session_id
    assert _is(early, "side", 1, 1)
    assert _is(main, "start", 0, 1)
    assert _is(late, "side", 2, 1)
    assert _is(world.ask(SYSTEM, U1, A1.message(), U2, hints=hints, tools=TOOLS), "next", 0, 2)


def test_a_title_without_an_id_is_known_by_what_it_quotes(world: World) -> None:
    main = world.ask(SYSTEM, U1, said=A1, tools=TOOLS)
    title = world.ask(Message("system", "You name conversations."), Message("user", f'Write a title for:\n"{U1.text}"'))
    assert title.session_id == main.session_id
    assert (title.relation, title.parent_trajectory) == ("side", 0)
    late = world.ask(Message("system", "You name conversations."), Message("user", f"Title for: {U1.text}"), after=600)
    assert late.session_id != main.session_id


def test_a_sub_agent_with_an_id_of_its_own(world: World) -> None:
    main = {"x-claude-code-session-id": "s1"}
    agent = main | {"x-claude-code-agent-id": "a1"}
    first = world.ask(SYSTEM, U1, said=Said("", (LS,)), hints=main, tools=TOOLS)
    sub = world.ask(Message("system", "You explore."), U2, said=A2, hints=agent, tools="read")
    assert sub.session_id == first.session_id
    assert _is(sub, "subagent", 1, 1, "header")
    assert _is(world.ask(Message("system", "You explore."), U2, A2.message(), U3, hints=agent, tools="read"), "next", 1, 2)
    again = world.ask(Message("system", "You explore."), U1, said=A1, hints=agent, tools="read")
    assert _is(again, "fork", 2, 1)
    assert _is(world.ask(Message("system", "You explore."), U1, A1.message(), U3, hints=agent, tools="read"), "next", 2, 2)


def test_a_sub_agent_that_names_its_parent(world: World) -> None:
    first = world.ask(SYSTEM, U1, said=A1, hints={"x-session-id": "s1"}, tools=TOOLS)
    child = {"x-session-id": "s2", "x-parent-session-id": "s1"}
    sub = world.ask(Message("system", "You explore."), U2, said=A2, hints=child, tools="read")
    assert (sub.session_id, sub.relation, sub.client_session) == (first.session_id, "subagent", "s1")
    assert _is(world.ask(Message("system", "You explore."), U2, A2.message(), U3, hints=child, tools="read"), "next", 1, 2)


def test_a_sub_agent_without_an_id_is_known_by_its_prompt(world: World) -> None:
    task = PastCall("call_11112222", "task", json.dumps({"description": "look", "prompt": "Explore the repository and report."}))
    main = world.ask(SYSTEM, U1, said=Said("", (task,)), tools="bash task")
    sub = world.ask(Message("system", "You explore."), Message("user", "Explore the repository and report."), tools="bash")
    assert sub.session_id == main.session_id
    assert _is(sub, "subagent", 1, 1)
    result = Message("tool", "It has a parser.", call_id=task.call_id)
    assert _is(world.ask(SYSTEM, U1, Message("assistant", "", "", (task,)), result, tools="bash task"), "next", 0, 2)
    after = world.ask(Message("system", "You explore."), Message("user", "Explore the repository and report."), tools="bash")
    assert after.session_id != main.session_id


def test_previous_response_ids(world: World) -> None:
    first = world.ask(SYSTEM, U1, said=replace(A1, response_id="resp_1"))
    second = world.ask(U2, previous="resp_1", said=replace(A2, response_id="resp_2"))
    third = world.ask(U3, previous="resp_2", said=Said("third", response_id="resp_3"))
    branch = world.ask(U1, previous="resp_1")
    assert {p.session_id for p in (second, third, branch)} == {first.session_id}
    assert _is(second, "next", 0, 2, "responses")
    assert _is(third, "next", 0, 3, "responses")
    assert _is(branch, "fork", 1, 2, "responses")
    assert third.prefix is None
    assert world.ask(U2, previous="resp_unknown").session_id != first.session_id


def test_a_failed_response_is_asked_for_again(world: World) -> None:
    world.ask(SYSTEM, U1, said=replace(A1, response_id="resp_1"))
    world.ask(U2, previous="resp_1", said=Said("", ending="client_disconnect"))
    assert _is(world.ask(U2, previous="resp_1", said=A2), "retry", 0, 2)
    assert _is(world.ask(U2, previous="resp_1"), "retry", 0, 2)


@pytest.mark.parametrize(
    ("client", "hints", "expected"),
    [
        ("claude-code", {"x-claude-code-session-id": "a", "metadata.user_id": "b"}, ("a", "header", None, None)),
        ("claude-code", {"metadata.user_id": "b"}, ("b", "metadata", None, None)),
        ("claude-code", {"x-claude-code-session-id": "a", "x-claude-code-agent-id": "x"}, ("a", "header", "x", None)),
        ("codex", {"session-id": "a", "thread-id": "a"}, ("a", "header", None, None)),
        ("codex", {"session-id": "a", "thread-id": "t"}, ("a", "header", "t", None)),
        ("codex", {"prompt_cache_key": "k"}, ("k", "metadata", None, None)),
        ("openai-python", {"prompt_cache_key": "k"}, (None, "metadata", None, None)),
        ("opencode", {"x-session-id": "a", "x-session-affinity": "a", "x-parent-session-id": "p"}, ("a", "header", None, "p")),
        ("unknown", {}, (None, "metadata", None, None)),
    ],
)
def test_what_clients_say_about_themselves(client: str, hints: dict[str, str], expected: tuple[Any, ...]) -> None:
    assert tuple(client_ids(client, hints)) == expected


# --- times ------------------------------------------------------------------------------------------------------------


def test_wall_time_is_divided_without_rest(world: World) -> None:
    begun = world.now
    first = world.ask(SYSTEM, U1, said=Said("", (LS,)), tools=TOOLS, after=0, seconds=2)
    result = (Message("assistant", "", "", (LS,)), Message("tool", "a.py", call_id=LS.call_id))
    second = world.ask(SYSTEM, U1, *result, said=A1, tools=TOOLS, after=5, seconds=3)
    third = world.ask(SYSTEM, U1, *result, A1.message(), U2, tools=TOOLS, after=40, seconds=4)
    assert [(p.wait_s, p.waited_for, p.model_s) for p in (first, second, third)] == [
        (None, None, 2.0),
        (5.0, "tools", 3.0),
        (40.0, "user", 4.0),
    ]
    total = sum((p.wait_s or 0) + (p.model_s or 0) for p in (first, second, third))
    assert total == (world.now - begun) / S


def test_exchanges_that_overlap_are_counted_once(world: World) -> None:
    hints = {"x-session-id": "s1"}
    first = world.open(SYSTEM, U1, hints=hints, tools=TOOLS)
    world.now += 1 * S
    inner = world.open(Message("system", "You name conversations."), Message("user", "title"), hints=hints)
    world.close(inner, seconds=2)
    world.close(first, seconds=10)
    assert inner.placed is not None
    assert first.placed is not None
    assert (inner.placed.wait_s, inner.placed.model_s) == (None, 3.0)
    assert first.placed.model_s == 7.0
    assert world.ask(SYSTEM, U1, hints=hints, tools=TOOLS, after=6).wait_s == 6.0


def test_a_tools_turnaround_runs_from_its_call_to_the_request_that_brings_its_result(world: World) -> None:
    other = PastCall("call_99998888", "read", '{"path":"a"}')
    world.ask(SYSTEM, U1, said=Said("", (LS, other)), tools=TOOLS, seconds=2)
    results = (Message("tool", "2", call_id=other.call_id, is_error=True), Message("tool", "1", call_id=LS.call_id))
    placed = world.ask(SYSTEM, U1, Message("assistant", "", "", (LS, other)), *results, said=A1, tools=TOOLS, after=7.5)
    assert [(t.exchange_id, t.index, t.name, t.is_error, t.seconds) for t in placed.results] == [
        ("exchange 1", 1, "read", True, 7.5),
        ("exchange 1", 0, "bash", None, 7.5),
    ]
    history = (SYSTEM, U1, Message("assistant", "", "", (LS, other)), *results, A1.message(), U2)
    assert world.ask(*history, tools=TOOLS).results == []


@pytest.mark.parametrize("name", ["", "bash"])
def test_results_without_ids_are_paired_by_name_and_order(world: World, name: str) -> None:
    calls = tuple(replace(LS, call_id="", arguments=json.dumps({"command": f"ls {i}"})) for i in range(2))
    world.ask(SYSTEM, U1, said=Said("", calls), tools=TOOLS)
    results = tuple(Message("tool", str(i), tool_name=name) for i in range(2))
    placed = world.ask(SYSTEM, U1, Message("assistant", "", "", calls), *results, tools=TOOLS)
    assert [(t.index, t.name) for t in placed.results] == [(0, "bash"), (1, "bash")]


def test_a_result_of_an_unknown_call_pairs_with_nothing(world: World) -> None:
    world.ask(SYSTEM, U1, said=Said("", (LS,)), tools=TOOLS)
    stranger = Message("tool", "x", call_id="call_of_another")
    assert world.ask(SYSTEM, U1, Message("assistant", "", "", (LS,)), stranger, tools=TOOLS).results == []


# --- the prefix -------------------------------------------------------------------------------------------------------


def _long(mark: str) -> Message:
    return Message("user", f"{mark} " + "context " * 2000)


def test_a_broken_prefix_is_found_with_its_price(world: World) -> None:
    dated = [Message("system", f"It is {time}. " + "rules " * 1000) for time in ("12:00", "12:01", "12:02", "12:03", "12:04")]
    history = [_long("first")]
    for i, system in enumerate(dated):
        said = Said(f"answer {i} that is long enough to be told from every other one", input_tokens=5000, prefill_s=4.0)
        placed = world.ask(system, *history, said=said)
        history += [said.message(), Message("user", f"question {i}")]
    assert _is(placed, "next", 0, 5)
    assert [finding.evidence["times"] for finding in world.found] == [1, 2, 4]
    finding = world.found[0]
    assert (finding.kind, finding.severity, finding.exchange_id) == ("cache.broken", "suspect", None)
    assert (finding.evidence["where"], finding.evidence["message"], finding.evidence["character"]) == ("message", 0, 10)
    assert finding.tokens_wasted is not None
    assert 4900 <= finding.tokens_wasted <= 5000
    assert finding.evidence["lost_s"] == pytest.approx(4.0, rel=0.02)
    assert "message 0 (system) at character 10" in finding.summary
    assert "first" not in json.dumps(finding.evidence)
    assert placed.prefix is not None
    assert placed.prefix.difference is not None


def test_what_is_only_added_is_no_finding(world: World) -> None:
    world.ask(SYSTEM, _long("a"), said=A1)
    world.ask(SYSTEM, _long("a"), A1.message(), U2)
    assert world.found == []


def test_a_small_change_and_a_compaction_are_no_findings(world: World) -> None:
    world.ask(Message("system", "It is noon."), U1, said=A1)
    world.ask(Message("system", "It is one."), U1, A1.message(), U2)
    hints = {"x-session-id": "s"}
    history = [SYSTEM, _long("a")]
    for i in range(3):
        said = Said(f"answer {i} that is long enough to be told from every other one")
        world.ask(*history, hints=hints, said=said)
        history += [said.message(), Message("user", f"question {i}")]
    compacted = world.ask(SYSTEM, _long("a summary from somewhere else"), hints=hints)
    assert _is(compacted, "compaction", 0, 4)
    assert compacted.prefix is not None
    assert compacted.prefix.broken_at == "message"
    assert world.found == []


def test_another_question_under_the_same_id_begins_another_line(world: World) -> None:
    hints = {"x-session-id": "s"}
    first = world.ask(SYSTEM, U1, hints=hints, said=A1)
    second = world.ask(SYSTEM, U2, hints=hints, said=A2)
    assert second.session_id == first.session_id
    assert _is(second, "fork", 1, 1)
    assert _is(world.ask(SYSTEM, U2, A2.message(), U3, hints=hints), "next", 1, 2)


def test_the_text_of_former_prompts_is_held_in_bounds() -> None:
    world = new_world(prompt_characters=30_000)
    for i in range(5):
        world.ask(SYSTEM, _long(f"session {i}"), said=Said(f"the answer of session {i}, which no other session has"))
    assert world.sessions.status()["held_characters"] <= 30_000
    said = Message("assistant", "the answer of session 0, which no other session has")
    old = world.ask(Message("system", "Changed."), _long("session 0"), said, U2)
    assert old.prefix is not None
    assert (old.prefix.message, old.prefix.character, old.prefix.difference) == (0, None, None)
    assert PROMPT_CHARACTERS > 30_000


def test_no_excerpts() -> None:
    world = new_world(excerpts=False)
    world.ask(SYSTEM, U1, said=A1)
    changed = world.ask(Message("system", "Changed."), U1, A1.message(), U2)
    assert changed.prefix is not None
    assert (changed.prefix.character, changed.prefix.difference) == (0, None)


# --- bounds and restarts ----------------------------------------------------------------------------------------------


def test_sessions_are_forgotten_least_recently_used_first() -> None:
    world = new_world(sessions=3)
    answers = [Said(f"the answer of session {i}, long enough to be told from the others") for i in range(5)]
    firsts = [world.ask(Message("user", f"the question of session {i}"), said=answers[i]) for i in range(5)]
    status = world.sessions.status()
    assert (status["live"], status["evicted"]) == (4, 1) or status["live"] <= 4
    again = [
        world.ask(Message("user", f"the question of session {i}"), answers[i].message(), U2).session_id == firsts[i].session_id
        for i in (4, 0)
    ]
    assert again == [True, False]


def test_sessions_are_forgotten_after_a_while(world: World) -> None:
    first = world.ask(SYSTEM, U1, said=A1)
    assert world.ask(SYSTEM, U1, A1.message(), U2, after=3 * 3600).session_id != first.session_id
    assert world.sessions.status()["live"] == 1


def test_forgetting_leaves_nothing_behind() -> None:
    known = Known(Marker(b"k"), sessions=1, live_s=10)
    world = new_world()
    world.sessions.stitcher.known = known
    for i in range(50):
        hints = {"x-session-id": f"s{i}"}
        said = Said(f"answer number {i}, long enough to be told", (replace(LS, call_id=f"call_{i:08}"),), response_id=f"r{i}")
        world.ask(SYSTEM, Message("user", f"question number {i} of many"), said=said, hints=hints, after=20, tools=TOOLS)
    world.ask(SYSTEM, U1, after=100)
    sizes = (known._sessions, known._named, known._index, known._tips, known._responses)
    assert [len(part) for part in sizes[:2]] == [1, 0]
    assert len(known._responses) == 0
    assert len(known._index) == known.live[1] < 20
    assert len(known._tips) < 5


def test_an_endless_session_is_held_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qm_proxy.measure.known._OWNED", 200)
    world = new_world()
    history: list[Message] = []
    first = None
    for i in range(300):
        history.append(Message("user", f"question number {i} about it"))
        said = Said(f"answer number {i}, which is long enough to be told from all the others")
        placed = world.ask(*history[-21:], said=said)
        first = first or placed
        assert placed.session_id == first.session_id
        history.append(said.message())
    assert world.sessions.status()["marks"] <= 220


def test_side_lines_of_a_session_are_held_in_bounds(world: World) -> None:
    hints = {"x-session-id": "s"}
    world.ask(SYSTEM, U1, hints=hints, tools=TOOLS)
    for i in range(100):
        world.ask(Message("system", "You write titles."), Message("user", f"a title for part {i}"), hints=hints)
    (session,) = world.sessions.stitcher.known._sessions.values()
    assert len(session.trajectories) <= 64
    assert session.main is not None
    assert session.next_number == 101


def test_an_exchange_that_never_closes_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qm_proxy.sessions._IN_FLIGHT", 3)
    opened = [world.open(SYSTEM, Message("user", f"question {i}")) for i in range(5)]
    assert world.sessions.status() | {"in_flight": 3, "abandoned": 2} == world.sessions.status()
    for one in opened:
        world.close(one)
    assert world.sessions.status()["in_flight"] == 0


def test_a_restart_knows_its_sessions_again(world: World) -> None:
    hints = {"x-session-id": "ses_1"}
    named = world.ask(SYSTEM, U1, hints=hints, said=A1)
    silent = world.ask(SYSTEM, U2, said=A2)
    rows = [
        {
            "session_id": placed.session_id, "trajectory": placed.trajectory, "exchange_id": f"exchange {i}", "turn": placed.turn,
            "tip": placed.tip, "expected": placed.expected, "ended_unix_s": 100.0 + i, "client": "aclient", "user_agent": "ua",
            "client_session": placed.client_session,
        }
        for i, placed in enumerate((named, silent))
    ]  # fmt: skip
    again = new_world()
    again.now = world.now
    assert again.sessions.resume(rows, Nanoseconds(again.now), 110.0) == 2
    goes_on = again.ask(SYSTEM, U2, A2.message(), U3)
    assert (goes_on.session_id, goes_on.relation, goes_on.turn, goes_on.previous_exchange_id) == (
        silent.session_id, "next", 2, "exchange 1",
    )  # fmt: skip
    by_id = again.ask(SYSTEM, U1, A1.message(), U3, hints=hints)
    assert (by_id.session_id, by_id.turn) == (named.session_id, 2)
    other_key = World(Sessions(key=b"another key", new_id=lambda _: "new"), now=world.now)
    other_key.sessions.resume(rows, Nanoseconds(world.now), 110.0)
    assert other_key.ask(SYSTEM, U2, A2.message(), U3).session_id == "new"


# --- real clients -----------------------------------------------------------------------------------------------------

CAPTURES = Path(__file__).parents[1] / "golden" / "wire" / "clients"


def _captured(world: World, name: str) -> Opened:
    """The request as it was captured, through the wire's own reading."""
    from qm_proxy.wire.clients import recognise
    from qm_proxy.wire.request import read_request
    from qm_proxy.wire.routes import route_of

    head, _, body = (CAPTURES / f"{name}.request.bin").read_bytes().partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    method, target, _ = line.split(b" ")
    headers = tuple((key, value.strip()) for key, _, value in (field.partition(b":") for field in fields))
    route = route_of(method.decode(), target)
    asked = read_request(route, headers, body, Nanoseconds(world.now))
    assert not asked.problems
    seen = recognise(headers, asked)
    opened = Opened(
        name, Nanoseconds(world.now), "", "POST", route.path, route.dialect, route.operation, asked.model, True, seen.client,
        seen.user_agent, seen.origin, asked, seen.hints,
    )  # fmt: skip
    world.sessions.opened(opened)
    return opened


@pytest.mark.parametrize(
    ("client", "call", "side"),
    [
        ("claude-code-2.1", PastCall("toolu_1", "Bash", '{"command":"ls"}'), None),
        ("opencode-1.18", PastCall("call_1", "bash", '{"command":"ls"}'), "opencode-1.18-title"),
    ],
)
def test_two_turns_of_a_real_agent(world: World, client: str, call: PastCall, side: str | None) -> None:
    title = None if side is None else _captured(world, side)
    first = _captured(world, f"{client}-turn1")
    if title is not None:
        world.close(title, seconds=1)
    world.close(first, Said("", (call,)))
    world.now += 3 * S
    second = _captured(world, f"{client}-turn2")
    assert first.placed is not None
    assert second.placed is not None
    assert second.placed.session_id == first.placed.session_id
    assert _is(first.placed, "start", 0, 1, "header")
    assert _is(second.placed, "next", 0, 2, "header")
    assert [(t.name, t.seconds) for t in second.placed.results] == [(call.name, 3.0)]
    assert (second.placed.waited_for, second.placed.wait_s) == ("tools", 3.0)
    assert second.placed.prefix is not None
    assert second.placed.prefix.broken_at is None
    if title is not None:
        assert title.placed is not None
        assert (title.placed.session_id, title.placed.relation) == (first.placed.session_id, "side")


# --- anything at all --------------------------------------------------------------------------------------------------

_LINE = "a line that is long enough to be known again by itself"
_words = st.sampled_from(["", "ok", "go on", "Write a title", _LINE, "\ud800", "x" * 70])
_calls = st.builds(PastCall, st.sampled_from(["", "call_1", "call_ab12cd34"]), st.sampled_from(["bash", "task"]), _words)
_any_message = st.builds(
    Message,
    role=st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"]),
    text=_words,
    calls=st.lists(_calls, max_size=2).map(tuple),
    call_id=st.sampled_from(["", "call_1"]),
    is_error=st.sampled_from([None, True, False]),
)
_hints = st.dictionaries(
    st.sampled_from(["x-session-id", "x-parent-session-id", "x-claude-code-agent-id", "thread-id"]),
    st.sampled_from(["a", "b"]),
    max_size=3,
)
_step = st.fixed_dictionaries(
    {
        "messages": st.lists(_any_message, max_size=6),
        "hints": _hints,
        "previous": st.sampled_from([None, None, "r1", "r2"]),
        "operation": st.sampled_from(["chat", "chat", "text_completion"]),
        "tools": st.sampled_from(["", "bash"]),
        "said": st.builds(
            Said,
            text=_words,
            calls=st.lists(_calls, max_size=2).map(tuple),
            ending=st.sampled_from(["complete", "client_disconnect"]),
            response_id=st.sampled_from([None, "r1", "r2"]),
            input_tokens=st.sampled_from([None, 0, 100]),
        ),
        "close": st.sampled_from([0, 0, 1, 2]),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_step, max_size=14))
def test_nothing_that_clients_send_upsets_it(steps: list[dict[str, Any]]) -> None:
    """Every exchange is placed, the numbers of a line grow, time is never negative, and at the end nothing is left in flight."""
    world = new_world(sessions=3, prompt_characters=500)
    waiting: list[tuple[Opened, Said]] = []
    turns: dict[tuple[str, int], int] = {}
    for step in steps:
        world.now += S
        how = {name: step[name] for name in ("hints", "previous", "operation", "tools")}
        opened = world.open(*step["messages"], **how)
        placed = opened.placed
        assert (placed is None) == (not step["messages"] and step["previous"] is None)
        if placed is not None:
            line = (placed.session_id, placed.trajectory)
            assert placed.turn >= turns.get(line, 0)
            assert placed.turn >= 1
            assert (placed.wait_s or 0) >= 0
            assert placed.new_messages <= len(step["messages"])
            turns[line] = placed.turn
        waiting.append((opened, step["said"]))
        for _ in range(step["close"]):
            if waiting:
                world.close(*waiting.pop(0))
    for opened, said in waiting:
        placed = world.close(opened, said)
        assert placed is None or (placed.model_s or 0) >= 0
    assert world.sessions.status()["in_flight"] == 0
    assert all(t.open == 0 for s in world.sessions.stitcher.known._sessions.values() for t in s.trajectories)


def test_a_restart_finds_its_sessions_in_the_database(world: World, tmp_path: Path) -> None:
    """Whole: stored by the writer, asked back, known again; and without the key, not."""
    path = tmp_path / "qm.db"
    writer = Writer(path, linger_s=0.0)
    writer.start()
    start = 1_790_000_000
    ids = Ids()

    def exchange(*messages: Message, said: Said, **how: Any) -> Placed:
        world.now += 10 * S
        unix_ns = start * S + world.now
        opened = world.open(*messages, id=ids.new(unix_ns), started_at=iso(unix_ns), **how)
        world.close(opened, said)
        assert opened.placed is not None
        values: dict[str, Any] = dict.fromkeys(Record.__dataclass_fields__)
        values |= {name: getattr(opened, name) for name in Opened.__dataclass_fields__ if name in values}
        values |= {"total_s": 2.0, "ending": "complete", "opened": opened, "findings": [], "tool_calls": []}
        writer.closed(Record(**values))
        return opened.placed

    exchange(SYSTEM, U1, said=A1)
    last = exchange(SYSTEM, U1, A1.message(), U2, said=A2)
    named = exchange(SYSTEM, U3, said=A1, hints={"x-session-id": "ses_1"})
    assert writer.stop()
    rows = Stored(path).recent_turns(0)
    assert [row["session_id"] for row in rows] == [last.session_id, last.session_id, named.session_id]
    for key, known in ((b"k", True), (b"another", False)):
        again = World(Sessions(key=key, new_id=lambda _: ids.new(0)), now=world.now)
        assert again.sessions.resume(rows, Nanoseconds(again.now), start + again.now / S) == 2
        goes_on = again.ask(SYSTEM, U1, A1.message(), U2, A2.message(), U3)
        assert (goes_on.session_id == last.session_id) is known
        by_id = again.ask(SYSTEM, U3, A1.message(), U1, hints={"x-session-id": "ses_1"})
        assert by_id.session_id == named.session_id  # the client's own id needs no key
    assert goes_on.turn == 1
