// Exchanges: every one that is kept, newest first, however many; filters are part of the link.

import { pages } from "../lib/api.js";
import { fill, h } from "../lib/dom.js";
import { listen, live } from "../lib/live.js";
import { exchangeHead, exchangeRow, failed } from "../lib/parts.js";
import { virtualList } from "../lib/virtual.js";
import { pasteBoard } from "./paste.js";

const FILTERS = ["model", "client", "finding", "session", "since"];
const KINDS = ["stall", "loop", "tool", "context.truncated", "model.reload", "model.hung", "cache.broken", "upstream.aborted", "stream.silent"];

export function show(place, _, query) {
  const chosen = FILTERS.filter((name) => query.get(name)).map((name) => [name, query.get(name)]);
  const asked = new URLSearchParams(chosen).toString();
  const abort = new AbortController();
  const wrong = h("div");
  const board = h("div");
  const list = virtualList("Exchanges", pages(`exchanges${asked ? `?${asked}` : ""}`, { limit: 100, signal: abort.signal }), exchangeRow, {
    empty: asked ? "Nothing that fits these filters is kept." : "No exchange yet.",
    onError: (error) => fill(wrong, failed(error)),
    onEmpty: (empty) => {
      const teach = empty && !asked;
      if (teach === Boolean(board.firstChild)) return;
      fill(board, teach && pasteBoard("Point a client at the proxy", "Its next request appears here."));
    },
  });
  const form = h("form.filters", { role: "search", onsubmit: (event) => { event.preventDefault(); apply(form); } },
    h("label", null, "model ", h("input", { name: "model", value: query.get("model") ?? "", autocomplete: "off" })),
    h("label", null, "client ", h("input", { name: "client", value: query.get("client") ?? "", autocomplete: "off" })),
    h("label", null, "found ", h("select", { name: "finding", onchange: () => apply(form) },
      h("option", { value: "" }, "anything or nothing"),
      [...new Set([...KINDS, query.get("finding")].filter(Boolean))].map((kind) => h("option", { value: kind, selected: query.get("finding") === kind }, kind)))),
    h("button", { type: "submit" }, "Filter"),
    chosen.length > 0 && h("a", { href: "#/exchanges" }, "clear"));
  fill(place, h("div.title", null, h("h1", null, "Exchanges"), form), wrong, board, h("section.panel.full", { "aria-label": "Exchanges" }, exchangeHead(), list.element));

  const fits = (x) => chosen.every(([name, value]) => ({
    model: () => (x.model ?? "").replace(/:latest$/, "") === value.replace(/:latest$/, ""),
    client: () => x.client === value,
    session: () => x.session_id === value,
    finding: () => x.findings.some((f) => f.kind === value || f.kind.startsWith(`${value}.`)),
    since: () => true,
  })[name]());
  const stop = listen((changed) => {
    if (changed.has("recent")) list.prepend(live.recent.filter(fits).slice(0, 30));
  });
  return { title: "Exchanges", close: () => { stop(); abort.abort(); list.close(); } };
}

function apply(form) {
  const given = [...new FormData(form)].filter(([, value]) => value.trim()).map(([name, value]) => [name, value.trim()]);
  location.hash = `#/exchanges${given.length ? `?${new URLSearchParams(given)}` : ""}`;
}
