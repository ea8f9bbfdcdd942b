"""The live page in Chromium, driven by real traffic: what happens is seen, what is linked opens, and nothing is complained of."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from probes.sim.personas import Persona, builtin
from qm_proxy.servant import Servant

from .conftest import Window, ask, chat, start_inspections, until

CHAT = "/v1/chat/completions"
VIEWS = ["now", "exchanges", "sessions", "models", "probes", "health", "connect"]


def long_stalls() -> Persona:
    """The staller, whose stalls stand out on the busiest machine."""
    (known,) = builtin(["staller"])
    assert known.decode.stalls is not None
    stalls = known.decode.stalls.model_copy(update={"at": (30,), "ms": 2000.0})
    return known.model_copy(update={"decode": known.decode.model_copy(update={"stalls": stalls})})


@pytest.fixture
def staged(make_sim: Callable[..., Any], serving: Callable[..., Servant]) -> tuple[Any, Servant]:
    """A simulated Ollama at its own pace, and the proxy in front of it."""
    sim = make_sim(personas=[long_stalls(), "steady", "thinker", "tool-user", "looper"], speed=1.0)
    return sim, serving(sim.url, poll=0.2)


def closed(served: Servant, n: int) -> list[dict[str, Any]]:
    """The last `n` exchanges, once they have all ended."""
    for _ in range(600):
        items: list[dict[str, Any]] = served.ask("/api/v1/exchanges?limit=100")["items"]
        ended = [x for x in items if x["ending"] is not None]
        if len(ended) >= n:
            return ended[:n]
        time.sleep(0.05)
    raise AssertionError(f"{n} exchanges never ended")


def test_what_happens_is_seen(staged: tuple[Any, Servant], open_window: Callable[..., Window]) -> None:
    """A stream ticks while it runs; its end is on the page within the second (printed), red where it stalled."""
    sim, served = staged
    window = open_window(f"{served.console}/")
    page = window.page
    page.wait_for_selector("#link.on")
    page.wait_for_selector(".paste [role=tab]")  # nothing yet: the page teaches
    assert served.proxy in page.inner_text(".paste .lines")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, served.proxy, CHAT, chat("staller", "explain", 70))
        page.wait_for_selector(".stream .s-phase[data-phase=answering]")
        until(page, "Number(document.querySelector('.stream .n b')?.textContent) > 3")
        answer.result()
    ended = time.monotonic()
    page.wait_for_selector(".a-closed a.xrow")
    print(f"seen {1e3 * (time.monotonic() - ended):.0f} ms after its end")
    page.wait_for_selector(".streams:empty", state="attached")
    assert not page.query_selector(".paste")

    (x,) = closed(served, 1)
    assert page.get_attribute(".a-closed a.xrow", "href") == f"#/exchange/{x['id']}"
    page.click(".a-closed a.xrow")
    page.wait_for_selector("canvas.ticks")
    page.wait_for_selector(".vega canvas")
    until(page, "document.title.startsWith('Exchange')")
    planted = [index for request in sim.sim.truth.requests for index, _ in request.stalls]
    assert planted, "the simulated Ollama was to stall"
    page.focus("canvas.ticks")
    red = set()
    for _ in range(int(page.get_attribute("[data-stalls]", "data-stalls"))):
        page.keyboard.press("s")
        text = page.inner_text(".readout")
        assert "a stall" in text
        red.add(int(text.split()[1]))
    found = served.ask("/api/v1/findings?kind=stall")["items"]
    assert red == {f["chunk"] for f in found}
    assert set(planted) <= red
    colour = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--k-stall').trim()")
    assert _pixels(page, "canvas.ticks", colour) > 50
    assert window.complaints() == []


def test_what_was_planted_is_told(
    make_sim: Callable[..., Any], serving: Callable[..., Servant], open_window: Callable[..., Window]
) -> None:
    """A loop, a wrong call, a truncation and a session going in circles: each on the page when it happens (times are printed)."""
    sim = make_sim(personas=["looper", "bad-tools", "short-window", "agent-looper"], speed=2.0)
    served = serving(sim.url, poll=0.2)
    window = open_window(f"{served.console}/")
    page = window.page
    page.wait_for_selector("#link.on")
    bash = {
        "name": "bash",
        "parameters": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
    }
    tools = [{"type": "function", "function": bash}]
    planted = {
        "loop.token": chat("looper", "go on", 400),
        "tool.unknown": chat("bad-tools", "kind:unknown", tools=tools),
        "context.truncated": chat("short-window", "a long text without end " * 400, 30),
    }
    for kind, body in planted.items():
        ask(served.proxy, "/api/chat", body)
        ended = time.monotonic()
        until(page, f"[...document.querySelectorAll('.a-found .pill')].some((p) => p.textContent === '{kind}')")
        print(f"{kind}: told {1e3 * (time.monotonic() - ended):.0f} ms after the answer's end")
    assert page.inner_text("#said"), "a screen reader hears it"

    said: list[dict[str, Any]] = [{"role": "user", "content": "find the bug"}]
    for n in range(6):
        body = {"model": "agent-looper", "messages": said, "tools": tools, "stream": False}
        answer = json.loads(ask(served.proxy, "/api/chat", body, x_session_id="ses_circle"))["message"]
        said += [answer, {"role": "tool", "content": "no such file", "tool_name": "bash"}]
        assert answer.get("tool_calls"), f"turn {n} was to call a tool"
    until(page, "[...document.querySelectorAll('.a-found .pill')].some((p) => p.textContent === 'loop.trajectory')")
    x = next(x for x in closed(served, 9) if x["model"] == "agent-looper")
    page.evaluate(f"location.hash = '#/session/{x['session_id']}'")
    page.wait_for_selector("svg.cycle .cy-times")
    assert page.inner_text(".turns tbody").count("loop.trajectory") >= 1
    assert window.complaints() == []


def _pixels(page: Any, selector: str, colour: str) -> int:
    """How many pixels of a canvas have exactly this colour (#rrggbb)."""
    count: int = page.evaluate(
        """([selector, colour]) => {
          const c = document.querySelector(selector);
          const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
          const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
          let n = 0;
          for (let i = 0; i < d.length; i += 4) if (d[i] === r && d[i + 1] === g && d[i + 2] === b && d[i + 3] === 255) n += 1;
          return n;
        }""",
        [selector, colour],
    )
    return count


def test_the_pointer_tells_the_gap_and_exports_are_whole(
    staged: tuple[Any, Servant], open_window: Callable[..., Window], tmp_path: Path
) -> None:
    _, served = staged
    ask(served.proxy, CHAT, chat("thinker", "think", 80))
    (x,) = closed(served, 1)
    window = open_window(f"{served.console}/#/exchange/{x['id']}", dark=True)
    page = window.page
    page.wait_for_selector(".vega canvas")
    box = page.locator("canvas.ticks").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 40)
    assert page.inner_text(".readout").startswith("chunk ")
    assert "gap" in page.inner_text(".readout")
    kinds = {kind for kind, _ in served.ask(f"/api/v1/exchanges/{x['id']}/chunks")["kinds"]}
    assert kinds == {"thinking", "text"}
    with page.expect_download() as got:
        page.click("text=Export JSON")
    story = json.loads(Path(got.value.path()).read_text())
    assert story["exchange"]["id"] == x["id"]
    assert len(story["chunks"]["arrival_ns"]) == x["chunks"]
    with page.expect_download() as got:
        page.click("text=Export PNG")
    assert Path(got.value.path()).read_bytes().startswith(b"\x89PNG")
    assert window.complaints() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_every_view_opens_by_its_link(
    staged: tuple[Any, Servant], open_window: Callable[..., Window], dark: bool, width: int
) -> None:
    _, served = staged
    ask(served.proxy, CHAT, chat("steady", "one", 20), x_session_id="ses_1")
    ask(served.proxy, CHAT, chat("tool-user", "two", 20), x_session_id="ses_2")
    x = closed(served, 2)[0]
    for _ in range(200):  # a session is read from the store, which is a moment behind
        if any(s["id"] == x["session_id"] for s in served.ask("/api/v1/sessions")["items"]):
            break
        time.sleep(0.05)
    window = open_window(f"{served.console}/#/exchange/{x['id']}", width=width, dark=dark)
    page = window.page
    page.wait_for_selector("canvas.ticks, .waterfall, .panel")
    for view in [*VIEWS, f"session/{x['session_id']}", f"exchange/{x['id']}"]:
        page.evaluate(f"location.hash = '#/{view}'")
        page.wait_for_selector(f"main[data-view={view.split('/')[0]}] :is(h1, .figures)", state="attached")
        until(page, "Boolean(document.querySelector('main .panel'))", "document.querySelector('main').innerText")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{view} is wider than the window"
        assert not page.query_selector("main [role=alert]:not(:empty)"), view
    back = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(int(part) for part in back[4:-1].split(",")) < 200) is dark
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != back
    assert window.complaints() == []


def test_unknown_links_say_so(staged: tuple[Any, Servant], open_window: Callable[..., Window]) -> None:
    _, served = staged
    window = open_window(f"{served.console}/#/nowhere")
    window.page.wait_for_selector("text=There is no such view")
    window.page.evaluate("location.hash = '#/exchange/01a20dda-90c6-750d-b858-396c94102bdc'")
    window.page.wait_for_selector("[role=alert] >> text=No exchange")


def test_first_paint_is_light(staged: tuple[Any, Servant], open_window: Callable[..., Window]) -> None:
    """≤ 1.5 MB before anything is asked for, and no chart's bundle among it. Times are printed."""
    _, served = staged
    window = open_window("about:blank")
    page = window.page
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    sizes: list[float] = []
    names: list[str] = []
    session.on("Network.loadingFinished", lambda e: sizes.append(e["encodedDataLength"]))
    session.on("Network.requestWillBeSent", lambda e: names.append(e["request"]["url"]))
    page.goto(f"{served.console}/")
    page.wait_for_selector("#link.on")
    page.wait_for_selector(".figures .figure")
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null")
    print(
        f"first paint {paint} ms, {sum(sizes):.0f} bytes in {len(names)} requests, long tasks {page.evaluate('window.qmLong')} ms"
    )
    assert sum(sizes) <= 1_500_000
    assert not [name for name in names if "vega" in name]
    assert all(name.startswith(served.console or "") for name in names), "it asked somebody else"


def test_eight_streams_at_once(staged: tuple[Any, Servant], open_window: Callable[..., Window]) -> None:
    """8 × 60 tok/s: every stream has its row, each ends in the list; the long tasks of the browser are printed."""
    _, served = staged
    window = open_window(f"{served.console}/")
    page = window.page
    page.wait_for_selector("#link.on")
    page.evaluate("window.qmLong.length = 0")
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(ask, served.proxy, "/api/chat", chat("steady", f"n{n}") | {"options": {"num_predict": 240}})
            for n in range(8)
        ]
        until(page, "document.querySelectorAll('.stream').length === 8")
        for one in asked:
            one.result()
    until(page, "document.querySelectorAll('.stream').length === 0")
    until(page, "document.querySelectorAll('.a-closed a.xrow').length === 8")
    print(f"long tasks during 8 streams: {page.evaluate('window.qmLong')} ms")
    assert window.complaints() == []


def test_a_user_cannot_write_markup(staged: tuple[Any, Servant], open_window: Callable[..., Window]) -> None:
    _, served = staged
    name = '<img src=x onerror="window.qmHit=1"><b>bold</b>'
    with pytest.raises(urllib.error.HTTPError):
        ask(served.proxy, CHAT, chat(name, "x"), agent="<script>window.qmHit=1</script>")
    (x,) = closed(served, 1)
    assert x["model"] == name
    window = open_window(f"{served.console}/")
    page = window.page
    for view in ["now", "exchanges", "models", f"exchange/{x['id']}"]:
        page.evaluate(f"location.hash = '#/{view}'")
        page.wait_for_selector(f"main[data-view={view.split('/')[0]}]")
        until(page, "document.querySelector('main').textContent.includes('<b>bold</b>')")
    assert page.evaluate("window.qmHit ?? null") is None
    assert page.query_selector("main img, main script") is None
    assert window.complaints() == []


def test_the_token_is_asked_once(
    make_sim: Callable[..., Any], serving: Callable[..., Servant], open_window: Callable[..., Window]
) -> None:
    sim = make_sim(personas=["steady"], speed=8.0)
    token = "s3cret; with=odd ü"
    served = serving(sim.url, console_token=token)
    window = open_window(f"{served.console}/")
    page = window.page
    page.wait_for_selector("dialog[open]")
    page.fill("dialog input", "wrong")
    page.click("dialog button")
    page.wait_for_selector("dialog .wrong:has-text('Not this')")
    page.fill("dialog input", token)
    page.click("dialog button")
    page.wait_for_selector("#link.on")
    page.wait_for_selector("dialog", state="hidden")
    page.reload()
    page.wait_for_selector("#link.on")
    assert not page.is_visible("dialog")


def test_it_lives_through_a_new_observer(staged: tuple[Any, Servant], open_window: Callable[..., Window]) -> None:
    """The process behind the page dies; the page finds the new one, and what happens after is seen without a reload."""
    _, served = staged
    for n in range(3):
        ask(served.proxy, "/api/chat", chat("steady", f"before {n}") | {"options": {"num_predict": 5}})
    closed(served, 3)
    window = open_window(f"{served.console}/")
    page = window.page
    until(page, "document.querySelectorAll('.a-closed a.xrow').length === 3")
    os.kill(served.ask("/api/v1/status")["observer"]["pid"], signal.SIGKILL)
    page.wait_for_selector("#link:not(.on)")
    page.wait_for_selector("#link.on")
    ask(served.proxy, "/api/chat", chat("steady", "after") | {"options": {"num_predict": 5}})
    until(page, "document.querySelectorAll('.a-closed a.xrow').length === 4")


def test_the_keyboard_is_enough(staged: tuple[Any, Servant], open_window: Callable[..., Window]) -> None:
    _, served = staged
    for n in range(4):
        ask(served.proxy, "/api/chat", chat("steady", f"n{n}") | {"options": {"num_predict": 12}})
    found = closed(served, 4)
    window = open_window(f"{served.console}/#/exchanges")
    page = window.page
    until(page, "document.querySelectorAll('.vlist a').length === 4")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.focus(".vscroll")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('href')") == f"#/exchange/{found[2]['id']}"
    page.keyboard.press("Enter")
    page.wait_for_selector("main[data-view=exchange] canvas.ticks")
    page.focus("canvas.ticks")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text(".readout").startswith("chunk 1 ")
    assert page.get_attribute("canvas.ticks", "aria-valuetext").startswith("chunk 1 ")


def test_a_probe_is_started_followed_and_read(
    make_sim: Callable[..., Any], serving: Callable[..., Servant], open_window: Callable[..., Window]
) -> None:
    sim = make_sim(personas=["steady"], speed=20.0)
    served = serving(sim.url)
    window = open_window(f"{served.console}/#/probes")
    page = window.page
    page.wait_for_selector("text=No probe has run yet")
    page.fill("form input[name=model]", "steady")
    for _ in range(60):  # the jobs come up a moment after the console; until then it says so and keeps the form
        page.click("form button")
        page.wait_for_timeout(500)
        if page.evaluate("location.hash.startsWith('#/run/')"):
            break
    page.wait_for_selector("main[data-view=run] .pill")
    until(
        page,
        "Boolean(document.querySelector('article.report h2, article.report h3'))",
        "document.querySelector('main').innerText",
    )
    assert "steady" in page.inner_text("article.report")
    assert page.query_selector("article.report table")
    page.click("nav >> text=Probes")
    page.wait_for_selector("main[data-view=probes] table .pill.good")


def test_each_planted_fault_is_seen_before_the_next_thing_ends(
    make_sim: Callable[..., Any], serving: Callable[..., Servant], open_window: Callable[..., Window]
) -> None:
    """A loop and a stall before their own stream ends; what its end shows, before the next answer ends. Times are printed."""
    sim = make_sim(personas=[long_stalls(), "looper", "bad-tools", "short-window", "steady"], speed=1.0)
    served = serving(sim.url, poll=0.2)
    window = open_window(f"{served.console}/")
    page = window.page
    page.wait_for_selector("#link.on")
    bash = {"name": "bash", "parameters": {"type": "object", "properties": {"command": {"type": "string"}}}}
    tools = [{"type": "function", "function": bash}]
    following = chat("steady", "what comes next") | {"options": {"num_predict": 300}}
    planted: list[tuple[str, dict[str, Any], bool]] = [
        ("loop.token", chat("looper", "go on") | {"options": {"num_predict": 900}}, True),
        ("stall", chat("staller", "explain") | {"options": {"num_predict": 400}}, True),
        ("tool.unknown", chat("bad-tools", "kind:unknown", tools=tools), False),
        ("context.truncated", chat("short-window", "a long text without end " * 400) | {"options": {"num_predict": 30}}, False),
    ]
    with ThreadPoolExecutor(2) as pool:
        for kind, body, live in planted:
            asked = pool.submit(ask, served.proxy, "/api/chat", body)
            if not live:
                asked.result()
                began = time.monotonic()
                asked = pool.submit(ask, served.proxy, "/api/chat", following)
            until(page, f"[...document.querySelectorAll('.a-found .pill')].some((p) => p.textContent === '{kind}')")
            seen = time.monotonic()
            assert not asked.done(), f"{kind} was told only when everything was over"
            if live:
                (found, *_) = served.ask(f"/api/v1/findings?kind={kind}")["items"]
                x = served.ask(f"/api/v1/exchanges/{found['exchange_id']}")
                print(f"{kind}: at {found['t_s']:.2f} s of a stream that {'still runs' if x['ending'] is None else 'has ended'}")
            else:
                print(f"{kind}: seen {1e3 * (seen - began):.0f} ms after the answer's end")
            asked.result()
    assert window.complaints() == []


def test_two_runs_side_by_side(
    make_sim: Callable[..., Any], serving: Callable[..., Servant], open_window: Callable[..., Window], tmp_path: Path
) -> None:
    sim = make_sim(personas=["steady", "staller"], speed=20.0)
    served = serving(sim.url)
    window = open_window(f"{served.console}/#/compare")
    page = window.page
    page.wait_for_selector("text=A comparison needs two runs that are done")
    start_inspections(page, "steady", "staller")
    for _ in range(1200):
        runs = served.ask("/api/v1/runs")["items"]
        if len([r for r in runs if r["state"] == "done"]) == 2:
            break
        time.sleep(0.1)
    b, a = (r["id"] for r in runs)  # newest first
    page.evaluate("location.hash = '#/probes'")
    page.click("text=compare two")
    page.select_option("select[name=a]", a)
    page.select_option("select[name=b]", b)
    page.click("main form button")
    page.wait_for_selector(".forests tbody tr")
    assert page.evaluate("location.hash") == f"#/compare/{a}/{b}"
    made = served.ask(f"/api/v1/compare?a={a}&b={b}")
    assert page.inner_text(".verdict") == made["sentence"]
    assert page.locator(".forests tbody tr").count() == len(made["metrics"]) > 1
    assert [made["a"]["name"], made["b"]["name"]] == page.locator(".who").all_inner_texts()
    drawn = page.locator(".forests svg[aria-label]")
    assert drawn.count() == sum(m["difference"] is not None for m in made["metrics"])
    with page.expect_download() as got:
        page.click("text=Export JSON")
    assert json.loads(Path(got.value.path()).read_text()) == made
    page.click("text=swap")
    until(page, f"location.hash === '#/compare/{b}/{a}'")
    page.evaluate("location.hash = '#/compare/none/neither'")
    page.wait_for_selector("[role=alert] >> text=There is no run")
    assert [c for c in window.complaints() if "409" not in c] == []


def test_the_models_tell_the_truth_per_tool_and_the_pointer_the_text(
    make_sim: Callable[..., Any], serving: Callable[..., Servant], open_window: Callable[..., Window]
) -> None:
    sim = make_sim(personas=["bad-tools", "tool-user", "steady"], speed=4.0)
    served = serving(sim.url, poll=0.2, capture_content=True)
    window = open_window(f"{served.console}/#/models")
    page = window.page
    page.wait_for_selector(".paste .lines pre")  # nothing yet: each empty list teaches
    for view in ("exchanges", "sessions"):
        page.evaluate(f"location.hash = '#/{view}'")
        page.wait_for_selector(f"main[data-view={view}] .paste .lines pre")
    bash = {"name": "bash", "parameters": {"type": "object", "properties": {"command": {"type": "string"}}}}
    tools = [{"type": "function", "function": bash}]
    ask(served.proxy, "/api/chat", chat("bad-tools", "kind:unknown", tools=tools))
    ask(served.proxy, "/api/chat", chat("tool-user", "use it", tools=tools))
    ask(served.proxy, "/api/chat", chat("steady", "say much", 60))
    items = closed(served, 3)
    calls = [(c["name"], x["model"].removesuffix(":latest"), c["valid"]) for x in items for c in x["tool_calls"]]
    page.evaluate("location.hash = '#/models'")
    page.wait_for_selector(".truths tbody tr")
    rows = page.locator(".truths tbody tr").all_inner_texts()
    assert len(rows) == len({(name, model) for name, model, _ in calls})
    for name, model, valid in calls:
        row = next(r for r in rows if r.split("\t")[:2] == [name, model])
        assert valid is None or ("100 %" in row) is valid, row

    talk = next(x for x in items if not x["tool_calls"])
    page.evaluate(f"location.hash = '#/exchange/{talk['id']}'")
    page.wait_for_selector("canvas.ticks")
    told = served.ask(f"/api/v1/exchanges/{talk['id']}")
    lengths = told["captured_answer_pieces"]
    assert len(lengths) == talk["chunks"]
    assert sum(lengths) == len(told["captured_answer"])
    page.focus("canvas.ticks")
    page.keyboard.press("Home")
    left = told["captured_answer"]
    for at, length in enumerate(lengths):  # each chunk says what it brought, not a letter more
        readout = page.text_content(".readout")
        assert readout.startswith(f"chunk {at} ")
        assert readout.partition("“")[2].rstrip("”") == left[:length].replace("\n", "⏎")
        left = left[length:]
        page.keyboard.press("ArrowRight")
    assert window.complaints() == []
