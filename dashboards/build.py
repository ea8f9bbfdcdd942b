"""Writes the Grafana board from the names table: `python dashboards/build.py`. Its output is committed; a test compares them.

Rules that hold here:

- A metric or label is never spelled: `{key}` of `telemetry.names` goes in, the Prometheus name comes out.
- Every panel is filtered by instance, model, client and origin (probes are left out unless asked for), where the metric has them.
- A counter that appears with its first event has no value before it, which `increase` takes for "no growth". `grown` counts
  such a series from nothing, so that the first loop of a model is seen.
- Quantiles are of summed buckets, never averages of quantiles, so that instances add up.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from qm_proxy.telemetry.names import LABELS, METRICS, prometheus_name  # noqa: E402

__all__ = ["board", "main"]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
RATE = "$__rate_interval"
RANGE = "$__range"
FILTERS = {"request_model": "$model", "client": "$client", "origin": "$origin"}
WIDTH = 24


def metric(key: str, suffix: str = "", **more: str) -> str:
    """The series of `key` with the board's filters; `more`: label key → an exact value, or `~` and a pattern."""
    has = METRICS[key].labels
    wanted = ['instance=~"$instance"']
    wanted += [f'{LABELS[label]}=~"{variable}"' for label, variable in FILTERS.items() if label in has]
    for label, value in more.items():
        assert label in has, f"{key} has no label {label}"
        wanted.append(f'{LABELS[label]}=~"{value[1:]}"' if value.startswith("~") else f'{LABELS[label]}="{value}"')
    total = "_total" if METRICS[key].kind == "counter" else ""
    return f"{prometheus_name(key)}{total}{suffix}{{{', '.join(wanted)}}}"


def by(*labels: str) -> str:
    return ", ".join(LABELS.get(label, label) for label in labels)


def rate(key: str, *labels: str, **more: str) -> str:
    return (
        f"sum by ({by(*labels)}) (rate({metric(key, **more)}[{RATE}]))" if labels else f"sum(rate({metric(key, **more)}[{RATE}]))"
    )


def grown(key: str, *labels: str, over: str = RATE, **more: str) -> str:
    """What a counter gained, its first value included."""
    series = metric(key, **more)
    return f"sum by ({by(*labels)}) (({series} unless {series} offset {over}) or increase({series}[{over}]))"


def quantile(q: float, key: str, *labels: str, **more: str) -> str:
    return f"histogram_quantile({q}, sum by ({by('le', *labels)}) (rate({metric(key, '_bucket', **more)}[{RATE}])))"


def mean(key: str, *labels: str) -> str:
    return f"sum by ({by(*labels)}) (rate({metric(key, '_sum')}[{RATE}])) / sum by ({by(*labels)}) (rate({metric(key, '_count')}[{RATE}]))"


def legend(*labels: str) -> str:
    return " ".join("{{" + LABELS.get(label, label) + "}}" for label in labels)


class Board:
    """Lays panels in rows, left to right, and numbers them."""

    def __init__(self) -> None:
        self.panels: list[dict[str, Any]] = []
        self._y = self._x = self._h = 0

    def row(self, title: str) -> None:
        self._down()
        self._add({"type": "row", "title": title, "collapsed": False, "panels": []}, WIDTH, 1)
        self._down()

    def _down(self) -> None:
        self._y, self._x, self._h = self._y + self._h, 0, 0

    def _add(self, panel: dict[str, Any], w: int, h: int) -> None:
        if self._x + w > WIDTH:
            self._down()
        place = {"x": self._x, "y": self._y, "w": w, "h": h}
        self.panels.append({"id": len(self.panels) + 1, "gridPos": place} | panel)
        self._x += w
        self._h = max(self._h, h)

    def panel(
        self,
        kind: str,
        title: str,
        unit: str,
        *targets: tuple[str, str],
        about: str,
        w: int = 8,
        h: int = 8,
        options: dict[str, Any] | None = None,
        custom: dict[str, Any] | None = None,
        steps: list[tuple[str, float | None]] | None = None,
        transformations: list[dict[str, Any]] | None = None,
        overrides: list[dict[str, Any]] | None = None,
    ) -> None:
        """`targets`: (expression, legend). `steps`: (colour, from which value)."""
        once = kind in ("stat", "table")
        defaults: dict[str, Any] = {"unit": unit, "custom": custom or {}}
        if unit == "percentunit":
            defaults |= {"min": 0, "max": 1}
        if steps is not None:
            defaults["thresholds"] = {"mode": "absolute", "steps": [{"color": c, "value": v} for c, v in steps]}
        self._add(
            {
                "type": kind,
                "title": title,
                "description": about,
                "datasource": DATASOURCE,
                "fieldConfig": {"defaults": defaults, "overrides": overrides or []},
                "options": options or {},
                "targets": [
                    {
                        "refId": chr(ord("A") + place),
                        "datasource": DATASOURCE,
                        "editorMode": "code",
                        "expr": expression,
                        "legendFormat": name,
                        "instant": once,
                        "range": not once,
                        "format": "heatmap" if kind == "heatmap" else "table" if kind == "table" else "time_series",
                    }
                    for place, (expression, name) in enumerate(targets)
                ],
            }
            | ({"transformations": transformations} if transformations else {}),
            w,
            h,
        )

    def lines(self, title: str, unit: str, *targets: tuple[str, str], about: str, **more: Any) -> None:
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
        self.panel("timeseries", title, unit, *targets, about=about, options=options, **more)

    def bars(self, title: str, unit: str, *targets: tuple[str, str], about: str, **more: Any) -> None:
        custom = {"drawStyle": "bars", "fillOpacity": 80, "lineWidth": 0, "stacking": {"mode": "normal", "group": "A"}}
        self.lines(title, unit, *targets, about=about, custom=custom, **more)

    def stat(self, title: str, unit: str, expression: str, *, about: str, w: int = 4, steps: Any = None) -> None:
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value" if steps else "none", "graphMode": "none"}
        self.panel("stat", title, unit, (expression, ""), about=about, w=w, h=4, options=options, steps=steps)

    def heat(self, title: str, key: str, *, about: str, w: int = 8) -> None:
        expression = f"sum by (le) (increase({metric(key, '_bucket')}[{RATE}]))"
        options = {
            "calculate": False,
            "yAxis": {"unit": "s"},
            "color": {"mode": "scheme", "scheme": "Oranges", "scale": "exponential", "exponent": 0.5, "steps": 64},
            "tooltip": {"mode": "single", "yHistogram": True},
            "legend": {"show": True},
            "cellGap": 1,
        }
        self.panel("heatmap", title, "s", (expression, "{{le}}"), about=about, w=w, options=options)


def variables() -> list[dict[str, Any]]:
    def asked(name: str, label: str, key: str, of: str) -> dict[str, Any]:
        total = "_total" if METRICS[key].kind == "counter" else ""
        query = f"label_values({prometheus_name(key)}{total}, {of})"
        return {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": DATASOURCE,
            "query": {"query": query, "refId": name},
            "definition": query,
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        }

    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}},
        asked("instance", "Proxy", "in_flight", "instance"),
        asked("model", "Model", "exchanges", LABELS["request_model"]),
        asked("client", "Client", "exchanges", LABELS["client"]),
        {
            "name": "origin",
            "label": "Origin",
            "type": "custom",
            "query": "client, probe",
            "options": [
                {"text": "All", "value": "$__all", "selected": False},
                {"text": "client", "value": "client", "selected": True},
                {"text": "probe", "value": "probe", "selected": False},
            ],
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["client"], "value": ["client"]},
        },
    ]


def now(b: Board) -> None:
    b.row("Now")
    b.stat("In flight", "short", f"sum({metric('in_flight')})", about="Exchanges under way.")
    b.stat(
        "Waiting in Ollama's queue",
        "short",
        rate("phase", reason="queue"),
        about="How many requests waited on average: seconds of queueing per second, of the requests that have ended.",
    )
    b.stat(
        "Tokens per second",
        "short",
        rate("tokens", token_type="output"),
        about="Output tokens of all answers that ended, as the server counted them.",
    )
    b.stat(
        "Findings",
        "short",
        f"sum({grown('findings_total', 'finding', over=RANGE)}) or vector(0)",
        about="Detections in the chosen range, of every kind.",
        steps=[("green", None), ("orange", 1)],
    )
    b.stat(
        "Violations",
        "short",
        f"sum({grown('findings_total', 'finding', over=RANGE, severity='violation')}) or vector(0)",
        about="Detections that are certain: an unknown tool, a stream without its end, a dropped context.",
        steps=[("green", None), ("red", 1)],
    )
    b.stat(
        "Our overhead, p99",
        "s",
        quantile(0.99, "overhead"),
        about="Read to written in the relay, median of each exchange.",
        steps=[("green", None), ("orange", 0.001), ("red", 0.01)],
    )
    b.bars("Exchanges by ending", "short", (grown("exchanges", "ending"), legend("ending")), about="How model operations ended.")
    b.bars("Findings by kind", "short", (grown("findings_total", "finding"), legend("finding")), about="Detections as they came.")
    tidy = {"Time": True, "Value": False}
    b.panel(
        "table",
        "Loaded models",
        "short",
        (f"max by ({by('request_model', 'instance')}) ({metric('loaded')})", ""),
        (f"max by ({by('request_model', 'instance')}) ({metric('window')})", ""),
        about="What /api/ps says is in memory, and with how many tokens of context.",
        transformations=[
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": tidy,
                    "renameByName": {
                        LABELS["request_model"]: "model",
                        "instance": "proxy",
                        "Value #A": "memory",
                        "Value #B": "window",
                    },
                },
            },
        ],
        overrides=[{"matcher": {"id": "byName", "options": "memory"}, "properties": [{"id": "unit", "value": "bytes"}]}],
    )


def feel(b: Board) -> None:
    b.row("Feel")
    b.lines(
        "Time to first token",
        "s",
        *((quantile(q, "first_token"), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)),
        about="Request to first token.",
    )
    b.heat("Gaps between chunks", "chunk_gap", about="Gaps of chunks that came in different reads. A stall is a cell far above.")
    per_chunk = (
        f"1000 * sum({grown('findings_total', 'finding', finding='stall')}) / sum({grown('chunks_total', 'request_model')})"
    )
    b.lines("Stalls per 1,000 chunks", "short", (per_chunk, "stalls"), about="Gaps far above their neighbours.")
    b.lines(
        "Decode rate",
        "short",
        (quantile(0.5, "decode_rate", "request_model"), f"{legend('request_model')} p50"),
        (quantile(0.1, "decode_rate", "request_model"), f"{legend('request_model')} slowest tenth"),
        about="Tokens per second while an answer is written; one value for each answer.",
    )
    b.lines(
        "Gap between chunks, by model",
        "s",
        (quantile(0.5, "chunk_gap", "request_model"), f"{legend('request_model')} p50"),
        (quantile(0.99, "chunk_gap", "request_model"), f"{legend('request_model')} p99"),
        about="Inter-token latency in fine buckets.",
    )
    b.lines(
        "Chunks per output token",
        "short",
        (
            f"{rate('chunks_total', 'request_model')} / {rate('streamed_tokens', 'request_model')}",
            legend("request_model"),
        ),
        about="Streamed answers. 1: each token came in a chunk of its own. Less: several in one, or tokens never delivered.",
    )
    b.lines(
        "Whole answers",
        "s",
        *((quantile(q, "request_time"), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)),
        about="First byte of the request to last byte of the answer, up to an hour.",
    )
    b.lines(
        "First chunk by operation, p95",
        "s",
        (quantile(0.95, "first_chunk", "operation"), legend("operation")),
        about="The conventional metric, with its buckets (to 82 s).",
    )
    b.lines(
        "Time per output chunk, p95",
        "s",
        (quantile(0.95, "output_chunk", "request_model"), legend("request_model")),
        about="The conventional metric; nothing finer than 10 ms.",
    )


def where(b: Board) -> None:
    b.row("Where time goes")
    share = {"fillOpacity": 70, "lineWidth": 0, "stacking": {"mode": "percent", "group": "A"}}
    b.lines(
        "Phases",
        "s",
        (grown("phase", "reason"), legend("reason")),
        about="Queue, load, prefill, decode, waiting for the client, unexplained: shares of the time of all answers that ended.",
        custom=share,
        w=12,
    )
    b.lines(
        "Phases of the average answer",
        "s",
        (
            f"sum by ({by('reason')}) (rate({metric('phase')}[{RATE}])) / ignoring({by('reason')}) group_left "
            f"sum(rate({metric('request_time', '_count')}[{RATE}]))",
            legend("reason"),
        ),
        about="Seconds of each phase for each answer.",
        w=12,
    )
    b.lines(
        "As Ollama measured: first token",
        "s",
        (quantile(0.95, "server_first_token", "request_model"), legend("request_model")),
        about="Queue, load and prefill that the server reports; native routes only. p95.",
    )
    b.lines(
        "As Ollama measured: per token",
        "s",
        (mean("server_per_token", "request_model"), legend("request_model")),
        about="eval_duration over eval_count, mean; native routes only.",
    )
    b.lines(
        "Outside of Ollama",
        "s",
        (
            f"sum(rate({metric('operation_duration', '_sum', operation='~chat|text_completion')}[{RATE}])) / "
            f"sum(rate({metric('operation_duration', '_count', operation='~chat|text_completion')}[{RATE}]))",
            "seen from outside",
        ),
        (
            f"sum(rate({metric('server_duration', '_sum')}[{RATE}])) / sum(rate({metric('server_duration', '_count')}[{RATE}]))",
            "total_duration",
        ),
        about="Means: every dialect as the client had it, beside total_duration, which only the native routes tell.",
    )


def trust(b: Board) -> None:
    b.row("Trust")
    loops = grown("findings_total", "finding", "request_model", finding="~loop\\\\..*")
    b.bars("Loops", "short", (loops, legend("request_model", "finding")), about="Repeated text, repeated calls.")
    b.bars(
        "Tokens wasted",
        "short",
        (grown("wasted", "finding", "request_model"), legend("request_model", "finding")),
        about="Tokens that came after a loop was certain.",
    )
    b.bars(
        "Faults of tool calls",
        "short",
        (
            grown("findings_total", "finding", "request_model", finding="~tool\\\\..*|claim\\\\..*"),
            legend("request_model", "finding"),
        ),
        about="Unknown tool, broken JSON, schema violated, call printed as text, call swallowed by the server.",
    )
    b.panel(
        "table",
        "Tool calls by tool",
        "short",
        (grown("tool_calls_total", "request_model", "tool_name", "tool_call_valid", over=RANGE), ""),
        about="Calls in the range; valid means: the tool was offered and the arguments fit its schema.",
        transformations=[
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True},
                    "renameByName": {
                        LABELS["request_model"]: "model",
                        LABELS["tool_name"]: "tool",
                        LABELS["tool_call_valid"]: "valid",
                        "Value": "calls",
                    },
                },
            }
        ],
    )
    b.bars(
        "Contexts cut",
        "short",
        (grown("findings_total", "request_model", "client", finding="context.truncated"), legend("request_model", "client")),
        about="The front of the prompt was dropped without a word.",
    )
    lost = "~tool.swallowed|stream.silent|upstream.aborted"
    b.bars(
        "Answers lost",
        "short",
        (grown("findings_total", "finding", finding=lost.replace(".", "\\\\.")), legend("finding")),
        about="Generated and not delivered, silent, or ended without its end.",
    )
    b.bars(
        "Finish reasons",
        "short",
        (grown("finishes", "finish_reasons"), legend("finish_reasons")),
        about="As the server gave them. Much `length`: answers are cut short.",
    )
    failed = f"sum(rate({metric('operation_duration', '_count', error_type='~.+')}[{RATE}]))"
    b.lines(
        "Share of failed operations",
        "percentunit",
        (f"({failed} or vector(0)) / sum(rate({metric('operation_duration', '_count')}[{RATE}]))", "failed"),
        about="error.type is set: an error status, an error in the stream, a stream without its end.",
    )


def why_slow(b: Board) -> None:
    b.row("Why slow")
    kinds = "~model\\\\.reload|model\\\\.hung|cache\\\\.broken"
    b.bars(
        "Reloads, hung slots, broken prefixes",
        "short",
        (
            grown("findings_total", "finding", "request_model", "client", finding=kinds),
            legend("finding", "request_model", "client"),
        ),
        about="A model was loaded again because a setting changed; a slot hangs; the prefix of the last turn did not match.",
    )
    b.lines(
        "Prefix kept",
        "percentunit",
        (mean("prefix_kept", "request_model"), legend("request_model")),
        about="Share of a prompt that repeats the turn before from its very start: what the server's cache can reuse.",
    )
    b.lines(
        "Fill of the window",
        "percentunit",
        (quantile(0.5, "window_fill", "request_model"), f"{legend('request_model')} p50"),
        (quantile(0.95, "window_fill", "request_model"), f"{legend('request_model')} p95"),
        about="Tokens in and out over the context that is loaded. Near 1 the front is dropped.",
    )
    b.lines(
        "Prompt tokens",
        "short",
        (quantile(0.95, "token_usage", "request_model", token_type="input"), f"{legend('request_model')} p95"),
        about="Length of prompts. A prefill that grows usually means a prompt that grew.",
    )
    b.lines(
        "Memory of models",
        "bytes",
        (f"sum by ({by('request_model')}) ({metric('loaded')})", legend("request_model")),
        about="As /api/ps says. A step is a load, an unload, or another context size.",
    )
    b.lines(
        "Memory of the machine",
        "bytes",
        (f"max by ({by('instance', 'memory_kind')}) ({metric('host_memory')})", legend("instance", "memory_kind")),
        about="RAM, swap and GPU memory in use, sampled while answers are under way.",
    )


def ourselves(b: Board) -> None:
    b.row("Self")
    b.heat("Our overhead", "overhead", about="Read to written in the relay.")
    b.lines(
        "Event-loop lag",
        "s",
        (f"max by ({by('process')}) ({metric('loop_lag')})", legend("process")),
        about="How late a timer was: the relay's delays streams, the observer's only delays what is shown.",
    )
    b.lines(
        "Memory",
        "bytes",
        (f"sum by ({by('process', 'instance')}) ({metric('memory')})", legend("process", "instance")),
        about="Resident memory of the relay and of the observer.",
    )
    b.lines("CPU", "percentunit", (rate("cpu", "process"), legend("process")), about="Share of one core.")
    b.lines(
        "Copied bytes waiting",
        "bytes",
        (f"sum by ({by('instance')}) ({metric('pipe_pending')})", legend("instance")),
        about="What the observer has not read yet. When full, the copy is dropped, never the stream.",
    )
    b.bars(
        "Not analysed",
        "short",
        (f"sum by ({by('reason')}) (increase({metric('dropped')}[{RATE}]))", legend("reason")),
        (f"sum(increase({metric('parser_fallbacks')}[{RATE}]))", "could not be decoded"),
        about="What analysis gave up. The bytes went to their client all the same.",
    )
    b.bars(
        "Faults of ours",
        "short",
        (f"sum(increase({metric('restarts')}[{RATE}]))", "observer restarted"),
        (f"sum by ({by('sink')}) (increase({metric('sink_failures')}[{RATE}]))", f"{legend('sink')} failed"),
        (f"sum by ({by('signal')}) (increase({metric('export_drops')}[{RATE}]))", f"{legend('signal')} not delivered"),
        about="Observers replaced, exceptions in a sink, telemetry that no backend took.",
    )
    b.lines(
        "Database",
        "s",
        (f"max by ({by('instance')}) ({metric('store_commit')})", f"{legend('instance')} commit"),
        about="Time of the last commit.",
    )
    b.lines(
        "Rows to be written",
        "short",
        (f"sum by ({by('instance')}) ({metric('store_queued')})", legend("instance")),
        about="Queued for the database.",
    )
    b.lines(
        "Connections", "short", (f"sum by ({by('instance')}) ({metric('connections')})", legend("instance")), about="Of clients."
    )
    b.lines(
        "HTTP by route, p95",
        "s",
        (quantile(0.95, "http_duration", "http_method", "http_route"), legend("http_method", "http_route")),
        about="Every route, generations or not.",
    )
    b.bars(
        "HTTP by status",
        "short",
        (
            f"sum by ({by('http_status')}) (increase({metric('http_duration', '_count')}[{RATE}]))",
            legend("http_status"),
        ),
        about="Status of every answer that passed.",
    )


def board() -> dict[str, Any]:
    b = Board()
    for row in (now, feel, where, trust, why_slow, ourselves):
        row(b)
    return {
        "uid": "qm-proxy",
        "title": "qm-proxy",
        "description": "Every token of real traffic to Ollama: how fast, where the time goes, what cannot be trusted.",
        "tags": ["ollama", "llm", "qm-proxy"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": variables()},
        "annotations": {"list": []},
        "links": [],
        "panels": b.panels,
    }


def main() -> None:
    (HERE / "grafana" / "qm-proxy.json").write_text(json.dumps(board(), indent=2) + "\n")


if __name__ == "__main__":
    main()
