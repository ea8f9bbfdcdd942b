"""One Result in every form: sections in the post's order, numbers with unit, n and interval, nothing that breaks out."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from probes.commands import Options, Session, report_model
from probes.report import benchstat, compose, csv_rows, html, markdown, pictures, render, save, terminal
from probes.report.blocks import Figure, Heading, number, show
from probes.report.definitions import DEFINITIONS
from probes.report.pictures import picture
from probes.report.terminal import printed, waterfall
from probes.result import Result, Run, Statistic, Target, Waterfall
from tests.probes.fakes import FakeModel

ORDER = ["Setup", "1 Inspector", "2 Audit", "3 Agent Report", "What this means in practice", "TL;DR", "Best fit"]


def measured(**changes: Any) -> Result:
    model = FakeModel(stalls={50: 90.0}, accuracy=lambda n: 1.0 if n < 1500 else 0.1)
    opts = Options(model.name, hardware="nvidia:24GiB+64GiB", seed=7, quick=True, max_tokens=4096, tiers="easy", **changes)
    return asyncio.run(report_model(opts, Session("report", opts, model.ask)))


@pytest.fixture(scope="module")
def result() -> Result:
    return measured(compat="quantamind")


@pytest.fixture
def empty() -> Result:
    return Result(run=Run(id="i", kind="report", started_at="t", seed=1), target=Target(endpoint="e", name="m"))


def test_the_sections_come_in_the_posts_order(result: Result) -> None:
    text = markdown(result)
    assert re.findall(r"^## (.+)$", text, re.M)[: len(ORDER)] == ORDER
    headings = [block.text for block in compose(result) if isinstance(block, Heading) and block.level == 2]
    assert headings[: len(ORDER)] == ORDER


def test_each_number_says_unit_n_and_interval(result: Result) -> None:
    text = markdown(result)
    assert re.search(r"\| Decode, server \| [\d.,]+ ms/token \[[\d.,]+, [\d.,]+\] \(95%, n \d+\)", text)
    assert re.search(r"\| Cold load \| 1,500 ms \(n 1\)", text)
    assert "Cliff between" in text
    compat = result.compat
    assert compat is not None
    stated = {"Context ceiling"}  # by the server, not measured: its row says that
    ours = {row.name: row.ours for row in (*compat.inspector, *compat.agent) if row.ours and row.name not in stated}
    assert len(ours) >= 5
    for name, reading in ours.items():
        assert re.search(r"\(n \d|, n [\d,]+\)", reading), (name, reading)
    assert "expected by chance" in text


def test_definitions_are_there_on_demand(result: Result) -> None:
    assert "## Definitions" not in markdown(result)
    asked = markdown(result, definitions=True)
    assert all(f"**{name}**" in asked for name in DEFINITIONS)
    rows = {line.split("|")[1].strip() for line in markdown(result).splitlines() if line.startswith("| ")}
    assert len(rows & DEFINITIONS.keys()) >= 20


def test_html_is_one_file_without_network(result: Result) -> None:
    text = html(result)
    assert text.startswith("<!doctype html>")
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", text)
    assert text.count('class="chart"') == len([block for block in compose(result) if isinstance(block, Figure)]) >= 6
    specs = re.findall(r'<script type="application/json" id="(?:spec\d+|result|dark)">(.*?)</script>', text, re.S)
    assert len(specs) >= 8
    for spec in specs:
        json.loads(spec)
    whole = next(spec for spec in specs if '"qm-probes/1"' in spec)
    assert Result.from_json(whole).run.id == result.run.id


def test_a_hostile_model_name_stays_text(empty: Result) -> None:
    empty.target.name = '</script><img src=x onerror="alert(1)">|*b*`c`\n'
    empty.warn("x", "<b>bold</b>")
    page = html(empty)
    assert "<img" not in page
    assert "<b>bold" not in page
    text = markdown(empty)
    assert "<img" not in text
    table = [line for line in text.splitlines() if line.startswith("| Model ")]
    assert len(table) == 1


def test_nothing_measured_still_reads(empty: Result) -> None:
    for form in ("md", "html", "json", "csv", "benchstat"):
        assert render(empty, form)
    assert "Not measured" in markdown(empty)
    assert "Nothing was measured" in markdown(empty)
    assert "Not enough was measured" in printed(terminal(empty))
    assert picture(empty, "cliff") is None
    assert "<script>" not in html(empty)


def test_a_partial_run_says_so_first(empty: Result) -> None:
    empty.run.state, empty.run.reason = "interrupted", "by the user"
    assert markdown(empty).splitlines()[2] == "**This run was interrupted: by the user. Nothing was measured.**"


def test_csv_has_a_row_for_each_statistic(result: Result) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_rows(result))))
    paths = {row["path"] for row in rows}
    assert {"inspector.prefill.slope", "audit.baseline", "inspector.decode.cells[0].rate"} <= paths
    assert all(float(row["value"]) == float(row["value"]) and row["unit"] and int(row["n"]) >= 1 for row in rows)


def test_benchstat_lines_have_gos_form(result: Result) -> None:
    lines = [line for line in benchstat(result).splitlines() if not line.startswith("#")]
    assert len(lines) >= 8
    for line in lines:
        assert re.fullmatch(r"BenchmarkModel/name=\S+/step=\S+ \d+ \d+ ns/op( [\d.]+ token/sec)?", line), line


def test_pictures_and_the_whole_folder(result: Result, tmp_path: Path) -> None:
    written = save(result, tmp_path)
    names = {path.name for path in written}
    assert {"report.md", "report.html", "waterfall.png", "cliff.png", "memory.png", "gap_histogram.png", "tiers.png"} <= names
    assert all(path.stat().st_size > 500 for path in written)
    text = (tmp_path / "report.md").read_text()
    linked = set(re.findall(r"\]\((\w+\.png)\)", text))
    assert linked == {path.name for path in pictures(result, tmp_path)}
    drawn = picture(result, "cliff")
    assert drawn is not None
    assert drawn.startswith(b"\x89PNG")


def test_the_terminal_draws_the_waterfall_with_red_spikes(result: Result) -> None:
    assert "1 Inspector" in printed(terminal(result))
    found = result.inspector.waterfall if result.inspector else None
    assert found is not None
    drawn = waterfall(found, 60)
    assert len(drawn.plain.splitlines()[0]) == 60
    assert sum("red" in str(span.style) for span in drawn.spans) == sum(found.spike)
    assert waterfall(Waterfall(request="x")).plain == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (31675, "31,675"),
        (797.3, "797.3"),
        (797.0, "797"),
        (16.53, "16.5"),
        (2.924, "2.92"),
        (0.3333, "0.333"),
        (0, "0"),
        (2e-5, "2.00e-05"),
        (-1234.5, "-1,234"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_an_open_interval_and_an_absent_statistic() -> None:
    assert show(None) == "–"
    one = Statistic(value=3.0, ci=(2.0, None), level=0.95, method="m", n=1200, unit="ms")
    assert show(one) == "3.00 ms [2.00, ∞] (95%, n 1,200)"
    share = Statistic(value=0.975, ci=(0.87, 1.0), level=0.95, method="m", n=40, unit="share")
    assert show(share, percent=True) == "97.5% [87%, 100%] (95%, n 40)"


def test_a_waterfall_is_no_wider_than_the_terminal() -> None:
    from probes.report.terminal import _Fitting, printed
    from probes.result import Waterfall

    found = Waterfall(
        request="P6", t_ms=[float(n) for n in range(200)], gap_ms=[1.0] * 200, kind=["text"] * 200, spike=[False] * 200
    )
    assert [len(line) for line in printed([_Fitting(found)], 72).splitlines()][:1] == [72]
    assert [len(line) for line in printed([_Fitting(found)], 140).splitlines()][:1] == [100]
