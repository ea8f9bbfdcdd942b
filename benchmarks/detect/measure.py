"""Runs each detector, and the rules of others, over one half of the corpora; answers with plain rows to print or to check."""

from __future__ import annotations

import copy
import json
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from statistics import median
from typing import Any

import jsonschema  # type: ignore[import-untyped]

from benchmarks.detect import calls as made_calls
from benchmarks.detect.corpus import Corpus, chunks, symbols_of
from benchmarks.detect.hard import HARD
from benchmarks.detect.loops import EXACT, NEAR, loop
from benchmarks.detect.prompts import MODES, TOKENIZERS, conversation
from benchmarks.detect.rivals import TEXT, TRAJECTORY, TextRule, TrajectoryRule
from benchmarks.detect.streams import HEAVY, JITTER, times
from benchmarks.detect.trajectories import LEGITIMATE, LOOPS, Answer, Session, opened, replay, session
from qm_proxy.beside.host import Host
from qm_proxy.detect.call_loop import CallLoops
from qm_proxy.detect.schemas import Schemas
from qm_proxy.detect.stall import Stall
from qm_proxy.detect.suite import Suite
from qm_proxy.detect.token_loop import TokenLoop
from qm_proxy.detect.tool_schema import ToolSchema
from qm_proxy.detect.truncation import Calibration, Truncation
from qm_proxy.events import (
    Asked,
    Began,
    Event,
    Finished,
    Message,
    Nanoseconds,
    OfferedTool,
    Residency,
    ResidentModel,
    TextDelta,
    ToolCall,
    Usage,
)
from qm_proxy.findings import Finding

__all__ = ["cost", "invariance", "stalls", "token_loops", "tool_calls", "trajectories", "truncations"]

T = Nanoseconds(1)
HARD_SHARE = 0.40
Row = dict[str, Any]


@lru_cache(maxsize=4)
def _corpus(half: str, files: int) -> Corpus:
    return Corpus(half, files)


def clean_texts(corpus: Corpus, rng: random.Random, n: int) -> Iterator[tuple[str, str]]:
    """Kind and text; two of five are hard negatives."""
    kinds = list(HARD)
    for _ in range(n):
        if rng.random() < HARD_SHARE:
            kind = rng.choice(kinds)
            yield kind, HARD[kind](rng)
        else:
            yield "text of this machine", corpus.clean(rng)


# --- token loops


def _ours(pieces: list[str]) -> tuple[int, str, Finding] | None:
    """Characters seen at the first alarm, its form, and the finding."""
    detector, seen = TokenLoop(), 0
    for piece in pieces:
        seen += len(piece)
        for finding in detector.see(TextDelta(T, piece)):
            return seen, str(finding.evidence["form"]), finding
    for finding in detector.see(Finished(T, "stop")):
        return seen, str(finding.evidence["form"]), finding
    return None


def _theirs(make: Callable[[], TextRule], pieces: list[str]) -> int | None:
    rule, seen = make(), 0
    for piece in pieces:
        seen += len(piece)
        if rule.see(piece):
            return seen
    return None


def token_loops(half: str, seed: int, *, clean: int, loops: int, rivals: int, files: int = 400) -> Row:
    """Recall and delay for each family, alarms on clean text; the rivals on every n-th of it."""
    corpus = _corpus(half, files)
    rng = random.Random(f"{seed} clean {half}")
    alarms: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    examples: list[tuple[str, str]] = []
    symbols = hard = 0
    rival_alarms: Counter[str] = Counter()
    rival_clean = 0
    for i, (kind, text) in enumerate(clean_texts(corpus, rng, clean)):
        pieces = chunks(rng, text)
        symbols += len(pieces)
        hard += kind in HARD
        told = _ours(pieces)
        if told is not None:
            alarms["near" if told[1] == "near" else "exact"] += 1
            kinds[f"{told[1]}: {kind}"] += 1
            examples.append((kind, str(told[2].evidence.get("excerpt"))[:60]))
        if rivals and i % rivals == 0:
            rival_clean += 1
            for name, make in TEXT.items():
                rival_alarms[name] += _theirs(make, pieces) is not None
    families: dict[str, Row] = {}
    rng = random.Random(f"{seed} loops {half}")
    rival_hits: dict[str, Counter[str]] = {name: Counter() for name in TEXT}
    rival_delays: dict[str, list[int]] = {name: [] for name in TEXT}
    rival_loops = 0
    exact_delays: list[int] = []
    for family in EXACT + NEAR:
        delays: list[int] = []
        early = 0
        for i in range(loops):
            made = loop(corpus, rng, family)
            pieces = chunks(rng, made.text)
            told = _ours(pieces)
            if told is not None and told[0] <= made.onset:
                early += 1
            elif told is not None:
                delays.append(len(symbols_of(made.text[made.onset : told[0]])))
            if rivals and i < max(loops // 5, 1):
                rival_loops += family == EXACT[0]
                for name, make in TEXT.items():
                    seen = _theirs(make, pieces)
                    if seen is not None and seen > made.onset:
                        rival_hits[name]["exact" if family in EXACT else "near"] += 1
                        if family in EXACT:
                            rival_delays[name].append(len(symbols_of(made.text[made.onset : seen])))
        families[family] = {
            "recall": len(delays) / loops,
            "early": early,
            "median": median(delays) if delays else None,
            "p90": sorted(delays)[len(delays) * 9 // 10] if delays else None,
        }
        if family in EXACT:
            exact_delays += delays
    return {
        "files": corpus.kinds,
        "dropped": corpus.dropped,
        "clean": clean,
        "hard_share": hard / max(clean, 1),
        "chunks": symbols,
        "alarms_exact": alarms["exact"],
        "alarms_near": alarms["near"],
        "alarm_kinds": dict(kinds),
        "examples": examples,
        "families": families,
        "loops": loops,
        "exact_recall": sum(families[name]["recall"] for name in EXACT) / len(EXACT),
        "near_recall": sum(families[name]["recall"] for name in NEAR) / len(NEAR),
        "exact_delay": median(exact_delays) if exact_delays else None,
        "rivals": {
            name: {
                "exact": rival_hits[name]["exact"] / max(rival_loops * len(EXACT), 1),
                "near": rival_hits[name]["near"] / max(rival_loops * len(NEAR), 1),
                "delay": median(rival_delays[name]) if rival_delays[name] else None,
                "alarms": rival_alarms[name],
                "of": rival_clean,
            }
            for name in TEXT
        },
    }


def invariance(half: str, seed: int, *, texts: int, files: int = 400) -> Row:
    """The same text cut at one character, at random, at 200 and not at all must give the same verdicts."""
    corpus, rng = _corpus(half, files), random.Random(f"{seed} cuts {half}")
    failures = 0
    for i in range(texts):
        text = loop(corpus, rng, rng.choice(EXACT + NEAR)).text if i % 2 else next(clean_texts(corpus, rng, 1))[1]
        whole = _verdicts([text])
        for pieces in (list(text), chunks(rng, text), [text[k : k + 200] for k in range(0, len(text), 200)]):
            failures += _verdicts(pieces) != whole
    return {"texts": texts, "failures": failures}


def _verdicts(pieces: list[str]) -> list[dict[str, object]]:
    detector = TokenLoop()
    return [copy.deepcopy(finding.evidence) for piece in pieces for finding in detector.see(TextDelta(T, piece))]


# --- trajectories


def trajectories(half: str, seed: int, *, sessions: int, rivals: bool = True) -> Row:
    """`sessions` of each family. The halves differ by their seeds: generators have no files."""
    rng = random.Random(f"{seed} sessions {half}")
    legitimate: dict[str, Row] = {}
    loops: dict[str, Row] = {}
    rival_alarms: Counter[str] = Counter()
    rival_hits: Counter[str] = Counter()
    for kind in LEGITIMATE:
        alarms = costs = 0
        for _ in range(sessions):
            made = session(rng, kind)
            told = list(_replayed(made, rng))
            alarms += any(finding.severity != "info" for _, finding in told)
            costs += any(finding.severity == "info" for _, finding in told)
            for name, make in TRAJECTORY.items() if rivals else ():
                rival_alarms[name] += _rival(make(), made) is not None
        legitimate[kind] = {"alarms": alarms, "costs": costs}
    for kind in LOOPS:
        delays: list[int] = []
        early = 0
        for _ in range(sessions):
            made = session(rng, kind)
            onset = made.onset or 0
            first = next(
                (i for i, finding in _replayed(made, rng) if finding.severity != "info" or kind == "ever changing result"), None
            )
            if first is not None and first < onset:
                early += 1
            elif first is not None:
                delays.append(sum(isinstance(step, Answer) for step in made.steps[onset : first + 1]))
            for name, make in TRAJECTORY.items() if rivals else ():
                seen = _rival(make(), made)
                rival_hits[name] += seen is not None and seen >= onset
        loops[kind] = {"recall": len(delays) / sessions, "early": early, "median": median(delays) if delays else None}
    n_legitimate, n_loops = sessions * len(LEGITIMATE), sessions * len(LOOPS)
    return {
        "sessions": sessions,
        "legitimate": legitimate,
        "loops": loops,
        "alarms": sum(row["alarms"] for row in legitimate.values()),
        "of": n_legitimate,
        "recall": sum(row["recall"] for row in loops.values()) / len(LOOPS),
        "rivals": {
            name: {"alarms": rival_alarms[name], "of": n_legitimate, "recall": rival_hits[name] / n_loops} for name in TRAJECTORY
        },
    }


def _replayed(made: Session, rng: random.Random) -> Iterator[tuple[int, Finding]]:
    return replay(made, CallLoops().watch, rng, ids=rng.random() < 0.7, compact=rng.random() < 0.3)


def _rival(rule: TrajectoryRule, made: Session) -> int | None:
    for i, step in enumerate(made.steps):
        if isinstance(step, str):
            rule.user()
        elif rule.see(step):
            return i
    return None


# --- tool calls


def tool_calls(half: str, seed: int, *, schemas: int, leaks: int, clean: int, files: int = 400) -> Row:
    """Every mutation against an independent validator; every leak style; clean text, two of five about calls."""
    rng = random.Random(f"{seed} calls {half}")
    shared = Schemas()
    mutants = agree = pointers = false_positive = false_negative = 0
    for _ in range(schemas):
        made = made_calls.schema(rng)
        valid = made_calls.valid_arguments(rng, made)
        oracle = jsonschema.validators.validator_for(made, default=jsonschema.Draft202012Validator)(made)
        tool = OfferedTool("t", "function", json.dumps(made).encode())
        for mutant in (valid, *made_calls.mutations(rng, made, valid)):
            errors = list(oracle.iter_errors(mutant))
            detector = ToolSchema(_asked((tool,)), shared)
            found = list(detector.see(ToolCall(T, 0, "c", "t", json.dumps(mutant))))
            mutants += 1
            agree += bool(found) == bool(errors)
            false_positive += bool(found) and not errors
            false_negative += bool(errors) and not found
            if found and len(errors) <= 8:
                problems = found[0].evidence["problems"]
                assert isinstance(problems, list)
                wanted = {"".join(f"/{key}" for key in error.absolute_path) for error in errors}
                pointers += wanted != {problem["pointer"] for problem in problems}
    corpus = _corpus(half, files)
    names = sorted({made_calls.tool_name(rng) for _ in range(12)})
    tools = tuple(OfferedTool(name, "function", b'{"type": "object"}') for name in names)
    missed: Counter[str] = Counter()
    for style, render in made_calls.LEAKS.items():
        for _ in range(leaks):
            declared = style in made_calls.DECLARED_ONLY or rng.random() < 0.7
            name = rng.choice(names) if declared else f"zz_{rng.choice(names)}"
            text = render(name, made_calls.valid_arguments(rng, made_calls.schema(rng)))
            if style not in made_calls.WHOLE_ONLY and rng.random() < 0.6:
                text = corpus.prose(rng, rng.randint(30, 1500)).replace("`", "") + rng.choice(("\n\n", " ", "\n")) + text
            told = [finding for finding in _leaks(tools, chunks(rng, text), shared) if finding.kind == "tool.leaked"]
            missed[style] += len(told) != 1 or told[0].evidence["tool"] != name
    alarms: Counter[str] = Counter()
    for i, (_, text) in enumerate(clean_texts(corpus, rng, clean)):
        if i % 5 < 2:
            about = made_calls.about_calls(rng, rng.choice(names), made_calls.valid_arguments(rng, made_calls.schema(rng)))
            text = f"{corpus.prose(rng, 500)}\n\n{about}" if rng.random() < 0.5 else about
        for finding in _leaks(tools, chunks(rng, text), shared):
            alarms[finding.kind] += 1
    n_leaks = leaks * len(made_calls.LEAKS)
    return {
        "mutants": mutants,
        "agree": agree,
        "false_positive": false_positive,
        "false_negative": false_negative,
        "pointers_differ": pointers,
        "leaks": n_leaks,
        "styles": len(made_calls.LEAKS),
        "leak_recall": 1 - sum(missed.values()) / n_leaks,
        "missed": {style: n for style, n in missed.items() if n},
        "clean": clean,
        "alarms": dict(alarms),
    }


def _asked(tools: tuple[OfferedTool, ...]) -> Asked:
    return Asked(T, "ollama", "chat", "m", True, tools=tools)


def _leaks(tools: tuple[OfferedTool, ...], pieces: list[str], shared: Schemas) -> list[Finding]:
    detector = ToolSchema(_asked(tools), shared)
    events: list[Event] = [*(TextDelta(T, piece) for piece in pieces), Finished(T, "stop")]
    return [finding for event in events for finding in detector.see(event)]


# --- stalls


def stalls(half: str, seed: int, *, streams: int, chunks_each: int = 1500) -> Row:
    rng = random.Random(f"{seed} stalls {half}")
    rows: dict[str, Row] = {}
    for kind in JITTER:
        false = sum(len(_stalled(times(rng, kind, chunks_each)[0])) for _ in range(streams))
        recall: dict[int, float] = {}
        for ms in (20, 33, 50, 100, 400):
            hit = total = 0
            for _ in range(max(streams // 5, 2)):
                arrivals, places = times(rng, kind, chunks_each, ms * 1_000_000)
                hit += len(set(places) & set(_stalled(arrivals)))
                total += len(places)
            recall[ms] = hit / max(total, 1)
        rows[kind] = {"false_per_1000": 1000 * false / (streams * chunks_each), "gaps": streams * chunks_each, "recall": recall}
    ordinary = [row for kind, row in rows.items() if kind not in HEAVY]
    return {
        "rows": rows,
        "false_per_1000": max(row["false_per_1000"] for row in ordinary),
        "recall_50": min(row["recall"][50] for row in ordinary),
        "ordinary": len(ordinary),
    }


def _stalled(arrivals: list[int]) -> list[int]:
    detector = Stall()
    events: list[Event] = [Began(Nanoseconds(arrivals[0]), "m", None)]
    events += [TextDelta(Nanoseconds(t), "x") for t in arrivals]
    events.append(Finished(Nanoseconds(arrivals[-1]), "stop"))
    # beyond sixteen a stream's stalls are only counted: none of these streams has as many
    return [finding.chunk for event in events for finding in detector.see(event) if finding.chunk is not None]


def host(samples: int = 400) -> Row:
    """CPU of the sampling that tells why a stream stalls: once a second. The dearest of five rounds."""
    sampler, rounds = Host(), []
    for _ in range(5):
        started = time.process_time()
        for _ in range(samples):
            sampler.sample()
        rounds.append((time.process_time() - started) / samples)
    return {"us": 1e6 * max(rounds), "share": max(rounds), "samples": 5 * samples}


# --- truncation


def truncations(half: str, seed: int, *, models: int, seen_before: bool, files: int = 60) -> Row:
    """Conversations against windows. `seen_before`: three ordinary conversations with the model came first."""
    corpus, rng = _corpus(half, files), random.Random(f"{seed} prompts {half} {seen_before}")
    forms: dict[str, Counter[str]] = {form: Counter() for form in ("half_window", "dropped", "refused", "fits")}
    first: Counter[str] = Counter()
    for _ in range(models):
        calibration = Calibration()
        tokenizer = rng.choice(list(TOKENIZERS))
        for line in range(-3 if seen_before else 0, rng.randint(1, 6)):
            mode, window, bad = rng.choice(MODES), rng.choice((2048, 4096, 8192, 16384)), False
            for request in conversation(corpus, rng, "m", tokenizer, mode, window, pace=0.5 if line >= 0 else 0.1):
                detector = Truncation(request.asked, calibration, window_tokens=window, line=line)
                events = list(request.events)
                if rng.random() < 0.5:
                    events.insert(0, Residency(T, (ResidentModel("m:latest", "d", 1, 1, window, None),)))
                told = [f for event in events for f in detector.see(event) if f.evidence["form"] not in ("shifted", "full")]
                row = forms[request.cut or "fits"]
                row["n"] += 1
                row["told"] += bool(told)
                if request.cut and not bad:
                    first["n"] += 1
                    first["told"] += bool(told)
                bad |= bool(request.cut)
    cut = sum(forms[form]["n"] for form in ("half_window", "dropped", "refused"))
    return {
        "seen_before": seen_before,
        "forms": {form: dict(row) for form, row in forms.items()},
        "recall": sum(forms[form]["told"] for form in ("half_window", "dropped", "refused")) / max(cut, 1),
        "cut": cut,
        "first_recall": first["told"] / max(first["n"], 1),
        "first": first["n"],
        "false": forms["fits"]["told"],
        "fits": forms["fits"]["n"],
    }


# --- cost


def cost(half: str, seed: int, *, texts: int, files: int = 60) -> Row:
    """Time per chunk of all detectors together, and of each; memory of one stream after 200 tokens and at its longest."""
    corpus, rng = _corpus(half, files), random.Random(f"{seed} cost {half}")
    tools = tuple(OfferedTool(f"tool_{i}", "function", json.dumps(made_calls.schema(rng)).encode()) for i in range(20))
    streams: list[list[Event]] = []
    events: list[Event]
    n_symbols = n_chunks = 0
    for _, text in clean_texts(corpus, rng, texts):
        t, events = 10**12, []
        pieces = chunks(rng, text)
        for piece in pieces:
            t += round(rng.lognormvariate(0, 0.1) * 16e6)
            events.append(TextDelta(Nanoseconds(t), piece, t))
        n_chunks += len(pieces)
        n_symbols += len(symbols_of(text))
        streams.append(
            [
                Began(Nanoseconds(10**12), "m", None),
                *events,
                Usage(Nanoseconds(t), 100, len(pieces)),
                Finished(Nanoseconds(t), "stop"),
            ]
        )
    suite = Suite()
    made = opened([Message("user", "go")], ("s", 0), 1)
    assert made.asked is not None
    made.asked = replace(made.asked, tools=tools)
    best: dict[str, float] = {}
    for _ in range(3):
        for name in ("all", "TokenLoop", "ToolSchema", "Stall", "Ends", "Truncation", "CallLoop", "none"):
            spent = 0.0
            for events in streams:
                detectors = suite.detectors_for(made, window_tokens=4096)
                seers = [d.see for d in detectors if name in ("all", type(d).__name__)]
                started = time.process_time()
                for event in events:
                    for see in seers:
                        for _finding in see(event):
                            pass
                spent += time.process_time() - started
            best[name] = min(best.get(name, 1e9), spent)
    short: list[Event] = [
        TextDelta(Nanoseconds(10**9 + i), piece) for i, piece in enumerate(chunks(rng, corpus.prose(rng, 1_500))[:200])
    ]
    wide = "".join(rng.choice("🙂日本語абв abc\n") for _ in range(200_000))
    long: list[Event] = [TextDelta(Nanoseconds(10**9 + i), wide[k : k + 8]) for i, k in enumerate(range(0, len(wide), 8))]
    return {
        "chunks": n_chunks,
        "characters_per_chunk": sum(len(e.text) for events in streams for e in events if isinstance(e, TextDelta)) / n_chunks,
        "us_per_chunk": {name: 1e6 * (spent - best["none"]) / n_chunks for name, spent in best.items() if name != "none"},
        "us_per_symbol": 1e6 * (best["all"] - best["none"]) / n_symbols,
        "bytes_200": _held(suite, made, short),
        "bytes_longest": _held(suite, made, long),
    }


def _held(suite: Suite, made: Any, events: list[Event]) -> int:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    detectors = suite.detectors_for(made, window_tokens=4096)
    most = 0
    for i, event in enumerate(events):
        for detector in detectors:
            list(detector.see(event))
        if i % 512 == 0 or i == len(events) - 1:
            most = max(most, tracemalloc.get_traced_memory()[0] - before)
    tracemalloc.stop()
    return most
