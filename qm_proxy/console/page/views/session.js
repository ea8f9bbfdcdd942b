// One session: its turns in order, where its time went, the context filling up, prefix breaks, and loops as rings.

import { cycle, repeating } from "../draw/cycle.js";
import { chart } from "../draw/vega.js";
import { findingsOf, get } from "../lib/api.js";
import { arrows, fill, h, panel, table } from "../lib/dom.js";
import { clock, count, modelName, NONE, seconds, share } from "../lib/format.js";
import { listen, live } from "../lib/live.js";
import { download, endingPill, failed, figure, findingItem, findingPills, pill } from "../lib/parts.js";

const TURNS = 2000; // read and drawn at most
const PATIENCE = 8; // looks, half a second apart, at a session that is not there yet

export function show(place, [id]) {
  const abort = new AbortController();
  let drawn = null;
  let timer = 0;
  let patience = PATIENCE;

  async function load() {
    try {
      const x = await get(`sessions/${encodeURIComponent(id)}`, { signal: abort.signal });
      let cursor = x.next_cursor;
      while (cursor && x.items.length < TURNS) {
        const more = await get(`sessions/${id}?cursor=${encodeURIComponent(cursor)}`, { signal: abort.signal }).catch(() => null);
        if (!more || !more.items.length || more.items[0].id <= x.items.at(-1).id) break;
        x.items.push(...more.items);
        cursor = more.next_cursor;
      }
      const loops = [];
      for (const turn of x.items) {
        if (turn.findings.some((f) => f.kind.startsWith("loop."))) loops.push(...(await findingsOf(turn, abort.signal)).filter((f) => f.kind.startsWith("loop.")));
        if (loops.length > 20) break;
      }
      if (!abort.signal.aborted) render(x, loops);
    } catch (error) {
      if (error.status === 404 && patience > 0) { // what closed just now is stored in a moment
        patience -= 1;
        timer = setTimeout(load, 500);
        if (!drawn) fill(place, h("h1", null, "Session"), h("p.quiet", { role: "status" }, "It is not stored yet: looking again."));
      } else if (error.name !== "AbortError") fill(place, h("h1", null, "Session"), failed(error), h("p", null, h("a", { href: "#/sessions" }, "All sessions")));
    }
  }

  function render(x, loops) {
    drawn?.close();
    const rows = x.items.filter((t) => t.place?.trajectory === 0 || !t.place).map((t, i) => ({
      turn: t.turn ?? i + 1, tokens: t.input_tokens, output: t.output_tokens, window: t.context_window_tokens,
      broken: Boolean(t.place?.prefix?.broken_at),
    })).filter((r) => r.tokens != null);
    drawn = rows.length > 1 ? chart("context", rows, "Prompt tokens turn by turn, against the window", { legend: false }) : null;
    const time = (x.model_s ?? 0) + (x.tools_s ?? 0) + (x.user_s ?? 0);
    const spent = [["model", x.model_s, "decode"], ["tools", x.tools_s, "queue"], ["user", x.user_s, "rest"]].filter(([, s]) => s > 0);
    const rings = ringsOf(x, loops);
    fill(place,
      h("div.title", null, h("h1", null, x.client, h("span.by", null, ` with ${x.models.map(modelName).join(", ")}`)),
        h("span.marks", null, x.source && pill(x.source === "new" ? "no id of its own" : `known by ${x.source}`, "info", "How its turns were joined"))),
      h("p.facts", null, `${clock(x.started_at)} to ${clock(x.last_at)}`, x.client_session && [" · its own id ", h("code", null, x.client_session)], x.user_agent && [" · ", h("span.agent", null, x.user_agent)]),
      h("dl.figures", null,
        figure("turns", count(x.turns)), figure("requests", count(x.exchanges)), figure("tool calls", count(x.tool_calls)),
        figure("tool errors", count(x.tool_errors)), figure("tool takes", seconds(x.turnaround_mean_s), "Mean time until a result came back"),
        figure("prompt", count(x.input_tokens), "Prompt tokens of all requests"), figure("answer", count(x.output_tokens), "Output tokens of all requests"),
        figure("reused", share(x.prefix_reused), "Share of the prompts that repeats the turn before, from the start"),
        figure("prefix breaks", count(x.prefix_breaks)), figure("lost to breaks", seconds(x.lost_s)), figure("retries", count(x.retries)),
        figure("forks", count(x.forks)), figure("sub-agents", count(x.subagents)), figure("compactions", count(x.compactions))),
      time > 0 && panel("Whom it waited for", null, h("div.phasebox", null,
        h("span.phases", { role: "img", "aria-label": spent.map(([n, s]) => `${n} ${seconds(s)}`).join(", ") }, spent.map(([, s, ph]) => h(`i.ph-${ph}`, { style: { "flex-grow": String(s / time) } }))),
        h("ul.legend", null, spent.map(([n, s, ph]) => h("li", null, h(`i.ph-${ph}`), n, " ", h("b", null, seconds(s))))))),
      rings.length > 0 && panel("It goes in circles", null, h("div.rings", null, rings)),
      drawn && panel("Context against the window", null, drawn.element),
      panel("Turns", h("span.quiet", null, x.items.length < x.exchanges ? `the first ${x.items.length}` : ""), turns(x.items)),
      h("div.actions", null,
        drawn && h("button", { type: "button", onclick: async () => download(`qm-session-${id}.png`, await drawn.png()) }, "Export PNG"),
        h("button", { type: "button", onclick: () => download(`qm-session-${id}.json`, new Blob([JSON.stringify({ session: x, loops }, null, 1)], { type: "application/json" })) }, "Export JSON")));
    drawn?.draw();
  }

  const stop = listen((changed) => {
    if (changed.has("recent") && live.recent.some((r) => r.session_id === id)) {
      clearTimeout(timer);
      const newest = live.recent.find((r) => r.session_id === id).id;
      if (newest > (show.seen?.[id] ?? "")) timer = setTimeout(load, 400);
      show.seen = { [id]: newest };
    }
  });
  load();
  return {
    title: `Session ${id.slice(-6)}`,
    theme: () => drawn?.draw(),
    close: () => { stop(); clearTimeout(timer); abort.abort(); drawn?.close(); },
  };
}

/** One box for each loop: the ring of its calls where the calls are known, and what the detector says. */
function ringsOf(x, loops) {
  const last = new Map();
  for (const f of loops) last.set(`${f.kind} ${f.evidence?.form}`, f); // the latest of a form says the most
  return [...last.values()].map((f) => {
    const ring = f.kind === "loop.trajectory" ? ringOf(x, f) : null;
    return h("div.ring", null, ring && cycle(ring.names, ring.times), h("ul.findings", null, findingItem(f)));
  });
}

function ringOf(x, f) {
  const { period, copies, tools } = f.evidence ?? {};
  if (tools?.length && copies) return { names: tools.slice(0, period || tools.length), times: copies };
  return repeating(x.items.filter((t) => t.id <= (f.exchange_id ?? "z")).flatMap((t) => t.tool_calls.map((c) => c.name)));
}

function turns(items) {
  const rows = items.map((t) => {
    const p = t.place;
    const prefix = p?.prefix;
    const reused = prefix?.prompt_characters ? prefix.common_characters / prefix.prompt_characters : null;
    return {
      class: prefix?.broken_at ? "broken" : null,
      cells: [
        h("a", { href: `#/exchange/${t.id}` }, p?.trajectory > 0 ? `↳${p.trajectory}.${t.turn ?? "?"}` : `${t.turn ?? NONE}`),
        clock(t.started_at), p?.relation ?? NONE,
        p?.wait_s == null ? NONE : `${seconds(p.wait_s)}${p.waited_for ? ` ${p.waited_for}` : ""}`,
        seconds(t.ttft_s), seconds(t.total_s), count(t.input_tokens), count(t.output_tokens),
        prefix?.broken_at ? pill(`broken: ${prefix.broken_at === "tools" ? "tools" : `message ${prefix.message}`}`, "suspect", prefix.lost_s == null ? null : `cost ${seconds(prefix.lost_s)}`) : share(reused),
        t.tool_calls.map((c) => [h(`code${c.valid === false ? ".bad" : ""}`, { title: c.problems?.map(String).join("; ") }, c.name), " "]),
        [endingPill(t), findingPills(t.findings)],
      ],
    };
  });
  return arrows(table("Turns", [["turn"], ["at"], ["how"], ["waited", "num", "Since the answer before, and for whom"], ["ttft", "num"], ["total", "num"],
    ["prompt", "num"], ["answer", "num"], ["reused", "num", "Of the prompt, from the start"], ["calls"], ["found"]], rows, ".turns"), "tbody a");
}
