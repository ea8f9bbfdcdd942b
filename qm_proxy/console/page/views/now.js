// Now: what is in flight with its tokens ticking, what is loaded, what was found last, what ended last.

import { drawStrip } from "../draw/strip.js";
import { arrows, fill, h, keyed, paced, panel, say } from "../lib/dom.js";
import { bytes, clock, count, modelName, NONE, quantile, rate, seconds, share } from "../lib/format.js";
import { get } from "../lib/api.js";
import { elapsed, listen, live } from "../lib/live.js";
import { exchangeHead, exchangeRow, failed, figure, findingItem, pill } from "../lib/parts.js";
import { pasteBoard } from "./paste.js";

const STREAMS = 24; // rows drawn; more are counted
const CLOSED = 25;
const FOUND = 12;
const STATUS_MS = 2000;

const TILES = [ // name, what it means, whether it is of the last exchanges
  ["in flight", "Requests without an end yet"],
  ["waiting", "Queued, loading or prefilling: no token yet"],
  ["tokens/s", "Sum over the streams in flight"],
  ["ttft p50", "Time to first token, median", true],
  ["ttft p95", "Time to first token, 95th percentile", true],
  ["gap p99", "Inter-token gap: the median of their 99th percentiles", true],
  ["with findings", "Suspect or violation", true],
];

export function show(place) {
  const tiles = h("dl.figures", null, TILES.map(([name, hint]) => figure(name, NONE, hint)));
  const values = [...tiles.querySelectorAll("dd")];
  const streams = h("ul.streams");
  const more = h("p.quiet");
  const flight = panel("In flight", h("span.key", null,
    h("i.k-text"), "text ", h("i.k-thinking"), "thinking ", h("i.k-stall"), "stall"), streams, more);
  const models = h("div");
  const loaded = panel("Loaded models", null, models);
  const findings = h("ul.findings");
  const found = panel("Last findings", null, findings);
  const rows = arrows(h("ul.xlist"), "a.xrow");
  const closed = panel("Last exchanges", h("a", { href: "#/exchanges" }, "all"), exchangeHead(), rows);
  const board = h("div");
  fill(place, h("h1.unseen", null, "Now"), board, tiles, h("div.now", null, h("div.now-left", null, flight, closed), h("div.now-right", null, found, loaded)));
  flight.classList.add("a-flight");
  loaded.classList.add("a-loaded");
  found.classList.add("a-found");
  closed.classList.add("a-closed");

  let status = null;
  let taught = null;
  let lists = true;

  function streamRow(one) {
    const canvas = h("canvas.live", { "aria-hidden": "true" });
    const row = h("li", null, h("a.stream", { href: `#/exchange/${one.id}` },
      h("span.s-who", null, h("b", null, modelName(one.model ?? one.route)), h("span", null, one.client)),
      h("span.s-phase"), canvas,
      h("span.s-num.n", null, h("b"), h("small", null, "chunks")),
      h("span.s-num.r", null, h("b"), h("small", null, "tok/s")),
      h("span.s-num.f", null, h("b"), h("small", null, "ttft")),
      h("span.s-num.e", null, h("b"), h("small", null, "elapsed"))));
    row.parts = {
      canvas, phase: row.querySelector(".s-phase"), n: row.querySelector(".n b"), r: row.querySelector(".r b"),
      f: row.querySelector(".f b"), e: row.querySelector(".e b"),
    };
    return row;
  }

  function streamNumbers(row, one) {
    const p = row.parts;
    say(p.phase, one.phase);
    if (p.phase.dataset.phase !== one.phase) p.phase.dataset.phase = one.phase;
    say(p.n, count(one.shown ?? one.chunks));
    say(p.r, rate(one.tokens_per_s));
    say(p.f, seconds(one.ttft_s));
    say(p.e, `${elapsed(one).toFixed(1)} s`);
    row.firstChild.classList.toggle("bad", one.stalls.length > 0 || one.findings.some((f) => f.severity === "violation"));
  }

  // --- each frame while something streams: count up to what is known over the fifth of a second until the next report ----------

  const ticking = paced(tick);
  let turn = 0;
  let rowIds = null;

  function tick() {
    for (const one of live.inFlight.values()) {
      const behind = one.chunks - (one.shown ?? 0);
      one.shown = behind > 400 ? one.chunks : (one.shown ?? 0) + Math.ceil(behind / 5);
    }
    turn += 1;
    [...streams.children].forEach((row, at) => {
      const one = live.inFlight.get(row.dataset.key);
      if (!one) return;
      streamNumbers(row, one);
      if ((at + turn) % 2) drawStrip(row.parts.canvas, one); // every other strip each frame: pixels cost more than numbers
    });
    if (live.inFlight.size) ticking.ask();
  }

  function renderFlight() {
    const all = [...live.inFlight.values()].filter((x) => x.operation !== null || x.streamed);
    const drawn = all.slice(-STREAMS).reverse();
    const ids = drawn.map((x) => x.id).join();
    if (ids !== rowIds) { // the numbers of the rows are the frame's business
      rowIds = ids;
      keyed(streams, drawn, (x) => x.id, streamRow, streamNumbers);
    }
    const rest = all.length - STREAMS;
    say(more, rest > 0 ? `and ${rest} more` : all.length ? "" : "Nothing is in flight. A request appears here while its answer streams.");
    if (live.inFlight.size) ticking.ask();
  }

  function renderTiles() {
    const all = [...live.inFlight.values()];
    const waiting = all.filter((x) => x.phase === "waiting" || x.phase === "uploading").length;
    const flow = all.reduce((sum, x) => sum + (x.phase === "waiting" ? 0 : x.tokens_per_s ?? 0), 0);
    const ttfts = live.recent.map((x) => x.ttft_s).filter((v) => v != null).sort((a, b) => a - b);
    const gaps = live.recent.map((x) => x.itl?.p99_s).filter((v) => v != null).sort((a, b) => a - b);
    const bad = live.recent.filter((x) => x.findings.some((f) => f.severity !== "info")).length;
    const of = `of the last ${live.recent.length} exchanges`;
    const told = [String(all.length), String(waiting), all.length ? rate(flow) : NONE, seconds(quantile(ttfts, 0.5)), seconds(quantile(ttfts, 0.95)),
      seconds(quantile(gaps, 0.5)), live.recent.length ? share(bad / live.recent.length) : NONE];
    TILES.forEach(([, hint, recent], n) => {
      say(values[n], told[n]);
      if (recent) values[n].parentElement.title = `${hint}, ${of}`;
    });
  }

  function renderLists() {
    keyed(rows, live.recent.slice(0, CLOSED), (x) => x.id, (x) => h("li", null, exchangeRow(x)));
    keyed(findings, live.findings.slice(0, FOUND), (f) => f.id, (f) => findingItem(f));
    if (!findings.children.length) fill(findings, h("li.quiet", { data: { key: "none" } }, "Nothing found yet: no loop, stall, bad tool call or truncation."));
    const empty = live.loaded && !live.recent.length && !live.inFlight.size;
    if (empty !== taught) {
      taught = empty;
      fill(board, empty && pasteBoard("No request has come through yet", "Point a client at the proxy: its next request appears here while it streams."));
    }
  }

  function renderModels() {
    if (!status) return;
    if (status.models == null) return fill(models, h("p.quiet", null, "Not asked yet, or the upstream does not answer /api/ps."));
    if (!status.models.length) return fill(models, h("p.quiet", null, "No model is loaded: the next request pays for loading one."));
    fill(models, h("ul.models", null, status.models.map((m) => {
      const its = [...live.inFlight.values()].filter((x) => modelName(x.model) === modelName(m.name));
      const waiting = its.filter((x) => x.phase === "waiting").length;
      const onGpu = m.size_bytes ? (m.size_vram_bytes ?? 0) / m.size_bytes : null;
      const left = m.expires_at ? (Date.parse(m.expires_at) - Date.now()) / 1000 : null;
      return h("li", null,
        h("div.m-name", null, h("b", null, modelName(m.name)), its.length > 0 && pill(`${its.length - waiting} streaming, ${waiting} waiting`, waiting > 1 ? "suspect" : "live")),
        h("dl.m-facts", null,
          figure("window", count(m.context_window_tokens), "Context window in tokens, as loaded"),
          figure("memory", bytes(m.size_bytes), "As /api/ps says"),
          figure("on GPU", share(onGpu), "Share of it in GPU memory; below 100 % it decodes slowly"),
          figure("leaves in", left === null ? NONE : left > 31536000 ? "never" : left > 0 ? seconds(left) : "due", m.expires_at ? `Unloads at ${clock(m.expires_at)} unless it is asked` : null)));
    })));
  }

  async function ask() {
    try {
      status = await get("status");
      renderModels();
    } catch (error) {
      fill(models, failed(error));
    }
  }

  function render(changed) {
    if (changed.has("flight")) renderFlight();
    if (changed.has("recent") || changed.has("findings") || changed.has("reload")) lists = true;
    if (lists) renderLists();
    lists = false;
    if (changed.has("reload")) tilesAt = 0; // what was read is worth telling at once
    renderTilesSoon();
  }

  let tilesAt = 0;
  function renderTilesSoon() {
    if (performance.now() - tilesAt < 250) return;
    tilesAt = performance.now();
    renderTiles();
  }

  const stop = listen(render);
  const timer = setInterval(() => { if (!document.hidden) { ask(); renderTiles(); } }, STATUS_MS);
  renderFlight();
  renderLists();
  renderTiles();
  ask();
  return {
    title: live.inFlight.size ? `${live.inFlight.size} in flight` : "Now",
    theme: () => { for (const row of streams.children) { const one = live.inFlight.get(row.dataset.key); if (one) drawStrip(row.parts.canvas, one); } },
    close: () => { stop(); clearInterval(timer); ticking.stop(); },
  };
}
