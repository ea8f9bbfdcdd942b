"""A real Prometheus scrapes a real proxy under scripted traffic: every query of the board answers, key panels with known values.

The script plays twice: a counter's rate needs a value before and one after. Series that are counted from nothing are compared
exactly with what the simulated Ollama did; quantiles with the bucket in which the truth lies, one bucket of grace.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qm_proxy.cli import plan_of
from qm_proxy.servant import Servant
from qm_proxy.settings import load
from qm_proxy.telemetry.names import METRICS, prometheus_name
from qm_proxy.wire.clients import PROBE_AGENT
from tests.dashboards.conftest import DASHBOARDS, filled

from .conftest import SimThread

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
pytestmark = [
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: apt-get install prometheus)"),
    pytest.mark.timeout(300),
]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "read_file",
            "description": "Read a file",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
        },
    }
]
PERSONAS = ["steady", "staller", "looper", "tool-user", "bad-tools", "short-window", "no-done"]
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str, **query: str) -> Any:
    if query:
        url += "?" + urllib.parse.urlencode(query)
    with _DIRECT.open(url, timeout=10) as answer:
        return json.loads(answer.read())


def eventually(ask: Callable[[], Any], what: str, patience_s: float = 60.0) -> Any:
    """The first true answer of `ask`; fails when none comes."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, urllib.error.URLError):
            if found := ask():
                return found
        time.sleep(0.1)
    pytest.fail(f"it never came: {what}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Prometheus:
    """Debian's, on loopback, scraping one console every second; its rules are ours."""

    def __init__(self, target: str, directory: Path) -> None:
        config = (DASHBOARDS / "prometheus" / "prometheus.yml").read_text()
        config = config.replace("interval: 15s", "interval: 1s").replace("127.0.0.1:11437", target)
        (directory / "prometheus.yml").write_text(config)
        shutil.copy(DASHBOARDS / "prometheus" / "rules.yml", directory)
        self.url = f"http://127.0.0.1:{free_port()}"
        with (directory / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    str(PROMETHEUS),
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                    "--enable-feature=exemplar-storage",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        eventually(self._ready, (directory / "prometheus.log").read_text() or "prometheus is ready")

    def _ready(self) -> bool:
        assert self.process.poll() is None, "prometheus ended"
        with _DIRECT.open(self.url + "/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)

    def query(self, expression: str) -> list[dict[str, Any]]:
        try:
            found = get(self.url + "/api/v1/query", query=expression)
        except urllib.error.HTTPError as refused:
            raise AssertionError(f"{expression}: {refused.read().decode()}") from refused
        assert found["status"] == "success"
        assert not found.get("warnings")
        rows: list[dict[str, Any]] = found["data"]["result"]
        return rows

    def values(self, expression: str, *labels: str) -> dict[Any, float]:
        """{label or tuple of labels: value} of an instant query."""
        rows = self.query(expression)
        keyed = ((tuple(r["metric"].get(label) for label in labels), float(r["value"][1])) for r in rows)
        return {key[0] if len(key) == 1 else key: value for key, value in keyed}

    def scraped(self, exchanges: int) -> bool:
        return self.values("sum(qm_exchanges_total)") == {(): float(exchanges)}

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def post(url: str, path: str, body: dict[str, Any], agent: str) -> bytes:
    headers = {"Content-Type": "application/json", "User-Agent": agent}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    try:
        with _DIRECT.open(request, timeout=60) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as refused:
        return bytes(refused.read())


def say(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def play(url: str, n: int) -> int:
    """The script, once; how many exchanges it was. The words differ from time to time, so that no prompt is cached whole."""
    litellm, opencode, curl = "litellm/1.81.0", "opencode/1.18.33", "curl/8.5.0"
    native: list[tuple[str, dict[str, Any]]] = [
        (litellm, {"model": "steady", "messages": say(f"count {n}"), "options": {"num_predict": 40}}),
        (litellm, {"model": "steady", "messages": say(f"count again {n}"), "options": {"num_predict": 40}}),
        (opencode, {"model": "staller", "messages": say(f"go {n}"), "options": {"num_predict": 100}}),
        (opencode, {"model": "looper", "messages": say(f"go on {n}"), "options": {"num_predict": 300}}),
        (litellm, {"model": "tool-user", "messages": say(f"read notes.txt {n}"), "tools": TOOLS}),
        (litellm, {"model": "bad-tools", "messages": say("wrong-0"), "tools": TOOLS}),
        (opencode, {"model": "short-window", "messages": say("word " * 3000), "options": {"num_predict": 20}}),
        (litellm, {"model": "no-done", "messages": say(f"go on {n}")}),
        (PROBE_AGENT + "0 inspect", {"model": "steady", "messages": say(f"probe {n}"), "options": {"num_predict": 20}}),
    ]
    for agent, body in native:
        post(url, "/api/chat", body, agent)
    # one prefix that is kept from request to request (a server that says what was cached), then broken
    system = {"role": "system", "content": f"You are careful. The round is {n}. " + "Be brief. " * 40}
    heard = ""
    for first, head in enumerate((system, system, {"role": "system", "content": f"12:00:0{n} " + system["content"]})):
        turns = [*say("one"), {"role": "assistant", "content": heard}, *say("two")]
        body = {"model": "steady", "messages": [head, *turns[: 1 if first == 0 else 3]], "max_tokens": 20}
        answer = json.loads(post(url, "/v1/chat/completions", body, curl))
        heard = heard or answer["choices"][0]["message"]["content"]
    # the same model with another window: it is loaded again
    post(url, "/api/chat", {"model": "tool-user", "messages": say(f"hello {n}"), "options": {"num_ctx": 8192 * n}}, opencode)
    post(url, "/api/nothing", {}, curl)
    return len(native) + 4


@dataclass
class Scene:
    sim: SimThread
    proxy: Servant
    prometheus: Prometheus
    second_from: int  # requests of the simulated Ollama: the second time begins here


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("prometheus")
    with contextlib.ExitStack() as ends, pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")  # nobody is there
        environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        sim = SimThread(personas=PERSONAS)
        ends.callback(sim.close)
        plan = load(
            {
                "upstream": sim.url,
                "listen": "127.0.0.1:0",
                "console": "127.0.0.1:0",
                "db": str(directory / "qm.db"),
                "grace": 2.0,
            }
        )
        proxy = ends.enter_context(Servant(plan_of(plan, quiet=True)))
        assert proxy.console is not None
        prometheus = Prometheus(proxy.console.removeprefix("http://"), directory)
        ends.callback(prometheus.close)
        first = play(proxy.proxy, 1)
        eventually(lambda: prometheus.scraped(first), f"{first} exchanges, scraped")
        second_from = len(sim.sim.truth)
        second = play(proxy.proxy, 2)
        eventually(lambda: prometheus.scraped(first + second), f"{first + second} exchanges, scraped")
        yield Scene(sim, proxy, prometheus, second_from)


@pytest.fixture(scope="module")
def panels() -> dict[str, list[str]]:
    """Title → queries as Grafana would send them for the last five minutes, which is all of the script."""
    board = json.loads((DASHBOARDS / "grafana" / "qm-proxy.json").read_text())
    shown = [panel for panel in board["panels"] if panel["type"] != "row"]
    return {p["title"]: [filled(t["expr"], __rate_interval="5m", __range="5m") for t in p["targets"]] for p in shown}


def generations(played: Scene, *, second: bool = False) -> list[Any]:
    """What the simulated Ollama did for clients, probes left out."""
    start = played.second_from if second else 0
    truths = [played.sim.sim.truth[n] for n in range(start, len(played.sim.sim.truth))]
    asked = ("/api/chat", "/v1/chat/completions")
    return [t for t in truths if t.path in asked and not (t.user_agent or "").startswith(PROBE_AGENT)]


def test_every_query_of_the_board_answers(played: Scene, panels: dict[str, list[str]]) -> None:
    silent = []
    for title, queries in panels.items():
        for query in queries:
            rows = played.prometheus.query(query)
            if not any(math.isfinite(float(row["value"][1])) for row in rows):
                silent.append(f"{title}: {query}")
    assert silent == []


def within_a_bucket(found: float, true: float, key: str) -> bool:
    """`found`, interpolated by Prometheus, lies in the bucket that holds `true`, or in one beside it."""
    edges = (0.0, *METRICS[key].buckets)
    place = bisect_left(edges, true)
    return edges[max(place - 2, 0)] <= found <= edges[min(place + 1, len(edges) - 1)]


def test_counts_are_what_the_script_did(played: Scene, panels: dict[str, list[str]]) -> None:
    values, truths = played.prometheus.values, generations(played)
    endings = values(panels["Exchanges by ending"][0], "qm_ending")
    assert sum(endings.values()) == len(truths)
    assert endings["upstream_truncated"] == sum(t.model is not None and t.model.startswith("no-done") for t in truths) == 2
    assert endings["complete"] == len(truths) - 2
    calls = values(panels["Tool calls by tool"][0], "gen_ai_request_model", "gen_ai_tool_name", "qm_tool_call_valid")
    offered = [t for t in truths if t.model is not None and t.model.startswith("tool-user") and "tool" in t.kinds]
    assert calls["tool-user", "read_file", "true"] == len(offered) == 2
    assert {valid for (model, _, valid) in calls if model == "bad-tools"} == {"false"}
    reasons = values(panels["Finish reasons"][0], "gen_ai_response_finish_reasons")
    assert sum(reasons.values()) == len(truths) - 2  # the streams without an end have none
    assert reasons["length"] >= 2


def test_tokens_are_what_the_server_sampled(played: Scene) -> None:
    """The sum that the board's rates are of."""
    found = played.prometheus.values(
        'sum by (gen_ai_token_type) (qm_tokens_total{gen_ai_request_model="steady", qm_client="litellm", qm_origin="client"})',
        "gen_ai_token_type",
    )
    truths = [t for t in generations(played) if t.path == "/api/chat" and t.model is not None and t.model.startswith("steady")]
    assert found["output"] == sum(t.sampled_tokens for t in truths) == 160
    assert found["input"] == sum(t.prompt_tokens for t in truths)


def test_findings_are_the_planted_faults(played: Scene, panels: dict[str, list[str]]) -> None:
    values = played.prometheus.values
    kinds = values(panels["Findings by kind"][0], "qm_finding")
    assert kinds["loop.token"] == 2
    assert kinds["upstream.aborted"] == 2
    assert kinds["context.truncated"] == 2
    assert kinds["tool.unknown"] == 2
    assert kinds["model.reload"] >= 1
    assert sum(values(panels["Findings"][0]).values()) == sum(kinds.values())
    stored = Counter(f["kind"] for f in played.proxy.ask("/api/v1/findings?limit=200")["items"])
    everybody = [query.replace('qm_origin=~"client"', 'qm_origin=~".*"') for query in panels["Findings by kind"]]
    assert values(everybody[0], "qm_finding") == stored, "the board and the database disagree"
    assert set(values(panels["Loops"][0], "gen_ai_request_model")) == {"looper"}
    assert set(values(panels["Contexts cut"][0], "gen_ai_request_model")) == {"short-window"}
    assert values(panels["Answers lost"][0], "qm_finding") == {"upstream.aborted": 2}
    assert values(panels["Stalls per 1,000 chunks"][0]).keys() == {()}
    assert all(lost > 0 for lost in values(panels["Tokens wasted"][0], "qm_finding").values())


def test_pace_is_the_simulated_one(played: Scene, panels: dict[str, list[str]]) -> None:
    values = played.prometheus.values
    gaps = values(panels["Gap between chunks, by model"][0], "gen_ai_request_model")
    assert within_a_bucket(gaps["steady"], 0.016, "chunk_gap")
    rates = values(panels["Decode rate"][0], "gen_ai_request_model")
    assert within_a_bucket(rates["steady"], 1 / 0.016, "decode_rate")
    per_token = values(panels["As Ollama measured: per token"][0], "gen_ai_request_model")
    assert per_token["steady"] == pytest.approx(0.016, rel=0.05)
    chunks = values(panels["Chunks per output token"][0], "gen_ai_request_model")
    assert 0.9 <= chunks["steady"] <= 1.0


def test_the_prefix_and_the_window(played: Scene, panels: dict[str, list[str]]) -> None:
    """One turn kept its prefix whole, the next broke it at the first character: the mean lies between."""
    values = played.prometheus.values
    kept = values(panels["Prefix kept"][0], "gen_ai_request_model")
    assert 0.1 < kept["steady"] < 0.9
    fill = values(panels["Fill of the window"][1], "gen_ai_request_model")
    assert fill["short-window"] > fill["steady"]
    models = values(panels["Loaded models"][1], "gen_ai_request_model")
    assert set(models) & set(PERSONAS)


def test_a_probe_is_left_out_unless_asked_for(played: Scene) -> None:
    board = json.loads((DASHBOARDS / "grafana" / "qm-proxy.json").read_text())
    query = next(p for p in board["panels"] if p["title"] == "Exchanges by ending")["targets"][0]["expr"]
    times = {"__rate_interval": "5m", "__range": "5m"}
    total = {
        origin: sum(played.prometheus.values(filled(query, origin=origin, **times), "qm_ending").values())
        for origin in ("client", "probe", ".*")
    }
    assert total["probe"] == 2
    assert total[".*"] == total["client"] + 2


def test_variables_resolve(played: Scene) -> None:
    board = json.loads((DASHBOARDS / "grafana" / "qm-proxy.json").read_text())
    found = {}
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert match is not None
            answer = get(f"{played.prometheus.url}/api/v1/label/{match[2]}/values", **{"match[]": match[1]})
            found[variable["name"]] = answer["data"]
    assert found["instance"] == [str(played.proxy.console).removeprefix("http://")]
    assert {"steady", "looper", "bad-tools"} <= set(found["model"])
    assert {"litellm", "opencode", "curl"} <= set(found["client"])


def test_rules_are_evaluated_and_the_loop_is_an_alarm(played: Scene) -> None:
    def firing() -> set[str]:
        groups = get(played.prometheus.url + "/api/v1/rules")["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert not [rule["name"] for rule in rules if rule["health"] == "err"]
        return {rule["name"] for rule in rules if rule.get("state") == "firing"}

    wanted = {"QmLoop", "QmContextTruncated", "QmAnswersLost"}
    eventually(lambda: wanted <= firing(), f"{wanted}, firing")
    assert not firing() & {"QmProxyDown", "QmSinkFailures", "QmModelHung", "QmObserverRestarts"}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_the_page_is_clean_to_promtool(played: Scene) -> None:
    with _DIRECT.open(f"{played.proxy.console}/metrics", timeout=10) as answer:
        page = answer.read()
    done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=page, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    families = set(re.findall(r"^# TYPE (\S+) ", page.decode(), re.MULTILINE))
    expected = {prometheus_name(key) + ("_total" if metric.kind == "counter" else "") for key, metric in METRICS.items()}
    assert families == expected, "a metric of the table that this much traffic does not show, or one beside the table"


def test_a_slow_request_leads_to_its_trace(played: Scene) -> None:
    """Exemplars: an observation in a bucket carries its trace's id."""
    found = get(
        f"{played.prometheus.url}/api/v1/query_exemplars",
        query="qm_first_token_seconds_bucket",
        start=str(time.time() - 300),
        end=str(time.time()),
    )
    ids = {e["labels"]["trace_id"] for series in found["data"] for e in series["exemplars"]}
    assert ids
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
