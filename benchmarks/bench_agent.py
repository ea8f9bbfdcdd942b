"""The Agent Report's own numbers: is its world fair, do its classes hold, do its curves come out as predicted, what does it cost?

    python benchmarks/bench_agent.py                        # everything, some minutes
    python benchmarks/bench_agent.py --quick                # a tenth of the runs
    python benchmarks/bench_agent.py worlds --instances 10000

Without a model: scripted policies with known ends, measured, in process and (`sockets`) behind the simulated Ollama. Nothing
here is asserted; the tests assert the same.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable
from random import Random

from probes.agent.chance import FLOOR_RUNS, blind_run, chance_floor
from probes.agent.compat import CompatTally, compat_runs
from probes.agent.dialogue import Conduct, window_bound
from probes.agent.generator import GENERATOR_VERSION, generate
from probes.agent.instance import Instance
from probes.agent.live import live_alarm
from probes.agent.loops import LoopWatch
from probes.agent.oracle import NUMBER, Oracle, play
from probes.agent.origin import compat_rows
from probes.agent.plan import plan_for
from probes.agent.report import Seen, report_agent
from probes.agent.run import play_run
from probes.agent.sampling import gate_for
from probes.agent.scoring import Run
from probes.agent.taxonomy import Outcome, judge
from probes.agent.tiers import TIERS, Tier, tier_named
from probes.agent.trace import Played
from probes.agent.verdict import live_detector
from probes.agent.world import World
from probes.ask import Answer, Ask
from probes.client import Client
from probes.hardware import describe
from probes.runner import Runner, replay
from probes.sim import Persona, SimulatedOllama
from probes.sim.agent_policies import EXPECTED, answer_with
from probes.stats.intervals import clopper_pearson
from probes.stats.repeats import streak_interval


def solvable(tier: Tier, n: int, *, start: int = 0) -> list[Instance]:
    found: list[Instance] = []
    seed = start
    while len(found) < n:
        instance = generate(tier, seed)
        seed += 1
        if instance.down is None:
            found.append(instance)
    return found


def played(instance: Instance, policy: str, **parameters: float) -> tuple[Played, Outcome]:
    run = replay(play_run(instance, Conduct("m"), f"bench/{instance.seed}"), answer_with(policy, parameters))
    return run, judge(run)


def title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def worlds(n: int) -> None:
    title(f"Worlds ({GENERATOR_VERSION}): generated, and solved by an oracle that sees only text; {n} a tier")
    print(
        f"{'tier':8} {'solved':>12} {'optimum':>8} {'oracle':>10} {'horizon':>8} {'slack':>6} {'outages':>8} {'window':>7} {'ms each':>8}"
    )
    for tier in TIERS:
        begun = time.perf_counter()
        instances = [generate(tier, seed) for seed in range(n)]
        each = (time.perf_counter() - begun) / n * 1e3
        solved = 0
        for instance in instances:
            world, steps = play(instance, instance.horizon)
            solved += world.truthful() and not world.damage() and steps == instance.oracle_steps
        lengths = [instance.oracle_steps for instance in instances]
        optimum = Counter(instance.optimum_steps for instance in instances).most_common(1)[0][0]
        outages = sum(instance.down is not None for instance in instances) / n
        print(
            f"{tier.name:8} {f'{solved} of {n}':>12} {optimum:8} {f'{min(lengths)}..{max(lengths)}':>10} {tier.horizon:8} "
            f"{tier.horizon / max(lengths):6.2f} {100 * outages:7.1f}% {window_bound(tier, Conduct('m')):7} {each:8.2f}"
        )


def trivial(n: int) -> None:
    title(
        f"Trivial agents, {n} runs a tier: nothing must pass; luck must stay below its printed floor (from {FLOOR_RUNS} others)"
    )
    for tier in TIERS:
        nothing = sum(played(generate(tier, seed), "do-nothing")[1].passed for seed in range(n))
        luck = sum(blind_run(tier.name, seed) for seed in range(n))
        print(
            f"{tier.name:8} do-nothing {nothing} of {n}; random legal {luck} of {n}; printed floor {chance_floor(tier.name):.4f}"
        )


NEEDS = {"trap-lover": 1, "meddler": 1, "three-cycle": 1, "gate-opener": 2}
"""Policy → the first tier (0 is Easy) that has what it needs: traps, flags, nine steps, an override code."""


def classes(n: int) -> None:
    title(f"Scripted policies on {n} solvable instances a tier: in their class")
    print(f"{'policy':18} {'expected':38} " + " ".join(f"{tier.name:>9}" for tier in TIERS))
    instances = {tier.name: solvable(tier, n) for tier in TIERS}
    worst = 1.0
    for policy, expected in EXPECTED.items():
        shares = []
        for place, tier in enumerate(TIERS):
            if place < NEEDS.get(policy, 0):
                shares.append(f"{'–':>9}")
                continue
            landed = sum(in_class(policy, played(instance, policy)[1]) for instance in instances[tier.name])
            worst = min(worst, landed / n)
            shares.append(f"{f'{landed}/{n}':>9}")
        print(f"{policy:18} {', '.join(expected)[:38]:38} {' '.join(shares)}")
    print(f"least share in any cell {100 * worst:.1f} % (aim: at least 99 %); –: the tier has not what the policy needs")


def in_class(policy: str, outcome: Outcome) -> bool:
    name = "PASS" if outcome.passed else f"{outcome.label}/{outcome.sub}" if outcome.sub else str(outcome.label)
    return any(name == wanted or name.startswith(f"{wanted}/") for wanted in EXPECTED[policy])


def sockets(n: int) -> None:
    title(f"The same policies behind the simulated Ollama, over real sockets, {n} instances each (aim: all)")
    scripts = list(EXPECTED)

    async def play() -> list[str]:
        lines = []
        async with SimulatedOllama([_persona(script) for script in scripts], max_loaded=len(scripts)) as sim:
            client = Client(sim.url, "bench")
            for script in scripts:
                tier = TIERS[NEEDS.get(script, 0)]
                think = True if script in ("thinker", "exhausted-thinker") else None
                landed = turns = 0
                for instance in solvable(tier, n):
                    done = await Runner(client.ask).run(
                        play_run(instance, Conduct(script, think=think), f"{script}/{instance.seed}")
                    )
                    landed += in_class(script, judge(done.section))
                    turns += len(done.section.turns)
                lines.append(f"{script:18} {tier.name:8} {landed} of {n} in class, {turns} requests")
        return lines

    print(*asyncio.run(play()), sep="\n")


def _persona(script: str) -> Persona:
    thinks = ["thinking"] if script in ("thinker", "exhausted-thinker") else []
    stated = {
        "name": script,
        "capabilities": ["completion", "tools", *thinks],
        "policy": {"name": "agent", "script": script},
        "load": {"cold_ms": 0, "warm_ms": 0},
        "prefill": {"fixed_ms": 0, "tokens_per_s": 1e6},
        "decode": {"token_ms": 0.01},
        "overhead_ms": 0,
    }
    return Persona.model_validate(stated)


def line(n: int) -> None:
    title(f"A bad line: whole reports of {n} runs a tier, one answer in 40 cut; lost runs are played again, rates must not move")
    for policy, parameters in (("oracle", {}), ("wasteful", {"waste": 0.3}), ("forgetful", {"forget": 0.5})):
        found = []
        for cut in (0, 40):
            seen = Seen()
            plan = plan_for("m", "http://bench", seed=3, tiers="medium,hard", all_tiers=True, strict_k=True, k=n)
            section = replay(report_agent(plan, seen), _server(policy, parameters, cut))
            tallies = seen.by_path["native"]
            lost, again = sum(len(tally.excluded) for tally in tallies), sum(tally.reruns for tally in tallies)
            rates = ", ".join(f"{tier.tier} {tier.passed}/{tier.n}" for tier in section.tiers if tier.n)
            found.append((rates, again, lost))
        (clean, _, _), (shaky, again, lost) = found
        same = "the same" if clean == shaky else "NOT the same"
        print(f"{policy:10} whole line: {clean}; bad line: {shaky}; {again} played again, {lost} given up: {same}")


def _server(policy: str, parameters: dict[str, float], cut: int) -> Callable[[Ask], Answer]:
    chat, calls = answer_with(policy, parameters), [0]
    documents: dict[str, object] = {
        "/api/version": {"version": "0.33.0"},
        "/api/tags": {"models": [{"name": "m:latest", "digest": "sha256:1", "size": 1}]},
        "/api/show": {"capabilities": ["completion", "tools"], "model_info": {}},
        "/api/ps": {"models": []},
    }

    def answer(ask: Ask) -> Answer:
        if ask.path in documents:
            return Answer(ask.key, status=200, document=documents[ask.path])
        calls[0] += 1
        if cut and calls[0] % cut == 0:
            return Answer(ask.key, status=200, ending="upstream_truncated", error="connection reset by peer")
        return chat(ask)

    return answer


def curves(n: int) -> None:
    title(f"Pass rates of imperfect oracles beside what their chance predicts, {n} runs each (z: deviations of a binomial)")
    for tier in TIERS:
        instances = [generate(tier, seed) for seed in range(n)]
        for waste in (0.1, 0.2, 0.3):
            predicted = [1 - _binomial_below(i.oracle_steps, i.horizon, 1 - waste) for i in instances]
            _compare(tier, f"wastes {100 * waste:.0f} % of its steps", predicted, _passes(instances, "wasteful", waste=waste))
        for early in (0.03,):
            predicted = [(1 - early) ** (i.oracle_steps - 1) for i in instances]
            _compare(
                tier, f"says done early, {100 * early:.0f} % a step", predicted, _passes(instances, "early-done", early=early)
            )


def _passes(instances: Iterable[Instance], policy: str, **parameters: float) -> int:
    return sum(played(instance, policy, **parameters)[1].passed for instance in instances)


def _binomial_below(k: int, n: int, p: float) -> float:
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k))


def _compare(tier: Tier, what: str, predicted: list[float], passed: int) -> None:
    n, mean = len(predicted), math.fsum(predicted)
    spread = math.sqrt(math.fsum(p * (1 - p) for p in predicted))
    z = (passed - mean) / spread if spread else 0.0
    print(f"{tier.name:8} {what:30} predicted {mean / n:.3f}  measured {passed / n:.3f}  z {z:+.1f}")


def false_stops(n: int) -> None:
    title(f"Loops that were let go on, {n} runs of an agent that forgets half the time: how often was stopping wrong?")
    for tier in TIERS[1:]:
        went_on = recovered = 0
        for seed in range(n):
            run = replay(
                play_run(generate(tier, seed), Conduct("m"), f"bench/{seed}", go_on=True),
                answer_with("forgetful", {"forget": 0.5}),
            )
            went_on += run.went_on
            recovered += bool(run.recovered)
        interval = clopper_pearson(recovered, went_on)
        print(f"{tier.name:8} {recovered} of {went_on} passed after all ({interval.lo:.2f} to {interval.hi:.2f})")


def live(n: int) -> None:
    title(f"The detector of live traffic on the same runs, {n} a policy on Hard: proven loops it finds, alarms in runs that pass")
    forgets: list[tuple[str, dict[str, float]]] = [("forgetful", {"forget": share}) for share in (0.1, 0.3, 0.5)]
    others: list[tuple[str, dict[str, float]]] = [(name, {}) for name in ("oracle", "poller", "wasteful")]
    loopers: list[tuple[str, dict[str, float]]] = [(name, {}) for name in ("looper", "two-cycle", "three-cycle")]
    for policy, parameters in (*loopers, *forgets, *others):
        runs = []
        for index, instance in enumerate(solvable(tier_named("hard"), n)):
            run = replay(play_run(instance, Conduct("m"), "bench", go_on=True), answer_with(policy, parameters))
            runs.append(Run(index, run, judge(run), live_alarm(run)))
        found = live_detector(runs)
        sooner = [
            run.played.loop.steps[-1] - run.alarm.step for run in runs if run.played.loop is not None and run.alarm is not None
        ]
        steps = f", {sum(sooner) / len(sooner):+.1f} steps before our proof" if sooner else ""
        name = f"{policy} {parameters['forget']:.0%}" if parameters else policy
        print(
            f"{name:13} found {found['found']} of {found['proven_loops']} proven{steps}, "
            f"{found['thirds']} broke off at the third copy of a succeeding call; "
            f"false alarms {found['false_alarms']} of {found['passed_runs']} passes"
        )


def gates(models: int) -> None:
    title(f"Sampling: {models} simulated models a tier; coverage of the 95 % intervals, and runs needed")
    random = Random(7)
    for tier in TIERS:
        for name, flags in (("sequential", {}), ("strict k", {"strict": True}), ("quick", {"quick": True})):
            gate = gate_for(tier, **flags)
            covered = covered_k = runs = 0
            for index in range(models):
                p = random.random() if index % 2 else 1 - 0.4 * random.random()
                passed = n = 0
                while gate.decide(passed, n) is None:
                    n += 1
                    passed += random.random() < p
                runs += n
                covered += (rate := clopper_pearson(passed, n)).lo <= p <= rate.hi
                covered_k += (power := streak_interval(passed, n, gate.k)).lo <= p**gate.k <= power.hi
            spread = math.sqrt(0.95 * 0.05 / models)
            print(
                f"{tier.name:8} {name:10} rate {covered / models:.4f} (z {(covered / models - 0.95) / spread:+.1f})  "
                f"streak_{gate.k} {covered_k / models:.4f}  mean runs {runs / models:.1f}"
            )


def origin() -> None:
    title("The post's policy under --compat quantamind, measured")
    tally = CompatTally()
    replay(compat_runs(tally, Conduct("m"), ["easy", "hard"]), answer_with("post"))
    rows, _ = compat_rows(tally, describe("apple:64GiB"))
    for row in rows:
        print(f"{row.name:18} {row.theirs}" + (f"   [{row.note}]" if row.note else ""))


def cost(n: int) -> None:
    title(f"Cost: world and scoring of one step, best of {n} instances a tier (aim: at most 0.1 ms)")
    for tier in TIERS:
        each: list[float] = []
        alone: list[float] = []
        for instance in solvable(tier, n):
            world, oracle = World(instance), Oracle(instance.task)
            calls = []
            while world.claim is None:
                name, arguments = oracle.next()
                oracle.see(name, arguments, world.act(name, arguments).text)
                calls.append((name, arguments))
            world, begun = World(instance), time.perf_counter()
            for name, arguments in calls:
                world.act(name, arguments)
            alone.append((time.perf_counter() - begun) / len(calls))
            world, watch, known = World(instance), LoopWatch(), set[str]()
            begun = time.perf_counter()
            for n_step, (name, arguments) in enumerate(calls, 1):
                key = world.key
                text = world.act(name, arguments).text
                facts = {found.group() for found in NUMBER.finditer(text)} - known
                known |= facts
                watch.see(n_step, name, arguments, key, text, progress=world.key != key or bool(facts), world=world)
                world.distance()
                world.damage()
            each.append((time.perf_counter() - begun) / len(calls))
        begun = time.perf_counter()
        runs = [played(instance, "oracle")[0] for instance in solvable(tier, n)]
        whole = (time.perf_counter() - begun) / sum(len(run.steps) for run in runs)
        begun = time.perf_counter()
        for run in runs:
            judge(run)
        judged = (time.perf_counter() - begun) / len(runs)
        print(
            f"{tier.name:8} world {1e6 * min(alone):5.1f} µs  world + loop watch + distance + damage {1e6 * min(each):5.1f} µs "
            f"(median {1e6 * sorted(each)[len(each) // 2]:5.1f})  judging a run {1e6 * judged:4.1f} µs  "
            f"with a scripted model and its messages {1e6 * whole:6.1f} µs"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", metavar="PART", help="some of: " + " ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    parser.add_argument("--instances", type=int, default=1000, help="instances a tier that are generated and solved")
    chosen = parser.parse_args()
    if wrong := set(chosen.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(wrong))}; there are {', '.join(PARTS)}")
    part = 10 if chosen.quick else 1
    begun = time.perf_counter()
    for name, (work, n) in PARTS.items():
        if not chosen.parts or name in chosen.parts:
            work(chosen.instances // part if name == "worlds" else n if name in ("gates", "sockets") else max(5, n // part))
    print(f"\n{time.perf_counter() - begun:.0f} s; Python {platform.python_version()}, {platform.machine()}")


PARTS: dict[str, tuple[Callable[[int], None], int]] = {
    "worlds": (worlds, 1000),
    "trivial": (trivial, 500),
    "classes": (classes, 500),
    "sockets": (sockets, 5),
    "line": (line, 60),
    "curves": (curves, 1000),
    "false_stops": (false_stops, 400),
    "live": (live, 200),
    "gates": (gates, 2000),
    "origin": (lambda n: origin(), 0),
    "cost": (cost, 200),
}


if __name__ == "__main__":
    main()
