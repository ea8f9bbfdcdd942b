// The Markdown that our own reports use, as elements: headings, paragraphs, lists, tables, code, emphasis, links within.
// Not a complete Markdown: what it does not know stays text.

import { h } from "./dom.js";

export function markdown(text) {
  const lines = text.split("\n");
  const made = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const heading = /^(#{1,6}) +(.*)$/.exec(line);
    if (!line.trim()) at += 1;
    else if (heading) {
      made.push(h(`h${Math.min(6, heading[1].length + 1)}`, null, inline(heading[2])));
      at += 1;
    } else if (line.startsWith("```")) {
      const end = lines.findIndex((l, i) => i > at && l.startsWith("```"));
      const stop = end < 0 ? lines.length : end;
      made.push(h("pre", { tabindex: "0" }, lines.slice(at + 1, stop).join("\n")));
      at = stop + 1;
    } else if (line.startsWith("|") && /^\|[\s:|-]+\|?\s*$/.test(lines[at + 1] ?? "")) {
      const right = cells(lines[at + 1]).map((c) => c.endsWith(":"));
      const head = cells(line);
      at += 2;
      const rows = [];
      while (at < lines.length && lines[at].startsWith("|")) rows.push(cells(lines[at++]));
      const kind = (i) => (right[i] ? "num" : null);
      made.push(h("div.scroll", { tabindex: "0", role: "region", "aria-label": "Table" }, h("table", null,
        h("thead", null, h("tr", null, head.map((c, i) => h("th", { scope: "col", class: kind(i) }, inline(c))))),
        h("tbody", null, rows.map((row) => h("tr", null, row.map((c, i) => h("td", { class: kind(i) }, inline(c)))))))));
    } else if (/^\s*([-*]|\d+\.) /.test(line)) {
      const items = [];
      const ordered = /^\s*\d/.test(line);
      while (at < lines.length && /^\s*([-*]|\d+\.) /.test(lines[at])) items.push(lines[at++].replace(/^\s*([-*]|\d+\.) /, ""));
      made.push(h(ordered ? "ol" : "ul", null, items.map((item) => h("li", null, inline(item)))));
    } else {
      const some = [];
      while (at < lines.length && lines[at].trim() && !/^(#{1,6} |```|\|)/.test(lines[at])) some.push(lines[at++]);
      if (!some.length) some.push(lines[at++]);
      made.push(h(some[0].startsWith(">") ? "blockquote" : "p", null, inline(some.map((l) => l.replace(/^> ?/, "")).join(" "))));
    }
  }
  return made;
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((c) => c.trim().replaceAll("\\|", "|"));
}

function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s][^*]*\*)/).map((part) => {
    if (/^`.+`$/.test(part)) return h("code", null, part.slice(1, -1));
    if (/^\*\*.+\*\*$/.test(part)) return h("strong", null, part.slice(2, -2));
    if (/^\*.+\*$/.test(part)) return h("em", null, part.slice(1, -1));
    return part;
  });
}
