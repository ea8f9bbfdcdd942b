// The token strip of a finished stream: one tick per chunk on its time axis, coloured by what it was, stalls red with the
// silence before them shaded, tool calls marked. The pointer or the arrow keys walk it; what is under them is said below.

import { h, say } from "../lib/dom.js";
import { seconds } from "../lib/format.js";
import { colours, fit } from "./canvas.js";

const WAIT_SHARE = 0.14;
const TOP = 14; // room for the marks of tool calls

/** What each chunk said, where text was captured; → (i) => what the readout adds.
 *  Where the lengths of the chunks are not kept (a secret was taken out, or an older version stored it) its place is only known
 *  by the chunk's share of its kind, and the readout says "near". */
function saidAt(exchange, made) {
  const texts = { text: exchange.captured_answer, thinking: exchange.captured_thinking };
  const lengths = { text: exchange.captured_answer_pieces, thinking: exchange.captured_thinking_pieces };
  const of = {};
  const nth = made.map((m) => { of[m.kind] = (of[m.kind] ?? 0) + 1; return of[m.kind] - 1; });
  const exact = {};
  for (const kind of Object.keys(texts)) if (texts[kind] && lengths[kind]) exact[kind] = pieces(texts[kind], lengths[kind]);
  return (i) => {
    const { kind } = made[i];
    const text = texts[kind];
    if (!text) return "";
    if (exact[kind]) {
      const piece = exact[kind][nth[i]];
      return piece === undefined ? " · beyond the text that is kept" : ` · “${visible(piece)}”`;
    }
    const each = text.length / of[kind];
    const from = Math.round(nth[i] * each);
    return ` · near “${visible(text.slice(Math.max(0, from - 16), Math.round(from + each) + 16)).trim()}” (where exactly is not kept)`;
  };
}

/** The text cut into the pieces in which it came; lengths are in code points. What lies behind a cut-off is left out. */
function pieces(text, lengths) {
  const points = Array.from(text);
  const made = [];
  let at = 0;
  for (const n of lengths) {
    if (at + n > points.length) break;
    made.push(points.slice(at, at += n).join(""));
  }
  return made;
}

/** Blanks and line ends as signs: a token that is nothing else must be seen, too. */
function visible(piece) {
  return piece.replace(/\r?\n/g, "⏎").replace(/\t/g, "⇥");
}

export function tickStrip(exchange, made) {
  const said = saidAt(exchange, made);
  const total = Math.max(exchange.total_s ?? 0, made.at(-1).t_s, 1e-6);
  const canvas = h("canvas.ticks", {
    tabindex: "0", role: "slider", "aria-label": "Chunks of the answer in time; arrow keys walk them, S jumps to the next stall",
    "aria-valuemin": "0", "aria-valuemax": String(made.length - 1), "aria-valuenow": "0",
  });
  const hint = `${made.length} ${made.length === 1 ? "chunk" : "chunks"} · point at one, or focus the strip and use ← → (S: next stall)`;
  const readout = h("p.readout", null, hint);
  let at = -1;

  // The wait for the first token takes at most this share of the width: what is to be seen comes after it.
  const first = made[0].t_s;
  const bend = Math.min(first / total, WAIT_SHARE);
  const broken = first / total > WAIT_SHARE;

  function x(t, width) {
    if (t <= first || total <= first) return first ? (t / first) * bend * width : 0;
    return (bend + ((t - first) / (total - first)) * (1 - bend)) * width;
  }

  function timeAt(part) {
    return part <= bend && bend > 0 ? (part / bend) * first : first + ((part - bend) / (1 - bend)) * (total - first);
  }

  function draw() {
    const room = fit(canvas);
    if (!room) return;
    const { context: c, width, height } = room;
    const k = colours();
    c.fillStyle = k.line;
    c.fillRect(0, height - 1, width, 1);
    c.fillStyle = k.wait;
    c.fillRect(0, height - 4, x(first, width), 3);
    if (broken) {
      c.fillStyle = k.panel;
      c.fillRect(x(first, width) / 2 - 3, height - 8, 6, 8);
      c.strokeStyle = k.muted;
      c.beginPath();
      for (const side of [-3, 3]) {
        c.moveTo(x(first, width) / 2 + side - 2, height);
        c.lineTo(x(first, width) / 2 + side + 2, height - 8);
      }
      c.stroke();
    }
    const dense = made.length > width / 1.5;
    c.globalAlpha = dense ? 0.5 : 0.9;
    for (const m of made) {
      if (m.stall) continue;
      c.fillStyle = k[m.kind] ?? k.text;
      c.fillRect(Math.round(x(m.t_s, width)), TOP + 5, 1, height - TOP - 6);
    }
    for (const m of made) {
      if (!m.stall) continue;
      c.fillStyle = k.stall;
      c.globalAlpha = 0.16;
      const from = x(m.t_s - (m.gap_s ?? 0), width);
      c.fillRect(from, TOP, x(m.t_s, width) - from, height - TOP - 1);
      c.globalAlpha = 1;
      c.fillRect(Math.round(x(m.t_s, width)), TOP, 2, height - TOP - 1);
    }
    c.globalAlpha = 1;
    for (const call of exchange.tool_calls ?? []) {
      const px = x(call.t_s, width);
      c.fillStyle = call.valid === false ? k.stall : k.tool;
      c.beginPath();
      c.moveTo(px - 4, 3);
      c.lineTo(px + 4, 3);
      c.lineTo(px, 10);
      c.fill();
    }
    if (at >= 0) {
      c.fillStyle = k.ink;
      const px = Math.round(x(made[at].t_s, width)); // beside the tick, not over it
      c.fillRect(px, 0, 2, TOP - 2);
      c.fillRect(px, height - 6, 2, 6);
    }
  }

  function walk(to) {
    at = Math.max(0, Math.min(made.length - 1, to));
    const m = made[at];
    const gap = m.asleep ? "the machine slept before it" : at === 0 ? "the first" : m.gap_s === null ? "same read as the one before"
      : `gap ${seconds(m.gap_s)}${m.stall ? ", a stall" : ""}`;
    const text = `chunk ${m.i} · ${m.kind} · at ${seconds(m.t_s)} · ${gap}${said(at)}`;
    say(readout, text);
    readout.classList.toggle("red", m.stall);
    canvas.setAttribute("aria-valuenow", String(at));
    canvas.setAttribute("aria-valuetext", text);
    draw();
  }

  function nearest(part) {
    const t = timeAt(part);
    let low = 0;
    let high = made.length - 1;
    while (low < high) {
      const mid = (low + high) >> 1;
      if (made[mid].t_s < t) low = mid + 1;
      else high = mid;
    }
    if (low > 0 && t - made[low - 1].t_s < made[low].t_s - t) low -= 1;
    const reach = (6 / canvas.clientWidth) * (total - first); // a stall near the pointer wins
    for (let i = low; i < made.length && made[i].t_s - t <= reach; i += 1) if (made[i].stall) return i;
    for (let i = low; i >= 0 && t - made[i].t_s <= reach; i -= 1) if (made[i].stall) return i;
    return low;
  }

  canvas.addEventListener("pointermove", (e) => {
    const box = canvas.getBoundingClientRect(); // offsetX is in other pixels than the width where the page is zoomed
    walk(nearest((e.clientX - box.left) / box.width));
  });
  canvas.addEventListener("pointerleave", () => {
    at = -1;
    readout.classList.remove("red");
    say(readout, hint);
    draw();
  });
  canvas.addEventListener("keydown", (e) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, PageDown: 20, PageUp: -20, Home: -Infinity, End: Infinity }[e.key];
    if (step !== undefined) walk(at + step);
    else if (e.key === "s" || e.key === "S") {
      const next = made.findIndex((m, i) => i > at && m.stall);
      walk(next >= 0 ? next : Math.max(0, made.findIndex((m) => m.stall)));
    } else return;
    e.preventDefault();
  });
  const watch = new ResizeObserver(draw);
  watch.observe(canvas);
  const axis = h("div.axis", { "aria-hidden": "true" }, [0, ...(bend > 0.06 ? [bend] : []), ...[0.25, 0.5, 0.75, 1].map((p) => bend + p * (1 - bend))].map((part) =>
    h("span", { style: { left: `${part * 100}%` } }, seconds(timeAt(part)))));
  return { element: h("div.strip", null, canvas, axis, readout), draw, close: () => watch.disconnect() };
}
