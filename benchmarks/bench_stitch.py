"""How well, and at what cost, requests are stitched into sessions: pairwise F1 on generated mixtures, per client and in all.

    python benchmarks/bench_stitch.py [--seeds 5] [--conversations 60] [--at-once 20] [--without-ids]

Pairwise: of all pairs of exchanges that we put into one session, the share that belongs together (precision), and of all
pairs that belong together the share that we put into one session (recall). `--without-ids` withholds every client's own id.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from mixtures import Ask, Happening, arguments_text, mixture
from qm_proxy.events import Asked, Began, Message, OfferedTool, PastCall, TextDelta, ThinkingDelta, ToolCall
from qm_proxy.ids import Ids
from qm_proxy.record import Opened, Record
from qm_proxy.sessions import Sessions


@dataclass
class Score:
    """Pairs found, pairs true, pairs both."""

    labels: list[tuple[int, str]] = field(default_factory=list)

    def pairwise(self) -> tuple[float, float, float]:
        def pairs(counts: Counter[object]) -> int:
            return sum(n * (n - 1) // 2 for n in counts.values())

        both = pairs(Counter(self.labels))
        true = pairs(Counter(t for t, _ in self.labels))
        found = pairs(Counter(f for _, f in self.labels))
        precision = both / found if found else 1.0
        recall = both / true if true else 1.0
        return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def asked_of(ask: Ask, t_ns: int) -> Asked:
    messages = [
        Message(
            turn.role,
            turn.text,
            turn.thinking,
            tuple(PastCall(call.id, call.name, arguments_text(call)) for call in turn.calls),
            turn.call_id,
            turn.tool,
            turn.failed,
        )
        for turn in ask.history
    ]
    if ask.prompt is not None:
        messages = [Message("user", ask.prompt)]
    tools = tuple(OfferedTool(name, "function", b"{}") for name in ask.tools)
    return Asked(
        t_ns, ask.dialect, "text_completion" if ask.prompt is not None else "chat", "m", True, tuple(messages), tools,
        previous_response_id=ask.previous_response_id,
    )  # fmt: skip


def run(seed: int, at_once: int, conversations: int, *, ids: bool) -> tuple[list[tuple[Ask, Opened]], float, Sessions]:
    make = Ids()
    sessions = Sessions(key=b"bench" * 4, new_id=lambda _: make.new(0))
    opens: dict[int, Opened] = {}
    done: list[tuple[Ask, Opened]] = []
    spent = 0.0
    for step in mixture(seed, at_once=at_once, conversations=conversations):
        if step.opens:
            opened = opening(step, ids=ids)
            began = time.perf_counter()
            sessions.opened(opened)
            spent += time.perf_counter() - began
            opens[step.number] = opened
            done.append((step.ask, opened))
        else:
            opened = opens.pop(step.number)
            watch = sessions.watch(opened.id)
            reply = step.ask.reply
            events = [Began(step.t_ns, None, reply.response_id or None), ThinkingDelta(step.t_ns, reply.thinking)]
            events += [TextDelta(step.t_ns, word) for word in reply.text.split("<>")]
            events += [
                ToolCall(step.t_ns, i, call.id, call.name, arguments_text(call)) for i, call in enumerate(reply.calls)
            ]
            record = closing(opened, step)
            began = time.perf_counter()
            if watch is not None:
                for event in events:
                    watch.see(event)
            sessions.closed(record)
            spent += time.perf_counter() - began
    return done, spent, sessions


def opening(step: Happening, *, ids: bool) -> Opened:
    ask = step.ask
    return Opened(
        id=f"exchange {step.number}", t_ns=step.t_ns, started_at="", method="POST", route="/", dialect=ask.dialect,
        operation="text_completion" if ask.prompt is not None else "chat", model="m", streamed=True, client=ask.client,
        user_agent=ask.user_agent, origin="client", asked=asked_of(ask, step.t_ns), hints=ask.hints if ids else {},
        connection=ask.connection,
    )  # fmt: skip


def closing(opened: Opened, step: Happening) -> Record:
    names = Record.__dataclass_fields__
    values = dict.fromkeys(names)
    values |= {"id": opened.id, "total_s": (step.t_ns - opened.t_ns) / 1e9, "opened": opened, "findings": [], "tool_calls": []}
    values["ending"] = "complete" if step.ask.reply.ok else "client_disconnect"
    return Record(**values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--conversations", type=int, default=60)
    parser.add_argument("--at-once", type=int, default=20)
    parser.add_argument("--without-ids", action="store_true")
    parser.add_argument("--show", action="store_true", help="print the exchanges that went wrong")
    args = parser.parse_args()
    scores: dict[str, Score] = defaultdict(Score)
    relations: Counter[tuple[str, str]] = Counter()
    lines: dict[str, Score] = defaultdict(Score)
    exchanges, spent = 0, 0.0
    for seed in range(args.seeds):
        done, took, _ = run(seed, args.at_once, args.conversations, ids=not args.without_ids)
        exchanges += len(done)
        spent += took
        homes: dict[int, Counter[str]] = defaultdict(Counter)
        for ask, opened in done:
            assert opened.placed is not None
            label = (seed * 10**6 + ask.session, opened.placed.session_id)
            for name in ("all", ask.dialect, f"  {ask.client}"):
                scores[name].labels.append(label)
            relations[(ask.kind if ask.line != "subagent" or ask.kind != "start" else "subagent", opened.placed.relation)] += 1
            homes[ask.session][opened.placed.session_id] += 1
        if args.show:
            owner = {}
            for session, home in homes.items():
                owner[session] = home.most_common(1)[0][0]
            for ask, opened in done:
                placed = opened.placed
                if placed.session_id != owner[ask.session]:
                    print(f"seed {seed} {opened.id}: session {ask.session} {ask.client} {ask.line}/{ask.kind} "
                          f"→ {placed.relation} {placed.source} n={len(ask.history)} first={ask.history[1].text[:40] if len(ask.history)>1 else ''!r}")
            for other in {s for s in owner.values() if list(owner.values()).count(s) > 1}:
                print("seed", seed, "merged", [s for s, o in owner.items() if o == other])
    print(f"{exchanges} exchanges, {args.at_once} conversations at once, client ids {'withheld' if args.without_ids else 'sent'}")
    print(f"{'':24}{'precision':>10}{'recall':>10}{'F1':>10}")
    for name, score in scores.items():
        print(f"{name:24}" + "".join(f"{value:10.4f}" for value in score.pairwise()))
    print("\nwhat it was → what we said")
    for (true, found), n in sorted(relations.items()):
        print(f"  {true:12} {found:12} {n:6}")
    print(f"\n{spent / exchanges * 1e6:.0f} µs per exchange for deciding, gathering the answer and closing")


if __name__ == "__main__":
    main()
