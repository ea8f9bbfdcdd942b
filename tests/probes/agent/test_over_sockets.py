"""The same policies behind the simulated Ollama, over real sockets: client, decoder, run and taxonomy together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from probes.agent.dialogue import Conduct
from probes.agent.instance import Instance
from probes.agent.origin import compat_rows
from probes.agent.plan import plan_for
from probes.agent.report import Seen, report_agent
from probes.agent.run import play_run
from probes.agent.taxonomy import judge
from probes.ask import Answer, Ask
from probes.client import Client
from probes.hardware import describe
from probes.rows import Rows
from probes.runner import Outcome, Runner
from probes.sim import Persona, SimulatedOllama
from probes.sim.agent_policies import EXPECTED

First = Callable[[str, int], list[Instance]]


def _persona(script: str, **parameters: Any) -> Persona:
    thinks = script in ("thinker", "exhausted-thinker")
    return Persona.model_validate(
        {
            "name": script,
            "capabilities": ["completion", "tools", *(["thinking"] if thinks else [])],
            "policy": {"name": "agent", "script": script, **parameters},
            "load": {"cold_ms": 0, "warm_ms": 0},
            "prefill": {"fixed_ms": 0, "tokens_per_s": 1e6},
            "decode": {"token_ms": 0.01},
            "overhead_ms": 0,
        }
    )


def test_each_policy_lands_in_its_class_over_sockets(solvable: First) -> None:
    instances = {tier: solvable(tier, 5) for tier in ("easy", "medium", "hard")}
    needs = dict.fromkeys(("trap-lover", "meddler", "three-cycle"), "medium")  # traps, flags, room for three rounds
    needs["gate-opener"] = "hard"  # where override codes are shown
    scripts = list(EXPECTED)
    landed: dict[str, list[str]] = {}

    async def play() -> None:
        async with SimulatedOllama([_persona(script) for script in scripts], max_loaded=len(scripts)) as sim:
            client = Client(sim.url, "test")
            for script in scripts:
                think = True if script in ("thinker", "exhausted-thinker") else None
                for instance in instances[needs.get(script, "easy")]:
                    done = await Runner(client.ask).run(
                        play_run(instance, Conduct(script, think=think), f"{script}/{instance.seed}")
                    )
                    outcome = judge(done.section)
                    name = "PASS" if outcome.passed else f"{outcome.label}/{outcome.sub}" if outcome.sub else str(outcome.label)
                    landed.setdefault(script, []).append(name)

    asyncio.run(play())
    missed = {
        script: names
        for script, names in landed.items()
        if not all(any(n == e or n.startswith(f"{e}/") for e in EXPECTED[script]) for n in names)
    }
    print({script: len(names) for script, names in landed.items()})
    assert missed == {}
    assert {len(names) for names in landed.values()} == {5}


async def _report(
    ask: Callable[[Ask], Any], rows: Rows, stop_after: int | None = None, **flags: Any
) -> tuple[Outcome[Any], Seen]:
    seen, asked = Seen(), [0]

    async def counted(question: Ask) -> Answer:
        asked[0] += 1
        if stop_after is not None and asked[0] > stop_after:
            runner.stop("interrupted", "Ctrl-C")
        answer: Answer = await ask(question)
        return answer

    runner = Runner(counted, rows=rows)
    return await runner.run(report_agent(plan_for(flags.pop("model"), "http://sim", **flags), seen)), seen


def test_the_post_over_sockets_and_the_same_again() -> None:
    """The shipped persona of the post gives the post's numbers; a second run with the same seed gives the same tier again."""
    model = "north-mini-code-1.0:mlx-mxfp8"
    host = describe("apple:64GiB")

    async def play() -> list[tuple[Any, Seen]]:
        async with SimulatedOllama([model], speed=200) as sim:
            client = Client(sim.url, "test")
            flags: dict[str, Any] = {"model": model, "tiers": "easy,hard", "host": host, "seed": 2}
            first, seen = await _report(client.ask, Rows(None), compat="quantamind", **flags)
            second, again = await _report(client.ask, Rows(None), **(flags | {"tiers": "easy"}))
            return [(first.section, seen), (second.section, again)]

    (section, seen), (repeat, _) = asyncio.run(play())
    assert seen.compat is not None
    shown = {row.name: row.theirs for row in compat_rows(seen.compat, host, section.tiers)[0]}
    assert shown["Easy tier"].startswith("100 % (Pass^5), 1.8 steps")
    assert shown["Hard tier"].startswith("0 % (Pass^16), 7.4 steps")
    assert shown["Failure taxonomy"] == "InfiniteLoop 83 % (53), Hallucinated 17 % (11) of 64"
    assert shown["Verdict"] == "CONDITIONAL: clears through Easy; falls off at Hard"
    assert _timeless(section)["tiers"][0] == _timeless(repeat)["tiers"][0]
    assert _timeless(section)["replays"][0] == _timeless(repeat)["replays"][0]


def _timeless(section: Any) -> dict[str, Any]:
    """All but what a clock said."""
    document = json.loads(section.model_dump_json())
    for tier in document["tiers"]:
        tier.pop("minutes_per_task")
    for replay in document["replays"]:
        for turn in replay["turns"]:
            turn.pop("seconds")
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("stop_after", [3, 30, 77])
def test_an_interrupted_report_resumes_to_the_same_result(stop_after: int, tmp_path: Path, server: Any) -> None:
    model = server("wasteful", waste=0.3)

    async def ask(question: Ask) -> Answer:
        return model(question)  # type: ignore[no-any-return]

    async def play() -> tuple[Any, Any, Any, int]:
        flags: dict[str, Any] = {"model": "m", "tiers": "easy,medium", "seed": 5}
        whole, _ = await _report(ask, Rows(None), **flags)
        rows = Rows(tmp_path / "rows.jsonl")
        cut, _ = await _report(ask, rows, stop_after, **flags)
        again = Rows(tmp_path / "rows.jsonl")
        kept = again.load()
        resumed, _ = await _report(ask, again, **flags)
        assert resumed.replayed == kept
        return whole.section, cut.section, resumed.section, kept

    whole, cut, resumed, kept = asyncio.run(play())
    assert cut.unmeasured["rest"].startswith("stopped early (interrupted)")
    assert kept == stop_after
    assert resumed.model_dump() == whole.model_dump()
