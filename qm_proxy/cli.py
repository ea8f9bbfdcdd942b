"""The command `qm-proxy`: flags → settings → wiring → run. Errors become one clear line and CONTRACT's exit code."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from probes.cli import attach
from qm_proxy import __version__
from qm_proxy.errors import QmError, SettingsError

__all__ = ["app", "main"]

app = typer.Typer(
    name="qm-proxy",
    help="An oscilloscope for Ollama: times every token of real traffic, and measures a model on demand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Listen = Annotated[str | None, typer.Option(help="Where clients connect. [dim]127.0.0.1:11436[/]", show_default=False)]
UpstreamUrl = Annotated[str | None, typer.Option(help="The Ollama behind it. [dim]$OLLAMA_HOST or :11434[/]", show_default=False)]
Console = Annotated[str | None, typer.Option(help="Page, API, metrics, MCP; or off. [dim]127.0.0.1:11437[/]", show_default=False)]
Db = Annotated[str | None, typer.Option(help="SQLite file, or off. [dim]data directory[/]", show_default=False)]
Config = Annotated[Path | None, typer.Option(help="TOML file with the same names.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"qm-proxy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def _settings(config: Path | None, **flags: Any) -> Any:
    from qm_proxy.settings import load

    return load({name: value for name, value in flags.items() if value is not None}, config)


def plan_of(settings: Any, **beside: Any) -> dict[str, Any]:
    """The settings as the JSON that supervisor, relays and observer are started with."""
    plan: dict[str, Any] = settings.model_dump(mode="json")
    plan["console"] = None if plan["console"].strip().lower() == "off" else plan["console"]
    return plan | beside


@app.command()
def serve(
    listen: Listen = None,
    upstream: UpstreamUrl = None,
    console: Console = None,
    db: Db = None,
    guard: Annotated[str | None, typer.Option(help="observe or cut. [dim]observe[/]", show_default=False)] = None,
    workers: Annotated[int | None, typer.Option(help="Relay processes. [dim]1[/]", show_default=False)] = None,
    capture_content: Annotated[bool | None, typer.Option("--capture-content", help="Store prompts and answers.")] = None,
    no_excerpts: Annotated[bool, typer.Option("--no-excerpts", help="Findings keep no text at all.")] = False,
    grace: Annotated[float | None, typer.Option(help="Seconds for streams to end. [dim]10[/]", show_default=False)] = None,
    console_token: Annotated[str | None, typer.Option(help="Bearer token the console asks for.", show_default=False)] = None,
    read_only: Annotated[bool | None, typer.Option("--read-only", help="The console starts no probes.")] = None,
    poll: Annotated[float | None, typer.Option(help="Seconds between looks at /api/ps. [dim]2[/]", show_default=False)] = None,
    config: Config = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line per exchange.")] = False,
) -> None:
    """Proxy in front of Ollama, with its console.

    Example: [bold]qm-proxy serve[/], then point your editor at http://127.0.0.1:11436 (see [bold]qm-proxy clients[/]).
    """
    settings = _settings(
        config,
        listen=listen,
        upstream=upstream,
        console=console,
        db=db,
        guard=guard,
        workers=workers,
        capture_content=capture_content,
        excerpts=False if no_excerpts else None,
        grace=grace,
        console_token=console_token,
        read_only=read_only,
        poll=poll,
    )
    plan = plan_of(settings, quiet=quiet)
    sys.stdout.flush()
    # The supervisor is small and stays; this process, with pydantic and typer in it, becomes the supervisor.
    os.execv(sys.executable, [sys.executable, "-m", "qm_proxy.supervisor", json.dumps(plan)])


@app.command()
def sim(
    listen: Annotated[str, typer.Option(help="Where it answers as Ollama would.")] = "127.0.0.1:11434",
    personas: Annotated[Path | None, typer.Option(help="JSON file with more personas.", show_default=False)] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Show the personas and their truth, and end.")] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same behaviour.")] = 0,
    speed: Annotated[float, typer.Option(help="1 is real time; 10 is ten times as fast.")] = 1.0,
    slots: Annotated[int | None, typer.Option(help="Parallel slots of every model.", show_default=False)] = None,
    max_loaded: Annotated[int, typer.Option(min=1, help="Models loaded at once; one more evicts one.")] = 3,
    truth: Annotated[Path | None, typer.Option(help="Log what was really sent, as JSONL.", show_default=False)] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of persona files, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """The simulated Ollama alone: models with stated truth.

    Example: [bold]qm-proxy sim --listen 127.0.0.1:11434[/], then [bold]ollama list[/].
    """
    from probes.sim.command import run

    raise typer.Exit(
        run(
            listen,
            personas,
            list_only=list_only,
            schema_only=schema,
            as_json=as_json,
            speed=speed,
            seed=seed,
            slots=slots,
            max_loaded=max_loaded,
            truth=truth,
        )
    )


@app.command()
def demo(
    seconds: Annotated[float | None, typer.Option(help="End by itself after this long.", show_default=False)] = None,
    listen: Annotated[str, typer.Option(help="Proxy address; port 0 takes a free one.")] = "127.0.0.1:0",
    console: Annotated[str, typer.Option(help="Console address.")] = "127.0.0.1:0",
    db: Db = None,
    seed: Annotated[int, typer.Option(help="Same seed, same traffic.")] = 7,
    as_json: AsJson = False,
) -> None:
    """The whole thing at work on a simulated Ollama with known truth; ends with planted beside found.

    Example: [bold]qm-proxy demo --seconds 20[/]
    """
    from qm_proxy.demo.run import run_demo

    raise typer.Exit(run_demo(seconds=seconds, listen=listen, console=console, db=db, seed=seed, as_json=as_json))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    listen: Listen = None,
    upstream: UpstreamUrl = None,
    console: Console = None,
    db: Db = None,
    config: Config = None,
) -> None:
    """Run a command (an agent, an editor) with just that child pointed at the proxy; serves if nothing does yet.

    Example: [bold]qm-proxy run -- claude --model qwen3-coder[/]
    """
    from qm_proxy.run import run_command

    if not context.args:
        raise SettingsError("There is no command to run.", remedy="qm-proxy run -- COMMAND …")
    settings = _settings(config, listen=listen, upstream=upstream, console=console, db=db)
    raise typer.Exit(run_command(context.args, plan_of(settings, quiet=True)))


@app.command()
def clients(
    name: Annotated[str | None, typer.Argument(help="One client; all when left out.", show_default=False)] = None,
    listen: Listen = None,
    console: Console = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """The exact lines that point an editor or agent at the proxy and at the MCP server.

    Example: [bold]qm-proxy clients claude-code[/]
    """
    from qm_proxy.clients import CLIENTS, find

    settings = _settings(config, listen=listen, console=console)
    proxy = f"http://{settings.listen}"
    mcp = None if settings.console == "off" else f"http://{settings.console}"
    chosen = CLIENTS
    if name is not None:
        one = find(name)
        if one is None:
            raise SettingsError(f"No lines for {name!r}.", remedy="Known: " + ", ".join(c.name for c in CLIENTS) + ".")
        chosen = (one,)
    if as_json:
        rows = [
            {
                "name": c.name,
                "title": c.title,
                "dialect": c.dialect,
                "point": c.point(proxy),
                "mcp": c.mcp(mcp) if c.mcp and mcp else None,
                "environment": c.environment(proxy) if c.environment else None,
            }
            for c in chosen
        ]
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console as Screen

    screen = Screen(highlight=False, soft_wrap=True)
    for c in chosen:
        screen.print(f"[bold]{c.title}[/]  [dim]{c.dialect}[/]")
        screen.print(_indent(c.point(proxy)), markup=False)
        if c.mcp and mcp:
            screen.print("  [dim]MCP:[/]")
            screen.print(_indent(c.mcp(mcp)), markup=False)
        screen.print()


def _indent(text: str) -> str:
    return "\n".join(f"  {part}" for part in text.splitlines())


@app.command()
def doctor(
    listen: Listen = None,
    upstream: UpstreamUrl = None,
    console: Console = None,
    db: Db = None,
    config: Config = None,
    unhang: Annotated[str | None, typer.Option(metavar="MODEL", help="Free a hung slot of MODEL.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Is everything in place? Each finding with its remedy.

    Example: [bold]qm-proxy doctor[/]; [bold]qm-proxy doctor --unhang qwen3:8b[/] when a model stopped answering.
    """
    from qm_proxy import doctor as examination

    settings = _settings(config, listen=listen, upstream=upstream, console=console, db=db)
    if unhang is not None:
        reason = examination.unhang(settings.upstream, unhang)
        if as_json:
            print(json.dumps({"model": unhang, "answer": reason}))
        else:
            print(f"{unhang}: {reason}. The next request loads it afresh.")
        return
    checks = list(examination.examine(settings))
    if as_json:
        print(json.dumps([{"name": c.name, "state": c.state, "found": c.found, "remedy": c.remedy} for c in checks], indent=2))
    else:
        from rich.console import Console as Screen

        screen = Screen(highlight=False)
        marks = {"good": "[green]✓[/]", "note": "[yellow]![/]", "bad": "[red]✗[/]"}
        for check in checks:
            screen.print(f"{marks[check.state]} {check.name:<22} {check.found}")
            if check.remedy:
                screen.print(f"  [dim]{'':<22} {check.remedy}[/]")
    if any(c.state == "bad" and c.name == "upstream" for c in checks):
        raise typer.Exit(5)
    if any(c.state == "bad" for c in checks):
        raise typer.Exit(2)


@app.command()
def mcp(
    listen: Listen = None,
    upstream: UpstreamUrl = None,
    console: Console = None,
    db: Db = None,
    console_token: Annotated[str | None, typer.Option(show_default=False)] = None,
    config: Config = None,
) -> None:
    """MCP over stdio: piped to a running console or, if none runs, serving by itself.

    Example: [bold]claude mcp add qm -- qm-proxy mcp[/]
    """
    from probes.mcp_pipe import pipe
    from qm_proxy.run import already_serving
    from qm_proxy.servant import Servant

    settings = _settings(config, listen=listen, upstream=upstream, console=console, db=db, console_token=console_token)
    plan = plan_of(settings, quiet=True)
    if plan["console"] is None:
        raise SettingsError("MCP is part of the console, which is off.", remedy="Leave --console on.")
    if running := already_serving(plan["console"], settings.console_token):
        pipe(running[1], settings.console_token)
        return
    with Servant(plan) as servant:
        print(f"qm-proxy: serving {servant.proxy} for this MCP client", file=sys.stderr)
        pipe(servant.console or "", settings.console_token)


Limit = Annotated[int, typer.Option(min=1, max=500, help="How many.")]
Cursor = Annotated[str | None, typer.Option(help="Go on behind a page.", show_default=False)]
Since = Annotated[str | None, typer.Option(help="From this ISO instant on.", show_default=False)]


def _given(**filters: Any) -> dict[str, Any]:
    return {name: value for name, value in filters.items() if value is not None}


@app.command()
def sessions(
    limit: Limit = 20,
    cursor: Cursor = None,
    model: Annotated[str | None, typer.Option(show_default=False)] = None,
    client: Annotated[str | None, typer.Option(show_default=False)] = None,
    finding: Annotated[str | None, typer.Option(help="With a finding of this kind.", show_default=False)] = None,
    since: Since = None,
    db: Db = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """The sessions seen, last active first.

    Example: [bold]qm-proxy sessions --client claude-code[/]
    """
    from qm_proxy.reading import list_sessions, open_store, page_out, screen_width

    stored = open_store(_settings(config, db=db).db)
    filters = _given(cursor=cursor, model=model, client=client, finding=finding, since=since)
    page, lines = _asked(lambda: list_sessions(stored, width=screen_width(), limit=limit, **filters))
    page_out(page, lines, as_json)


@app.command()
def findings(
    limit: Limit = 50,
    cursor: Cursor = None,
    kind: Annotated[str | None, typer.Option(help="A kind, or a family: loop, tool, …", show_default=False)] = None,
    since: Since = None,
    db: Db = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """What was detected, newest first.

    Example: [bold]qm-proxy findings --kind loop[/]
    """
    from qm_proxy.reading import list_findings, open_store, page_out, screen_width

    stored = open_store(_settings(config, db=db).db)
    filters = _given(cursor=cursor, kind=kind, since=since)
    page, lines = _asked(lambda: list_findings(stored, width=screen_width(), limit=limit, **filters))
    page_out(page, lines, as_json)


@app.command()
def show(
    wanted: Annotated[
        str, typer.Argument(metavar="ID", help="An exchange's or session's, or its beginning; 'last': the newest exchange.")
    ],
    db: Db = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """One exchange with its token waterfall, or one session with its turns.

    Example: [bold]qm-proxy show last[/]
    """
    import shutil

    from qm_proxy import reading

    stored = reading.open_store(_settings(config, db=db).db)
    if wanted == "last":
        newest = stored.exchanges(limit=1)["items"]
        if not newest:
            raise SettingsError("Nothing has been seen yet.", remedy="Send a request through the proxy.")
        wanted = newest[0]["id"]
    width = max(40, min(120, shutil.get_terminal_size((100, 40)).columns))
    found, lines = _asked(lambda: reading.show(stored, wanted, width))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print("\n".join(lines))


@app.command()
def tail(console: Console = None, config: Config = None, as_json: AsJson = False) -> None:
    """Follow a running proxy: every answer and finding, live.

    Example: [bold]qm-proxy tail[/]
    """
    from qm_proxy.reading import follow

    settings = _settings(config, console=console)
    if settings.console == "off":
        raise SettingsError("tail follows the console, which is off.", remedy="Give its address with --console.")
    follow(f"http://{settings.console}", as_json=as_json, token=settings.console_token)


@app.command()
def export(
    since: Since = None,
    chunks: Annotated[bool, typer.Option("--chunks", help="With every chunk's time.")] = False,
    out: Annotated[Path | None, typer.Option(help="A file; stdout when left out.", show_default=False)] = None,
    db: Db = None,
    config: Config = None,
) -> None:
    """Every stored exchange as JSON lines, oldest first.

    Example: [bold]qm-proxy export --since 2026-11-01 > exchanges.jsonl[/]
    """
    from qm_proxy.reading import export_lines, open_store

    stored = open_store(_settings(config, db=db).db)
    lines = _asked(lambda: export_lines(stored, since=since, chunks=chunks))
    if out is None:
        for line in lines:
            print(line)
        return
    n = 0
    try:
        file = out.open("w", encoding="utf-8")
    except OSError as exc:
        raise SettingsError(f"{out} cannot be written: {exc.strerror}.", remedy="Give another file with --out.") from exc
    with file:
        for line in lines:
            file.write(line + "\n")
            n += 1
    print(f"{n} exchanges → {out}", file=sys.stderr)


@app.command()
def merge(
    into: Annotated[Path, typer.Argument(metavar="INTO", help="The database that receives; made if need be.")],
    sources: Annotated[list[Path], typer.Argument(metavar="FROM", help="Other machines' databases; they are only read.")],
    as_json: AsJson = False,
) -> None:
    """Bring the databases of several machines into one; doing it twice adds nothing.

    Example: [bold]qm-proxy merge all.db desk.db laptop.db[/], then [bold]qm-proxy sessions --db all.db[/]

    Copy a database together with its -wal file, or after its proxy ended.
    Sessions stay as each machine stitched them: message hashes are keyed by
    each database's own key, so one that moved between machines stays two.
    """
    from qm_proxy.reading import merge_stores

    added = merge_stores(into, sources)
    if as_json:
        print(json.dumps({"into": str(into), "sources": [str(path) for path in sources], "added": added}, indent=2))
        return
    told = ", ".join(f"{n} {table.replace('_', ' ')}" for table, n in added.items() if n)
    print(f"{into}: {told or 'nothing new'}")


def _asked(ask: Any) -> Any:
    """A query's `ValueError` (a bad cursor, instant or limit) as the user's mistake that it is."""
    try:
        return ask()
    except ValueError as exc:
        raise SettingsError(str(exc)) from exc


attach(app)


def _by_ctrl_c(ended: BaseException) -> bool:
    """The command-line library exits 1 for Ctrl-C, which here means a regression."""
    cause: BaseException | None = ended
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def main() -> None:
    """Entry of the command and of `python -m qm_proxy`."""
    try:
        app(standalone_mode=True)
    except QmError as exc:
        print(f"qm-proxy: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        print("qm-proxy: interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as ended:
        sys.exit(130 if _by_ctrl_c(ended) else ended.code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
