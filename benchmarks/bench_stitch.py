"""How well, and at what cost, requests are stitched into sessions: pairwise F1 on generated mixtures, per client and in all.

    python benchmarks/bench_stitch.py [--seeds 5] [--conversations 60] [--at-once 20] [--without-ids]

Pairwise: of all pairs of exchanges that we put into one session, the share that belongs together (precision), and of all
pairs that belong together the share that we put into one session (recall). `--without-ids` withholds every client's own id.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

from mixtures import Ask, Happening, arguments_text, encode, mixture

from qm_proxy.events import Began, Event, Nanoseconds, TextDelta, ThinkingDelta, ToolCall
from qm_proxy.ids import Ids
from qm_proxy.record import Opened, Record
from qm_proxy.sessions import Sessions
from qm_proxy.wire.clients import recognise
from qm_proxy.wire.request import read_request
from qm_proxy.wire.routes import route_of


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
            t_ns = Nanoseconds(step.t_ns)
            events: list[Event] = [Began(t_ns, None, reply.response_id or None), ThinkingDelta(t_ns, reply.thinking)]
            events += [TextDelta(t_ns, piece) for piece in re.split(r"(?<= )", reply.text)]
            events += [ToolCall(t_ns, i, call.id, call.name, arguments_text(call)) for i, call in enumerate(reply.calls)]
            record = closing(opened, step)
            began = time.perf_counter()
            if watch is not None:
                for event in events:
                    watch.see(event)
            sessions.closed(record)
            spent += time.perf_counter() - began
    return done, spent, sessions


def opening(step: Happening, *, ids: bool) -> Opened:
    """The request as the observer gets it: through the wire's own reading of its bytes."""
    ask = step.ask
    path, fields, body = encode(ask if ids else replace(ask, hints={}))
    headers = tuple((name.encode(), value.encode()) for name, value in fields.items())
    route = route_of("POST", path.encode())
    asked = read_request(route, headers, body, Nanoseconds(step.t_ns))
    assert not asked.problems, asked.problems
    seen = recognise(headers, asked)
    return Opened(
        id=f"exchange {step.number}", t_ns=Nanoseconds(step.t_ns), started_at="", method="POST", route=route.path,
        dialect=route.dialect, operation=route.operation, model=asked.model, streamed=True, client=seen.client,
        user_agent=seen.user_agent, origin=seen.origin, asked=asked, hints=seen.hints, connection=ask.connection,
    )  # fmt: skip


def closing(opened: Opened, step: Happening) -> Record:
    names = Record.__dataclass_fields__
    values = dict.fromkeys(names)
    values |= {"id": opened.id, "total_s": (step.t_ns - opened.t_ns) / 1e9, "opened": opened, "findings": [], "tool_calls": []}
    values["ending"] = "complete" if step.ask.reply.ok else "client_disconnect"
    return Record(**values)


def show(seed: int, done: list[tuple[Ask, Opened]], owner: dict[int, str]) -> None:
    """Print what went wrong: exchanges outside the session that holds most of theirs, and sessions that are one to us."""
    for ask, opened in done:
        placed = opened.placed
        if placed is not None and placed.session_id != owner[ask.session]:
            what = f"{ask.client} {ask.line}/{ask.kind} → {placed.relation} by {placed.source}"
            print(f"seed {seed} {opened.id}, session {ask.session}: {what}, {len(ask.history)} messages")
    for found, n in Counter(owner.values()).items():
        if n > 1:
            print(f"seed {seed} merged: {[session for session, home in owner.items() if home == found]}")


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
            show(seed, done, {session: home.most_common(1)[0][0] for session, home in homes.items()})
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
