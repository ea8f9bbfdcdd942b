// The lines to paste: how each client is pointed at the proxy, and at the MCP server.

import { get } from "../lib/api.js";
import { arrows, fill, h } from "../lib/dom.js";
import { copyButton, failed } from "../lib/parts.js";

function code(text) {
  return h("div.code", null, h("pre", { tabindex: "0" }, text), copyButton(text));
}

/** A board that teaches: clients left, their lines right. */
export function pasteBoard(title, words) {
  const names = arrows(h("div.names", { role: "tablist", "aria-label": "Clients", "aria-orientation": "vertical" }), "button");
  const lines = h("div.lines", { role: "tabpanel", id: "paste-lines", tabindex: "0" });
  const board = h("section.panel.paste", { "aria-label": title }, h("h2", null, title), h("p", null, words), h("div.two", null, names, lines));

  function choose(item, button) {
    for (const other of names.children) other.setAttribute("aria-selected", String(other === button));
    for (const other of names.children) other.tabIndex = other === button ? 0 : -1;
    lines.setAttribute("aria-label", item.title);
    fill(lines, h("p.quiet", null, item.dialect === "-" ? item.title : `${item.title} · speaks ${item.dialect}`),
      h("h3", null, "Its requests through the proxy"), code(item.point),
      item.run && [h("h3", null, "Or just this once, without touching its settings"), code(item.run)],
      item.mcp && [h("h3", null, "The MCP server: it can ask why it was slow"), code(item.mcp)]);
    try { localStorage.setItem("qm-client", item.name); } catch { /* not remembered */ }
  }

  get("clients").then(({ items }) => {
    const buttons = items.map((item) => {
      const button = h("button", { type: "button", role: "tab", "aria-controls": "paste-lines", onclick: () => choose(item, button), onfocus: () => choose(item, button) }, item.name);
      return button;
    });
    fill(names, buttons);
    let last = null;
    try { last = localStorage.getItem("qm-client"); } catch { /* the first, then */ }
    const at = Math.max(0, items.findIndex((i) => i.name === last));
    if (items.length) choose(items[at], buttons[at]);
  }, (error) => fill(lines, failed(error)));
  return board;
}
