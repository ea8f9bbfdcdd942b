// A loop of tool calls, drawn as what it is: the calls in a ring, how often it went round in the middle.

import { h, s } from "../lib/dom.js";

const SIZE = 220;
const RADIUS = 72;

/** The ring for `names` (one period, in order) that went round `times` times. */
export function cycle(names, times) {
  const mid = SIZE / 2;
  const place = (i) => {
    const angle = (i / names.length) * 2 * Math.PI - Math.PI / 2;
    return [mid + RADIUS * Math.cos(angle), mid + RADIUS * Math.sin(angle)];
  };
  const shown = names.map((name) => (name.length > 16 ? `${name.slice(0, 15)}…` : name));
  const wide = (i) => shown[i].length * 6.7 + 14;
  const angleOf = (i) => (i / names.length) * 2 * Math.PI - Math.PI / 2;
  const gapAt = (i) => { // how much of the ring the call's own box covers
    const angle = angleOf(i);
    const half = Math.abs(Math.sin(angle)) * (wide(i % names.length) / 2) + Math.abs(Math.cos(angle)) * 11;
    return Math.min(Math.PI / names.length - 0.15, half / RADIUS + 0.05);
  };
  const arcs = names.map((_, i) => {
    const a = angleOf(i) + gapAt(i);
    const b = angleOf(i + 1) - gapAt((i + 1) % names.length);
    const [x0, y0] = [mid + RADIUS * Math.cos(a), mid + RADIUS * Math.sin(a)];
    const [x1, y1] = [mid + RADIUS * Math.cos(b), mid + RADIUS * Math.sin(b)];
    return s("path", { d: `M${x0} ${y0}A${RADIUS} ${RADIUS} 0 ${b - a > Math.PI ? 1 : 0} 1 ${x1} ${y1}`, class: "cy-arc", "marker-end": "url(#cy-head)" });
  });
  const nodes = shown.map((text, i) => {
    const [onRing, y] = place(i);
    const half = wide(i) / 2;
    const x = Math.max(half + 1, Math.min(SIZE - half - 1, onRing));
    return s("g", null,
      s("rect", { x: x - half, y: y - 11, width: 2 * half, height: 22, rx: 11, class: "cy-node" }),
      s("text", { x, y: y + 4, "text-anchor": "middle", class: "cy-name" }, text));
  });
  const picture = s("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, role: "img", class: "cycle", "aria-label": `${names.join(", then ")}: ${times} times` },
    s("defs", null, s("marker", { id: "cy-head", viewBox: "0 0 8 8", refX: 6, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" },
      s("path", { d: "M0 0L8 4L0 8z", class: "cy-tip" }))),
    arcs, nodes,
    s("text", { x: mid, y: mid + 2, "text-anchor": "middle", class: "cy-times" }, `×${times}`),
    s("text", { x: mid, y: mid + 18, "text-anchor": "middle", class: "cy-word" }, "round"));
  return h("div.cyclebox", null, picture);
}

/** The shortest period that the end of `names` repeats at least three times: {names, times}, or null. */
export function repeating(names) {
  for (let period = 1; period <= names.length / 3; period += 1) {
    let same = 0;
    for (let i = names.length - 1; i >= period && names[i] === names[i - period]; i -= 1) same += 1;
    const times = Math.floor(same / period) + 1;
    if (times >= 3) return { names: names.slice(-period), times };
  }
  return null;
}
