"""Measures the detectors on generated corpora and prints issue-style numbers beside the rules of others.

    python benchmarks/bench_detect.py             the whole (30 000 clean answers; some ten minutes on one core)
    python benchmarks/bench_detect.py --small     a taste, in seconds
    python benchmarks/bench_detect.py --scale 0.3 three tenths of it: read the counts beside the rates
    python benchmarks/bench_detect.py --half dev  the half on which thresholds were chosen; the default is the other one
    python benchmarks/bench_detect.py --part stalls --rows FILE     one part of it, added to FILE; without --part: what FILE holds

Clean answers are texts of this machine (two of five: generated hard negatives), so absolute rates differ a little between
machines. Thresholds were frozen on the dev half. Exit code 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.detect import measure


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the whole (default 1)")
    parser.add_argument("--half", choices=("dev", "test"), default="test")
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", action="append", help="only this part, as named in --json; may be given again")
    parser.add_argument("--rows", type=Path, help="keep the rows here, so that the whole can be run in parts")
    args = parser.parse_args()
    started = time.perf_counter()
    half, seed = args.half, args.seed
    scale = 0.02 if args.small else args.scale
    files = 40 if args.small else 400

    def of(n: int, least: int = 2) -> int:
        return max(round(n * scale), least)

    parts: dict[str, Callable[[], dict]] = {  # type: ignore[type-arg]
        "token_loops": lambda: measure.token_loops(half, seed, clean=of(30_000), loops=of(100), rivals=of(20, 10), files=files),
        "invariance": lambda: measure.invariance(half, seed, texts=of(400), files=files),
        "trajectories": lambda: measure.trajectories(half, seed, sessions=of(100, 3)),
        "tool_calls": lambda: measure.tool_calls(half, seed, schemas=of(300), leaks=of(30), clean=of(20_000), files=files),
        "stalls": lambda: measure.stalls(half, seed, streams=of(60, 4)),
        "truncation": lambda: measure.truncations(half, seed, models=of(300, 8), seen_before=True),
        "truncation_new": lambda: measure.truncations(half, seed, models=of(300, 8), seen_before=False),
        "host": measure.host,
        "cost": lambda: measure.cost(half, seed, texts=of(400, 30)),
    }
    rows = json.loads(args.rows.read_text(), object_hook=_whole_keys) if args.rows and args.rows.exists() else {}
    seconds = rows.pop("seconds", 0.0)
    wanted = args.part or ([] if rows else list(parts))
    rows |= {name: parts[name]() for name in wanted}
    seconds += time.perf_counter() - started
    if args.rows:
        args.rows.write_text(json.dumps(rows | {"seconds": seconds}, indent=1, default=str))
    if missing := parts.keys() - rows.keys():
        print(f"still to run: {', '.join(sorted(missing))}")
        return 0
    broken = report(rows, half, seconds) if not args.json else [name for name, _, good in promises(rows) if not good]
    if args.json:
        print(json.dumps(rows, indent=1, default=str))
    return 1 if broken else 0


def _whole_keys(row: dict[str, object]) -> dict[object, object]:
    return {int(key) if key.isdigit() else key: value for key, value in row.items()}


def promises(rows: dict[str, dict]) -> list[tuple[str, str, bool]]:  # type: ignore[type-arg]
    """What was promised, what was found, and whether it holds."""
    loops, calls, stalls, cost = rows["token_loops"], rows["tool_calls"], rows["stalls"], rows["cost"]
    sessions, cut, per = rows["trajectories"], rows["truncation"], 10_000 / max(rows["token_loops"]["clean"], 1)
    leaks = sum(calls["alarms"].values())
    return [
        ("exact token loops: recall >= 0.99", f"{loops['exact_recall']:.4f}", loops["exact_recall"] >= 0.99),
        (
            "  median delay <= 180 symbols",
            f"{loops['exact_delay']}",
            loops["exact_delay"] is not None and loops["exact_delay"] <= 180,
        ),
        (
            "  false alarms <= 1 per 10 000",
            f"{loops['alarms_exact'] * per:.2f} ({loops['alarms_exact']} of {loops['clean']})",
            loops["alarms_exact"] * per <= 1,
        ),
        ("  hard negatives >= 35 %", f"{loops['hard_share']:.1%}", loops["hard_share"] >= 0.35),
        ("near token loops: recall >= 0.90", f"{loops['near_recall']:.4f}", loops["near_recall"] >= 0.90),
        (
            "  false alarms <= 3 per 10 000",
            f"{loops['alarms_near'] * per:.2f} ({loops['alarms_near']} of {loops['clean']})",
            loops["alarms_near"] * per <= 3,
        ),
        (
            "verdict depends on the cut: 0 failures",
            f"{rows['invariance']['failures']} of {3 * rows['invariance']['texts']}",
            not rows["invariance"]["failures"],
        ),
        (
            f"trajectories: recall >= 0.98 over {len(sessions['loops'])} families",
            f"{sessions['recall']:.4f}",
            sessions["recall"] >= 0.98,
        ),
        (
            f"  false alarms <= 1 per 500 over {len(sessions['legitimate'])} families",
            f"{sessions['alarms']} of {sessions['of']}",
            sessions["alarms"] * 500 <= sessions["of"],
        ),
        (
            "tool calls: precision = recall = 1",
            f"{calls['agree']} of {calls['mutants']} agree, {calls['pointers_differ']} pointers differ",
            calls["agree"] == calls["mutants"] and not calls["pointers_differ"],
        ),
        (f"leaks: recall >= 0.97 over {calls['styles']} styles", f"{calls['leak_recall']:.4f}", calls["leak_recall"] >= 0.97),
        (
            "  false alarms <= 1 per 10 000",
            f"{leaks} of {calls['clean']}",
            leaks * 10_000 <= max(calls["clean"], 10_000 * leaks if leaks == 0 else 0),
        ),
        (
            "host sampling <= 0.5 % of a core",
            f"{rows['host']['share']:.3%} ({rows['host']['us']:.0f} us of CPU a second)",
            rows["host"]["share"] <= 0.005,
        ),
        ("stalls of 50 ms at 60 tok/s: all", f"{stalls['recall_50']:.4f}", stalls["recall_50"] >= 0.9995),
        (
            "  false <= 0.1 per 1 000 gaps",
            f"{stalls['false_per_1000']:.3f} (worst of {stalls['ordinary']} kinds)",
            stalls["false_per_1000"] <= 0.1,
        ),
        ("truncation: recall >= 0.99", f"{cut['recall']:.4f} of {cut['cut']}", cut["recall"] >= 0.99),
        ("  false on requests that fit: 0", f"{cut['false']} of {cut['fits']}", cut["false"] == 0),
        (
            "all detectors <= 5 us per chunk",
            f"{cost['us_per_chunk']['all']:.2f} ({cost['us_per_symbol']:.2f} per symbol)",
            cost["us_per_chunk"]["all"] <= 5,
        ),
        ("memory <= 32 KiB at 200 tokens", f"{cost['bytes_200'] / 1024:.1f} KiB", cost["bytes_200"] <= 32 * 1024),
        ("memory <= 0.5 MB at any length", f"{cost['bytes_longest'] / 1e6:.3f} MB", cost["bytes_longest"] <= 500_000),
    ]


def report(rows: dict[str, dict], half: str, seconds: float) -> list[str]:  # type: ignore[type-arg]
    loops, sessions, calls = rows["token_loops"], rows["trajectories"], rows["tool_calls"]
    print(
        f"half: {half}; {sum(loops['files'].values())} files of {len(loops['files'])} kinds ({loops['dropped']} that are loops left out)\n"
    )
    told = promises(rows)
    for name, value, good in told:
        print(f"  {'ok  ' if good else 'MISS'}  {name:52} {value}")
    print(f"\ntoken loops, {loops['loops']} of each family: recall, symbols to the alarm (median, 90 %)")
    for name, row in loops["families"].items():
        print(
            f"  {name:14} {row['recall']:.3f}  {row['median'] or '-':>7} {row['p90'] or '-':>6}"
            + (f"  early {row['early']}" if row["early"] else "")
        )
    print(
        f"\ntext rules of others: recall exact, near; median symbols; alarms per 10 000 clean (of {next(iter(loops['rivals'].values()))['of']})"
    )
    print(
        f"  {'qm-proxy':34} {loops['exact_recall']:.3f} {loops['near_recall']:.3f} {loops['exact_delay'] or '-':>7} {(loops['alarms_exact'] + loops['alarms_near']) * 1e4 / loops['clean']:9.1f}"
    )
    for name, row in loops["rivals"].items():
        print(
            f"  {name:34} {row['exact']:.3f} {row['near']:.3f} {row['delay'] or '-':>7} {row['alarms'] * 1e4 / max(row['of'], 1):9.1f}"
        )
    if loops["alarm_kinds"]:
        print(f"  our alarms: {loops['alarm_kinds']} {loops['examples'][:6]}")
    print(f"\ntrajectories, {sessions['sessions']} of each family: recall, answers to the alarm")
    for name, row in sessions["loops"].items():
        print(f"  {name:24} {row['recall']:.3f} {row['median'] or '-':>6}" + (f"  early {row['early']}" if row["early"] else ""))
    print("\ntrajectory rules: recall, false alarms in legitimate sessions")
    print(f"  {'qm-proxy':14} {sessions['recall']:.3f} {sessions['alarms']:6} of {sessions['of']}")
    for name, row in sessions["rivals"].items():
        print(f"  {name:14} {row['recall']:.3f} {row['alarms']:6} of {row['of']}")
    noisy = {name: row["alarms"] for name, row in sessions["legitimate"].items() if row["alarms"]}
    print(
        f"  ours by family: {noisy or 'none'}; re-reading told as a cost in {sum(r['costs'] for r in sessions['legitimate'].values())} sessions"
    )
    print(f"\nleaks missed: {calls['missed'] or 'none'}; alarms on {calls['clean']} clean answers: {calls['alarms'] or 'none'}")
    print("\nstalls: false per 1 000 gaps; recall of 20, 33, 50, 100, 400 ms")
    for name, row in rows["stalls"]["rows"].items():
        print(
            f"  {name:20} {row['false_per_1000']:.3f}  " + " ".join(f"{row['recall'][ms]:.3f}" for ms in (20, 33, 50, 100, 400))
        )
    print("\ntruncation: told of n, by what happened")
    for name, row in (("model seen before", rows["truncation"]), ("first conversations", rows["truncation_new"])):
        parts = ", ".join(f"{form} {its.get('told', 0)}/{its.get('n', 0)}" for form, its in row["forms"].items())
        print(f"  {name:20} recall {row['recall']:.4f}, at the first bad request {row['first_recall']:.4f}; {parts}")
    cost = rows["cost"]
    print(
        f"\ncost in us per chunk of {cost['characters_per_chunk']:.1f} characters ({cost['chunks']} chunks): "
        + ", ".join(f"{name} {us:.2f}" for name, us in cost["us_per_chunk"].items())
    )
    print(f"\n{seconds:.0f} s")
    return [name for name, _, good in told if not good]


if __name__ == "__main__":
    sys.exit(main())
