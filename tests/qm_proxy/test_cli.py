"""The reading commands, through the same door as a user: arguments in, stdout, stderr and exit code out."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from qm_proxy import __version__
from qm_proxy.cli import app, main, plan_of
from qm_proxy.settings import load


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Said]:
    """The command itself, with its translation of errors into lines and exit codes."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("COLUMNS", "100")

    def command(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["qm-proxy", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return command


def _one_line(said: Said, *words: str) -> None:
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith("qm-proxy: ")
    assert len(said.err.splitlines()) == 1
    for word in words:
        assert word in said.err


def test_help_names_every_command() -> None:
    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert said.exit_code == 0
    for name in ("serve", "demo", "run", "sim", "inspect", "audit", "agent", "report", "compare", "gate", "selftest"):
        assert name in said.output
    for name in ("sessions", "show", "tail", "findings", "export", "mcp", "clients", "doctor"):
        assert name in said.output


def test_version(run: Callable[..., Said]) -> None:
    assert run("--version") == (0, f"qm-proxy {__version__}\n", "")


def test_sessions(run: Callable[..., Said], filled: tuple[Path, list[Any]]) -> None:
    path, records = filled
    said = run("sessions", "--db", str(path))
    assert (said.code, said.err, len(said.out.splitlines())) == (0, "", 1 + 2)
    page = json.loads(run("sessions", "--db", str(path), "--json", "--client", "codex").out)
    assert [s["id"] for s in page["items"]] == [records[5].session_id]
    first = run("sessions", "--db", str(path), "--limit", "1")
    cursor = first.err.removeprefix("more: --cursor ").strip()
    rest = json.loads(run("sessions", "--db", str(path), "--cursor", cursor, "--json").out)
    assert [s["id"] for s in rest["items"]] == [records[0].session_id]


def test_findings(run: Callable[..., Said], filled: tuple[Path, list[Any]]) -> None:
    path, _ = filled
    assert len(run("findings", "--db", str(path)).out.splitlines()) == 2
    page = json.loads(run("findings", "--db", str(path), "--kind", "stall", "--json").out)
    assert {f["kind"] for f in page["items"]} == {"stall"}
    assert run("findings", "--db", str(path), "--kind", "loop") == (0, "", "Nothing there, or nothing that matches.\n")


def test_show_by_id_and_the_last(run: Callable[..., Said], filled: tuple[Path, list[Any]]) -> None:
    path, records = filled
    for wanted in (records[-1].id, "last"):
        document = json.loads(run("show", wanted, "--db", str(path), "--json").out)
        assert document["exchange"]["id"] == records[-1].id
        assert document["chunks"]["format"] == 1
    drawn = run("show", "last", "--db", str(path))
    assert (drawn.code, drawn.err) == (0, "")
    assert records[-1].id in drawn.out
    assert "each cell" in drawn.out
    assert run("show", records[-1].id[:-1], "--db", str(path)) == drawn, "the beginning of an id will do"
    _one_line(run("show", records[0].id[:8], "--db", str(path)), "begins several ids", records[0].id)
    session = json.loads(run("show", records[0].session_id, "--db", str(path), "--json").out)
    assert len(session["session"]["items"]) == 3


def test_export_to_stdout_and_to_a_file(run: Callable[..., Said], filled: tuple[Path, list[Any]], tmp_path: Path) -> None:
    path, records = filled
    said = run("export", "--db", str(path))
    ids = [json.loads(line)["id"] for line in said.out.splitlines()]
    assert ids == [r.id for r in records]
    out = tmp_path / "all.jsonl"
    said = run("export", "--db", str(path), "--out", str(out), "--chunks")
    assert (said.out, said.err.strip()) == ("", f"6 exchanges → {out}")
    assert all(json.loads(line)["series"] for line in out.read_text().splitlines())


@pytest.mark.parametrize("command", [["sessions"], ["findings"], ["show", "last"], ["export"]])
def test_without_a_database(run: Callable[..., Said], command: list[str], tmp_path: Path) -> None:
    _one_line(run(*command), "no database", "qm-proxy serve")
    _one_line(run(*command, "--db", "off"), "--db is off")
    _one_line(run(*command, "--db", str(tmp_path / "x.db"), "--config", str(tmp_path / "none.toml")), "none.toml", "--config")


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (["sessions", "--since", "yesterday"], "instant"),
        (["sessions", "--cursor", "nonsense"], "cursor"),
        (["findings", "--since", "yesterday"], "instant"),
        (["findings", "--cursor", "nonsense"], "cursor"),
        (["show", "0199"], "no exchange and no session"),
        (["export", "--since", "yesterday"], "instant"),
        (["export", "--out", "/nowhere/at/all.jsonl"], "cannot be written"),
    ],
)
def test_a_users_mistake_is_one_line(
    run: Callable[..., Said], filled: tuple[Path, list[Any]], command: list[str], word: str
) -> None:
    _one_line(run(*command, "--db", str(filled[0])), word)


def test_a_bad_instant_leaves_the_file_alone(run: Callable[..., Said], filled: tuple[Path, list[Any]], tmp_path: Path) -> None:
    out = tmp_path / "kept.jsonl"
    out.write_text("kept")
    assert run("export", "--db", str(filled[0]), "--since", "?", "--out", str(out)).code == 2
    assert out.read_text() == "kept"


def test_nothing_seen_yet(run: Callable[..., Said], tmp_path: Path) -> None:
    empty = tmp_path / "empty.db"
    sqlite3.connect(empty).close()
    empty.touch()
    _one_line(run("show", "last", "--db", str(empty)), "Nothing has been seen")
    assert json.loads(run("sessions", "--db", str(empty), "--json").out) == {"items": [], "next_cursor": None}
    assert run("export", "--db", str(empty)).out == ""


def test_a_file_that_is_no_database(run: Callable[..., Said], tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    other.write_text("this is a letter\n" * 500)
    for command in (["sessions"], ["show", "last"], ["export"]):
        said = run(*command, "--db", str(other))
        assert (said.code, said.out) == (5, "")
        assert len(said.err.splitlines()) == 1


def test_usage_errors_are_two(run: Callable[..., Said]) -> None:
    assert run("sessions", "--limit", "0").code == 2
    assert run("nonsense").code == 2
    assert run("show").code == 2


def test_tail_of_a_console_that_is_off(run: Callable[..., Said]) -> None:
    _one_line(run("tail", "--console", "off"), "which is off")


def test_clients(run: Callable[..., Said]) -> None:
    rows = json.loads(run("clients", "--json", "--listen", "127.0.0.1:4321").out)
    assert len(rows) > 8
    [one] = json.loads(run("clients", "claude-code", "--json", "--listen", "127.0.0.1:4321").out)
    assert "127.0.0.1:4321" in one["point"]
    assert "http://127.0.0.1:4321" in one["environment"].values()
    assert "127.0.0.1:4321" in run("clients", "claude-code", "--listen", "127.0.0.1:4321").out
    _one_line(run("clients", "winword"), "'winword'", "claude-code")


def test_run_wants_a_command_that_exists(run: Callable[..., Said]) -> None:
    _one_line(run("run"), "no command")
    _one_line(run("run", "--", "no-such-command-here"), "'no-such-command-here'", "PATH")
    _one_line(run("run", "--console", "off", "--", "true"), "console")


def test_doctor_unhang_of_nothing(run: Callable[..., Said]) -> None:
    said = run("doctor", "--unhang", "m", "--upstream", "http://127.0.0.1:1")
    assert (said.code, said.out, len(said.err.splitlines())) == (5, "", 1)


def test_doctor_as_json_is_one_document(run: Callable[..., Said], tmp_path: Path) -> None:
    flags = [
        "--upstream",
        "http://127.0.0.1:1",
        "--listen",
        "127.0.0.1:0",
        "--console",
        "127.0.0.1:0",
        "--db",
        str(tmp_path / "q.db"),
    ]
    said = run("doctor", "--json", *flags)
    checks = {c["name"]: c for c in json.loads(said.out)}
    assert said.code == 5
    assert checks["upstream"]["state"] == "bad"
    assert "ollama serve" in checks["upstream"]["remedy"]
    assert {c["state"] for c in checks.values()} <= {"good", "note", "bad"}
    assert "✗ upstream" in run("doctor", *flags).out


def test_a_plan_is_json_and_says_when_the_console_is_off() -> None:
    assert plan_of(load({"console": " OFF ", "db": "off"}), quiet=True)["console"] is None
    plan = plan_of(load({"db": "/x/y.db", "listen": "127.0.0.1:0"}), quiet=True)
    assert json.loads(json.dumps(plan)) == plan
    assert (plan["db"], plan["quiet"]) == ("/x/y.db", True)


def test_merge_brings_databases_together(run: Callable[..., Said], filled: tuple[Path, list[Any]], tmp_path: Path) -> None:
    path, _ = filled
    target = tmp_path / "all.db"
    said = run("merge", str(target), str(path))
    assert said.code == 0
    assert said.out.startswith(f"{target}: 1 machines, ")
    assert run("merge", str(target), str(path)).out == f"{target}: nothing new\n"
    told = json.loads(run("merge", str(target), str(path), "--json").out)
    assert told["sources"] == [str(path)]
    assert set(told["added"].values()) == {0}
    assert json.loads(run("sessions", "--db", str(target), "--json").out) == json.loads(
        run("sessions", "--db", str(path), "--json").out
    )


def test_merge_refuses_before_it_writes(run: Callable[..., Said], filled: tuple[Path, list[Any]], tmp_path: Path) -> None:
    path, _ = filled
    target, newer, text = tmp_path / "all.db", tmp_path / "newer.db", tmp_path / "notes.txt"
    shutil.copy(path, newer)
    connection = sqlite3.connect(newer)
    connection.execute(
        "insert into _sqlite_migrations (migration_set, name, applied_at) values ('qm_proxy', 'from_2030', '2030')"
    )
    connection.commit()
    connection.close()
    text.write_text("hello " * 1000)
    _one_line(run("merge", str(path), str(path)), "named twice")
    _one_line(run("merge", str(target), str(path), str(path)), "named twice")
    _one_line(run("merge", str(target), str(tmp_path / "none.db")), "none.db", "no database")
    for wrong, words in ((text, "not a database"), (newer, "newer qm-proxy")):
        said = run("merge", str(target), str(path), str(wrong))
        assert said.code == 5
        assert said.err.count("\n") == 1
        assert words in said.err
        assert str(wrong) in said.err
        assert not target.exists()
    said = run("merge", str(newer), str(path))
    assert said.code == 5
    assert str(newer) in said.err
