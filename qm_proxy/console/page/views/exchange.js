// One exchange: why it took what it took. Phases, every chunk in time, its tool calls, what was found in it.

import { drawStrip } from "../draw/strip.js";
import { histogramRows, marks, waterfallRows } from "../draw/gaps.js";
import { tickStrip } from "../draw/ticks.js";
import { chart } from "../draw/vega.js";
import { findingsOf, get } from "../lib/api.js";
import { fill, h, paced, panel, say, table } from "../lib/dom.js";
import { bytes, clock, count, modelName, NONE, rate, seconds, share } from "../lib/format.js";
import { elapsed, listen, live } from "../lib/live.js";
import { download, endingPill, failed, figure, findingItem, findingPills, phaseBar, pill } from "../lib/parts.js";

export function show(place, [id]) {
  const abort = new AbortController();
  const closing = [];
  let charts = [];

  async function load() {
    try {
      const x = await get(`exchanges/${encodeURIComponent(id)}`, { signal: abort.signal });
      if (x.ending === null) return renderLive(x);
      const [chunks, findings] = await Promise.all([
        x.chunks ? get(`exchanges/${id}/chunks`, { signal: abort.signal }).catch(() => null) : null,
        findingsOf(x, abort.signal),
      ]);
      if (!abort.signal.aborted) render(x, chunks, findings);
    } catch (error) {
      if (error.name !== "AbortError") fill(place, h("h1", null, "Exchange"), failed(error), h("p", null, h("a", { href: "#/exchanges" }, "All exchanges")));
    }
  }

  function title(x) {
    return h("div.title", null,
      h("h1", null, modelName(x.model ?? x.route), h("span.by", null, ` asked by ${x.client}`)),
      h("span.marks", null, x.ending !== null && endingPill(x), x.finish_reason && pill(x.finish_reason, "info", "finish reason"), x.origin === "probe" && pill("probe", "info"), findingPills(x.findings)));
  }

  function facts(x) {
    return h("p.facts", null, clock(x.started_at), " · ", x.dialect, " ", h("code", null, `${x.method} ${x.route}`),
      x.http_status != null && ` · HTTP ${x.http_status}`,
      x.session_id && [" · ", h("a", { href: `#/session/${x.session_id}` }, `session ${x.session_id.slice(-6)}`), x.turn ? `, turn ${x.turn}` : ""],
      x.user_agent && [" · ", h("span.agent", null, x.user_agent)]);
  }

  // --- while it streams ---------------------------------------------------------------------------------------------------

  function renderLive(x) {
    const canvas = h("canvas.live.big", { role: "img", "aria-label": "Tokens as they come" });
    const numbers = h("dl.figures");
    fill(place, title(x), facts(x), panel("Streaming", null, numbers, canvas));
    const [phase, n, perS, ttft, since] = ["phase", "chunks", "tok/s", "ttft", "elapsed"].map((name) => {
      const made = figure(name, "");
      numbers.append(made);
      return made.lastElementChild;
    });
    const steps = paced(() => {
      const one = live.inFlight.get(id);
      if (one) {
        say(phase, one.phase);
        say(n, count(one.chunks));
        say(perS, rate(one.tokens_per_s));
        say(ttft, seconds(one.ttft_s));
        say(since, `${elapsed(one).toFixed(1)} s`);
        drawStrip(canvas, one);
      }
      steps.ask();
    });
    steps.ask();
    const stop = listen((changed) => {
      if ((changed.has("recent") || changed.has("reload")) && !live.inFlight.has(id) && live.loaded) {
        stop();
        steps.stop();
        load();
      }
    });
    closing.push(stop, steps.stop);
  }

  // --- when it has ended ------------------------------------------------------------------------------------------------------

  function render(x, chunks, findings) {
    const slow = x.slow_because && h("p.because", null, x.slow_because);
    const figures = h("dl.figures", null,
      figure("ttft", seconds(x.ttft_s), "From the request's first byte to the first token"),
      x.ttft_content_s != null && x.ttft_content_s !== x.ttft_s && figure("to answer", seconds(x.ttft_content_s), "To the first token that is not thinking"),
      figure("tok/s", rate(x.tokens_per_s), x.rate_source === "server" ? "As the server measured it" : "(n − 1) tokens over their span, at the proxy"),
      figure("total", seconds(x.total_s)),
      figure("prompt", count(x.input_tokens), "Prompt tokens"),
      x.cached_tokens != null && figure("cached", count(x.cached_tokens), "Prompt tokens taken from the cache"),
      figure("answer", count(x.output_tokens), "Output tokens"),
      figure("window", x.context_window_tokens == null ? NONE : `${count(x.context_window_tokens)}${fillOf(x)}`, "Context window, and how much of it prompt and answer fill"),
      figure("gap p50", seconds(x.itl?.p50_s), x.itl ? `${x.itl.n} gaps` : null),
      figure("gap p99", seconds(x.itl?.p99_s)),
      figure("longest gap", seconds(x.itl?.max_s)),
      figure("our delay", seconds(x.proxy_overhead_s), "Median time between reading a chunk and having written it"));
    const parts = [title(x), facts(x), slow, figures, panel("Where its time went", null, phaseBar(x, { legend: true }))];
    let exporter = null;
    if (chunks?.arrival_ns.length) {
      const made = marks(chunks, findings);
      const strip = tickStrip(x, made);
      const { rows, of } = waterfallRows(made);
      const gaps = made.filter((m) => m.gap_s !== null).length;
      const stalls = made.filter((m) => m.stall).length;
      const words = `${of} ${of === 1 ? "chunk" : "chunks"}, ${stalls} ${stalls === 1 ? "stall" : "stalls"}${rows.length < of ? `; the chart shows the longest gaps, ${rows.length} of them` : ""}`;
      if (gaps > 1) { // one gap is a figure above, not a chart
        const waterfall = chart("waterfall", rows, `Gap before each chunk over time: ${words}`, { fitTime: true, legend: false });
        const histogram = chart("gap_histogram", histogramRows(made), "How often each gap length occurred", { height: 110, legend: false });
        charts = [waterfall, histogram];
        exporter = waterfall;
      }
      closing.push(strip.close, ...charts.map((c) => c.close));
      charts.strip = strip;
      const key = h("span.key", null, h("i.k-text"), "text ", h("i.k-thinking"), "thinking ", h("i.k-tool"), "tool call ", h("i.k-stall"),
        h("span", { title: "A gap far above its neighbours: odd beside the 64 before it, and more than twice their pace" }, "stall"));
      const p = panel("Token waterfall", key, strip.element, h("p.quiet", { data: { stalls: String(stalls) } }, words), charts.map((c) => c.element));
      p.classList.add("waterfall");
      parts.push(p);
    } else {
      parts.push(panel("Token waterfall", null, h("p.quiet", null, x.streamed ? "No chunk of it is kept." : "The answer came in one piece: there is no stream to draw.")));
    }
    const lower = h("div.columns", null,
      findings.length > 0 && panel("Found", null, h("ul.findings", null, findings.map((f) => found(f)))),
      x.tool_calls.length > 0 && panel("Tool calls", null, calls(x)),
      x.place?.prefix && panel("Prompt against the turn before", null, prefix(x.place)),
      (x.doubts.length > 0 || x.error || x.undecoded) && panel("Doubts", null, h("ul.plain", null,
        [x.error && `The server said: ${x.error}`, x.undecoded && `Not decoded: ${x.undecoded}`, ...x.doubts].filter(Boolean).map((d) => h("li", null, d)))),
      panel("On the wire", null, h("dl.figures.small", null,
        figure("from client", bytes(x.bytes_in)), figure("to client", bytes(x.bytes_out)), figure("chunks", count(x.chunks)),
        figure("longest hand-over", seconds(x.written_lag_s), "Longest that a chunk waited for the client to take it"),
        figure("withheld", count(x.withheld_tokens), "Tokens that came in no chunk of their own"),
        figure("answered as", x.response_model ?? NONE), figure("trace", x.trace_id ? x.trace_id.slice(0, 8) : NONE, x.trace_id)), h("p.quiet.id", null, x.id)),
      captured(x));
    const name = `qm-${id}`;
    parts.push(lower, h("div.actions", null,
      exporter && h("button", { type: "button", onclick: async () => download(`${name}.png`, await exporter.png()) }, "Export PNG"),
      h("button", { type: "button", onclick: () => download(`${name}.json`, new Blob([JSON.stringify({ exchange: x, findings, chunks }, null, 1)], { type: "application/json" })) }, "Export JSON")));
    fill(place, parts);
    charts.strip?.draw();
    for (const c of charts) c.draw();
  }

  load();
  return {
    title: `Exchange ${id.slice(-6)}`,
    theme: () => { charts.strip?.draw(); for (const c of charts) c.draw(); },
    close: () => { abort.abort(); for (const end of closing) end(); },
  };
}

function fillOf(x) {
  if (x.input_tokens == null) return "";
  return ` (${share((x.input_tokens + (x.output_tokens ?? 0)) / x.context_window_tokens)})`;
}

function found(f) {
  const item = findingItem(f, false);
  const evidence = Object.entries(f.evidence ?? {});
  if (evidence.length) {
    item.append(h("details", null, h("summary", null, "evidence"), h("dl.evidence", null, evidence.map(([name, value]) =>
      h("div", null, h("dt", null, name), h("dd", null, typeof value === "object" ? JSON.stringify(value) : String(value)))))));
  }
  if (f.tokens_wasted) item.append(h("p.quiet", null, `${count(f.tokens_wasted)} tokens wasted`));
  return item;
}

function calls(x) {
  return table("Tool calls", [["call"], ["at", "num"], ["bytes", "num"], ["arguments"], ["result after", "num"]], x.tool_calls.map((call) => [
    h("code", null, call.name), seconds(call.t_s), count(call.argument_bytes),
    call.valid === null ? "not judged" : call.valid ? pill("valid", "good") : [pill("invalid", "violation"), " ", call.problems.map((p) => (typeof p === "string" ? p : JSON.stringify(p))).join("; ")],
    call.turnaround_s == null ? NONE : h("a", { href: `#/exchange/${call.result_exchange_id}` }, seconds(call.turnaround_s), call.result_is_error ? " (error)" : ""),
  ]));
}

function prefix({ prefix: p, relation }) {
  const reused = p.prompt_characters ? p.common_characters / p.prompt_characters : null;
  return [
    h("dl.figures.small", null, figure("relation", relation), figure("repeats", share(reused), "Of this prompt's characters, from the very start: what a prefix cache can reuse"),
      figure("re-read", p.lost_tokens == null ? NONE : `${count(p.lost_tokens)} tokens`), figure("cost", seconds(p.lost_s))),
    p.broken_at && h("p.because", null, p.broken_at === "tools" ? "The list of tools changed: nothing after it can be reused."
      : `Message ${p.message} (${p.role}) differs${p.character == null ? "" : ` from character ${p.character}`}: everything after it is read again.`),
  ];
}

function captured(x) {
  const texts = [["Request", x.captured_request], ["Thinking", x.captured_thinking], ["Answer", x.captured_answer]].filter(([, text]) => text);
  return texts.length > 0 && panel("Captured text", null, texts.map(([name, text]) =>
    h("details", null, h("summary", null, `${name}, ${count(text.length)} characters`), h("pre.captured", { tabindex: "0" }, text))));
}
