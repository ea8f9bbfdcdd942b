"""The probes as sub-commands of qm-proxy: flags → options → a Result → the asked-for form. `attach(app)` adds them.

Results go to stdout, progress and cost to stderr. Ctrl-C ends a run at once and keeps what was measured (exit 130).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from probes.interrupt import EXIT_CODE, Interrupts
from qm_proxy.errors import SettingsError

if TYPE_CHECKING:
    from probes.commands import Options, Session
    from probes.result import Result
    from probes.runner import Progress

__all__ = ["attach"]

Model = Annotated[str, typer.Argument(help="As `ollama list` names it.")]
Upstream = Annotated[str | None, typer.Option(help="The Ollama to measure. [dim]$OLLAMA_HOST or :11434[/]", show_default=False)]
Hardware = Annotated[
    str | None, typer.Option(help="Its machine, if not this: apple:64GiB, nvidia:24GiB+64GiB, FILE.", show_default=False)
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same questions. [dim]random[/]", show_default=False)]
Quick = Annotated[bool, typer.Option("--quick", help="A minute or so, with wider doubt.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and end.")]
Compat = Annotated[str | None, typer.Option(help="quantamind: the origin's definitions beside ours.", show_default=False)]
Out = Annotated[
    Path | None, typer.Option(help="Folder for result, rows, report and pictures; resumes there.", show_default=False)
]
Form = Annotated[str, typer.Option("--format", help="md, html, json, csv, benchstat, or terminal.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
MaxTokens = Annotated[int | None, typer.Option(help="Longest prompt. [dim]32 768, quick 8 192[/]", show_default=False)]
Window = Annotated[int | None, typer.Option(help="num_ctx of the session. [dim]16 384, quick 4 096[/]", show_default=False)]
Think = Annotated[bool | None, typer.Option("--think/--no-think", help="For models that can. [dim]on[/]", show_default=False)]
Budget = Annotated[float | None, typer.Option(help="Minutes of model time, then conclude.", show_default=False)]
Tiers = Annotated[str | None, typer.Option(help="easy,medium,hard,extreme", show_default=False)]
K = Annotated[int | None, typer.Option(help="Runs of a tier.", show_default=False)]
StrictK = Annotated[bool, typer.Option("--strict-k", help="Exactly k runs, all must pass.")]
AllTiers = Annotated[bool, typer.Option("--all-tiers", help="Go on after a tier that fails.")]
Both = Annotated[bool, typer.Option("--both", help="Native tools and prompt-JSON, side by side.")]
Definitions = Annotated[bool, typer.Option("--definitions", help="Append what each number means.")]
Force = Annotated[bool, typer.Option("--force", help="Compare what does not stand on one ground.")]

_FORMS = ("md", "html", "json", "csv", "benchstat", "terminal")


def attach(app: typer.Typer) -> None:
    """Add inspect, audit, agent, report, replay, compare, gate and selftest."""
    for command in (inspect, audit, agent, report, replay, compare, gate, selftest):
        app.command()(command)


def inspect(
    model: Model,
    upstream: Upstream = None,
    hardware: Hardware = None,
    seed: Seed = None,
    quick: Quick = False,
    dry_run: DryRun = False,
    compat: Compat = None,
    out: Out = None,
    form: Form = "terminal",
    window: Window = None,
    evict: Annotated[bool, typer.Option("--evict", help="Also start disk-cold: weights out of the page cache.")] = False,
    budget: Budget = None,
    definitions: Definitions = False,
    as_json: AsJson = False,
) -> None:
    """How fast a model is here, and how much memory it takes.

    Example: [bold]qm-proxy inspect qwen3:8b --quick[/]
    """
    options = partial(
        _options, model, upstream, hardware, seed, quick, dry_run, compat, out, budget, window_tokens=window, evict=evict
    )
    _run("inspect", options, out, form, as_json, definitions)


def audit(
    model: Model,
    upstream: Upstream = None,
    hardware: Hardware = None,
    seed: Seed = None,
    quick: Quick = False,
    deep: Annotated[bool, typer.Option("--deep", help="All question families, up to 96 trials a rung.")] = False,
    dry_run: DryRun = False,
    compat: Compat = None,
    out: Out = None,
    form: Form = "terminal",
    max_tokens: MaxTokens = None,
    think: Think = None,
    budget: Budget = None,
    definitions: Definitions = False,
    as_json: AsJson = False,
) -> None:
    """Where a model's context stops working.

    Example: [bold]qm-proxy audit qwen3:8b --quick --max-tokens 16384[/]
    """
    more = {"max_tokens": max_tokens, "think": think, "deep": deep}
    options = partial(_options, model, upstream, hardware, seed, quick, dry_run, compat, out, budget, **more)
    _run("audit", options, out, form, as_json, definitions)


def agent(
    model: Model,
    upstream: Upstream = None,
    hardware: Hardware = None,
    seed: Seed = None,
    quick: Quick = False,
    dry_run: DryRun = False,
    compat: Compat = None,
    out: Out = None,
    form: Form = "terminal",
    tiers: Tiers = None,
    k: K = None,
    strict_k: StrictK = False,
    all_tiers: AllTiers = False,
    both: Both = False,
    think: Think = None,
    budget: Budget = None,
    as_json: AsJson = False,
) -> None:
    """Can it finish long work with tools.

    Example: [bold]qm-proxy agent qwen3:8b --tiers easy,medium[/]
    """
    more = {"tiers": tiers, "k": k, "strict_k": strict_k, "all_tiers": all_tiers, "both": both, "think": think}
    options = partial(_options, model, upstream, hardware, seed, quick, dry_run, compat, out, budget, **more)
    _run("agent", options, out, form, as_json, False)


def report(
    model: Model,
    upstream: Upstream = None,
    hardware: Hardware = None,
    seed: Seed = None,
    quick: Quick = False,
    dry_run: DryRun = False,
    compat: Compat = None,
    out: Out = None,
    form: Form = "md",
    window: Window = None,
    max_tokens: MaxTokens = None,
    tiers: Tiers = None,
    k: K = None,
    strict_k: StrictK = False,
    all_tiers: AllTiers = False,
    both: Both = False,
    think: Think = None,
    budget: Budget = None,
    definitions: Definitions = False,
    as_json: AsJson = False,
) -> None:
    """All three probes and one verdict, ready to publish.

    Example: [bold]qm-proxy report qwen3:8b --quick --out report/[/]
    """
    more = {"tiers": tiers, "k": k, "strict_k": strict_k, "all_tiers": all_tiers, "both": both, "think": think}
    more |= {"window_tokens": window, "max_tokens": max_tokens}
    options = partial(_options, model, upstream, hardware, seed, quick, dry_run, compat, out, budget, **more)
    _run("report", options, out, form, as_json, definitions)


def replay(
    source: Annotated[Path, typer.Argument(help="Folder that --out wrote, or a result file.")],
    run: Annotated[
        str | None, typer.Argument(help="hard/3, as the report names it. [dim]lists them[/]", show_default=False)
    ] = None,
    form: Annotated[str, typer.Option("--format", help="terminal or html.")] = "terminal",
    as_json: AsJson = False,
) -> None:
    """Walk a run of an Agent Report: what the model did, what the world said, what the oracle would have done.

    Example: [bold]qm-proxy replay report/ hard/3[/]
    """
    from probes.agent import terminal as walked
    from probes.report.replays import page
    from probes.walks import listing, walk_all, walk_one

    if form not in ("terminal", "html"):
        raise SettingsError(f"There is no format {form!r} of a replay.", remedy="There are: terminal, html.")
    items = [walk_one(source, run)] if run is not None else walk_all(source)[1] if as_json or form == "html" else []
    if as_json:
        print(json.dumps(items[0] if run is not None else items, ensure_ascii=False))
    elif form == "html":
        sys.stdout.write(page(items, f"{len(items)} agent runs, step by step" if run is None else f"Run {run}, step by step"))
    elif run is not None:
        print(walked(items[0], _width()))
    else:
        print(*listing(source), "", f"Walk one: qm-proxy replay {source} RUN", sep="\n")


def compare(
    a: Annotated[str, typer.Argument(help="A result file, a run's folder or id, or a model.")],
    b: Annotated[str, typer.Argument(help="The same.")],
    upstream: Upstream = None,
    hardware: Hardware = None,
    seed: Seed = None,
    quick: Quick = False,
    max_tokens: MaxTokens = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Is B really different from A? Two models are measured A B B A, on the same questions. Exit 1: B is worse.

    Example: [bold]qm-proxy compare north:mxfp8 north:mxfp4 --quick[/]
    """
    from probes.abba import compare_targets

    options = _options("", upstream, hardware, seed, quick, False, None, None, None, max_tokens=max_tokens)
    shown = _Shown()
    options.on_progress = shown.see
    try:
        made = asyncio.run(compare_targets(a, b, options, force=force))
    finally:
        shown.end()
    if as_json:
        print(made.model_dump_json(by_alias=True, exclude_none=True))
    else:
        print(made.sentence, *(f"  {metric.words}" for metric in made.metrics), sep="\n")
        if made.cliffs:
            print(f"  A: {made.cliffs['a']}\n  B: {made.cliffs['b']}\n  {made.cliffs['words']}")
        for warning in made.warnings:
            print(f"  ! {warning}")
    raise typer.Exit(made.exit_code)


def gate(
    result: Annotated[Path, typer.Argument(help="result.json, or the folder that holds it.")],
    rules: Annotated[Path, typer.Option(help="TOML file of demands.")],
    baseline: Annotated[Path | None, typer.Option(help="An earlier result, for no_worse_than.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Pass or fail for CI. Exit 0 pass, 1 broken with confidence, 2 wrong rules, 3 undecided, 4 invalid, 5 infrastructure.

    Example: [bold]qm-proxy gate report/ --rules gate.toml[/]
    """
    from probes.gate import gate as judge
    from probes.gate import load_rules

    judged = judge(_read(result), load_rules(rules), _read(baseline) if baseline is not None else None)
    if as_json:
        print(judged.model_dump_json())
    else:
        print(judged.sentence, *(f"  {one.state:12} {one.words}" for one in judged.judged), sep="\n")
    raise typer.Exit(judged.exit_code)


def selftest(
    seed: Annotated[int, typer.Option(help="Draws the random persona.")] = 1,
    full: Annotated[bool, typer.Option("--full", help="5 000 simulated audits a rate, and twenty over sockets.")] = False,
    personas: Annotated[Path | None, typer.Option(help="Also measure the personas of this file.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """The instrument against known truth: planted beside found. Two minutes; exit 1 when one is out of tolerance.

    Example: [bold]qm-proxy selftest --seed 7[/]
    """
    from probes.selftest import selftest as run

    made = asyncio.run(run(seed=seed, full=full, personas=personas, on_check=lambda text: print(f"… {text}", file=sys.stderr)))
    if as_json:
        print(json.dumps(made.as_json(), ensure_ascii=False))
    else:
        print(*(check.words for check in made.checks), sep="\n")
        within = sum(check.within for check in made.checks)
        print(f"{within} of {len(made.checks)} within tolerance, {made.seconds:.0f} s")
    raise typer.Exit(made.exit_code)


def _options(
    model: str,
    upstream: str | None,
    hardware: str | None,
    seed: int | None,
    quick: bool,
    dry_run: bool,
    compat: str | None,
    out: Path | None,
    budget: float | None,
    **more: Any,
) -> Options:
    from probes.commands import Options

    if compat not in (None, "quantamind"):
        raise SettingsError(f"There is no compatibility with {compat!r}.", remedy="There is: --compat quantamind.")
    return Options(
        model,
        upstream or os.environ.get("QM_UPSTREAM") or os.environ.get("OLLAMA_HOST") or "http://127.0.0.1:11434",
        hardware=hardware,
        seed=seed,
        quick=quick,
        dry_run=dry_run,
        compat="quantamind" if compat else None,
        out=out,
        budget_s=budget * 60 if budget is not None else None,
        argv=sys.argv[1:],
        **more,
    )


Kind = Literal["inspect", "audit", "agent", "report"]


def _run(kind: Kind, make: Callable[[], Options], out: Path | None, form: str, as_json: bool, definitions: bool) -> None:
    """Measure, then print. The handlers of signals stand before anything heavy is imported: that takes a second."""
    if form not in _FORMS:
        raise SettingsError(f"There is no format {form!r}.", remedy=f"There are: {', '.join(_FORMS)}.")
    shown = _Shown()
    with Interrupts(out, live=shown.live) as interrupts:
        options = make()
        result, session = _measure(kind, options, shown, interrupts)
        if options.dry_run:
            lines = session.estimate.lines if session.estimate is not None else []
            print(json.dumps(result.run.cost) if as_json else "\n".join(lines))
            raise typer.Exit(0)
        _print(result, "json" if as_json else form, definitions, options.out, interrupts)
    raise typer.Exit(EXIT_CODE if interrupts.asked else result.run.exit_code)


def _measure(kind: Kind, options: Options, shown: _Shown, interrupts: Interrupts) -> tuple[Result, Session]:
    from probes.commands import Session, audit_context, inspect_model, report_agent, report_model
    from probes.traffic import Traffic

    command = {"inspect": inspect_model, "audit": audit_context, "agent": report_agent, "report": report_model}[kind]
    options.on_progress = None if options.dry_run else shown.see  # a dry run prints its cost itself
    traffic = Traffic(options.upstream)
    options.other_traffic, options.traffic_since = traffic.now, traffic.since

    async def main() -> tuple[Result, Session]:
        session = Session(kind, options)
        interrupts.measuring(asyncio.get_running_loop(), session.stop)
        return await command(options, session), session

    try:
        return asyncio.run(main())
    finally:
        interrupts.writing()
        shown.end()


def _print(result: Result, form: str, definitions: bool, out: Path | None, interrupts: Interrupts) -> None:
    from probes.report import render, save, terminal
    from probes.walks import save_replays

    if out is not None:
        try:
            replays = save_replays(out) if result.agent is not None and not interrupts.asked else None
            for path in (*save(result, out, lambda: interrupts.asked), *([replays] if replays else [])):
                print(f"wrote {path}", file=sys.stderr)
            if result.run.state == "interrupted":
                print("no pictures and no page of an interrupted run; the same command goes on with it", file=sys.stderr)
            if form == "md":
                return
        except OSError as cause:  # what was measured is told all the same
            print(f"qm-proxy: The report cannot be written to {out}: {cause.strerror or cause}.", file=sys.stderr)
            result.run.exit_code = result.run.exit_code or 5
    if form == "terminal":
        from rich.console import Console

        Console().print(terminal(result, out))
    else:
        sys.stdout.write(render(result, form, definitions=definitions))  # type: ignore[arg-type]  # checked against _FORMS


class _Shown:
    """Progress on stderr: one line that is rewritten on a terminal; what it costs stays, and is all where there is none."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty() and "NO_COLOR" not in os.environ
        self._written = False

    def see(self, progress: Progress) -> None:
        if progress.lasting or (progress.quiet and not self.live):
            self.end()
            print(progress.text, file=sys.stderr, flush=True)
            self._written = False
            return
        if not self.live:
            return
        left = f", {progress.eta_s:.0f} s left" if progress.eta_s is not None else ""
        share = f" {progress.step}/{progress.steps}" if progress.steps else ""
        sys.stderr.write(f"\r\033[K{progress.text}{share} ({progress.elapsed_s:.0f} s{left})")
        sys.stderr.flush()
        self._written = True

    def end(self) -> None:
        if self._written:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def _width() -> int:
    return max(60, shutil.get_terminal_size((120, 24)).columns)


def _read(path: Path) -> Result:
    from probes.result import Result

    file = path / "result.json" if path.is_dir() else path
    try:
        return Result.from_json(file.read_bytes())
    except OSError as cause:
        raise SettingsError(f"{file} cannot be read: {cause.strerror}.") from cause
    except ValueError as cause:
        raise SettingsError(f"{file} is no qm-probes/1 result: {cause}.") from cause
