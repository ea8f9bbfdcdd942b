// Sessions: each a task some client worked on, last active first.

import { pages } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { clock, count, modelName, NONE, seconds, share } from "../lib/format.js";
import { failed, named, pill } from "../lib/parts.js";
import { virtualList } from "../lib/virtual.js";
import { pasteBoard } from "./paste.js";

function row(x) {
  const total = (x.model_s ?? 0) + (x.tools_s ?? 0) + (x.user_s ?? 0);
  const parts = [["model", x.model_s, "decode"], ["tools", x.tools_s, "queue"], ["user", x.user_s, "rest"]].filter(([, s]) => s > 0);
  const words = parts.map(([name, s]) => `${name} ${seconds(s)}`).join(", ");
  const models = x.models.map(modelName).join(", ");
  return h("a.xrow.srow", { href: `#/session/${x.id}` },
    h("span.c-time", null, clock(x.last_at)),
    h("span.c-who", null, h("b", null, x.client), " ", h("span", null, models)),
    h("span.c-bar", null, h("span.phases", { title: words }, total > 0 && parts.map(([, s, ph]) => h(`i.ph-${ph}`, { style: { "flex-grow": String(s / total) } })))),
    h("span.c-num.ttft", null, named("turns"), count(x.turns)),
    h("span.c-num.rate", null, named("tool calls"), count(x.tool_calls)),
    h("span.c-num.toks", null, named("tokens"), `${count(x.input_tokens)} → ${count(x.output_tokens)}`),
    h("span.c-num.total", null, named("reused"), share(x.prefix_reused)),
    h("span.c-pills", null, x.violations > 0 && pill(`${x.violations} ${x.violations === 1 ? "violation" : "violations"}`, "violation"),
      x.findings > x.violations && pill(`${x.findings - x.violations} found`, "suspect"), x.prefix_breaks > 0 && pill(`${x.prefix_breaks}× prefix broken`, "suspect"),
      x.subagents > 0 && pill(`${x.subagents} sub-agents`, "info"), x.compactions > 0 && pill(`${x.compactions}× compacted`, "info")));
}

export function show(place, _, query) {
  const abort = new AbortController();
  const wrong = h("div");
  const board = h("div");
  const asked = query.toString();
  const list = virtualList("Sessions", pages(`sessions${asked ? `?${asked}` : ""}`, { limit: 100, signal: abort.signal }), row, {
    empty: "No session yet: one begins with a client's first chat request.",
    onError: (error) => fill(wrong, failed(error)),
    onEmpty: (empty) => {
      const teach = empty && !asked;
      if (teach === Boolean(board.firstChild)) return;
      fill(board, teach && pasteBoard("Point a client at the proxy", "A session begins with its first chat request."));
    },
  });
  fill(place, h("div.title", null, h("h1", null, "Sessions")), wrong, board, h("section.panel.full", { "aria-label": "Sessions" },
    h("div.xrow.srow.xhead", { "aria-hidden": "true" }, h("span.c-time", null, "last active"), h("span.c-who", null, "client, models"), h("span.c-bar", null, "model, tools, user"),
      h("span.c-num.ttft", null, "turns"), h("span.c-num.rate", null, "calls"), h("span.c-num.toks", null, "tokens in → out"), h("span.c-num.total", { title: "Share of prompts repeated from the start" }, "reused"), h("span.c-pills", null, "found")),
    list.element));
  return { title: "Sessions", close: () => { abort.abort(); list.close(); } };
}
