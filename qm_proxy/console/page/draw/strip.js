// The live token strip of a stream in flight: one bar per progress report, its height the chunks per second in it.
// Time runs to the right edge, which is now; silence stays blank and, beyond a second, reddens.

import { elapsed } from "../lib/live.js";
import { colours, fit } from "./canvas.js";

const SPAN_S = 20;
const SILENT_S = 1;

export function drawStrip(canvas, one) {
  const room = fit(canvas);
  if (!room) return;
  const { context: c, width, height } = room;
  const k = colours();
  const now = elapsed(one);
  const span = Math.max(5, Math.min(SPAN_S, now * 1.15));
  const from = Math.max(0, now - span);
  const x = (t) => ((t - from) / span) * width;
  const base = height - 1.5;
  c.fillStyle = k.line;
  c.fillRect(0, base, width, 1);
  const { bars, top } = barsOf(one.samples, from);
  for (const [t0, t1, perS, phase] of bars) {
    const tall = Math.max(1, (perS / top) * (height - 3));
    c.fillStyle = phase === "thinking" ? k.thinking : phase === "tool" ? k.tool : k.text;
    c.fillRect(x(t0), base - tall, Math.max(1, x(t1) - x(t0) - 0.75), tall);
  }
  const first = one.ttft_s ?? null;
  if (first === null || first > from) {
    c.fillStyle = k.wait;
    c.fillRect(0, base - 2, x(first ?? now), 2);
  }
  const last = lastGrowth(one.samples);
  if (last !== null && now - last > SILENT_S) {
    c.fillStyle = k.stall;
    c.globalAlpha = Math.min(0.8, (now - last) / 4);
    c.fillRect(x(last), base - 2, x(now) - x(last), 2);
    c.globalAlpha = 1;
  }
  c.fillStyle = k.stall;
  for (const [at, gap] of one.stalls) {
    if (at < from) continue;
    c.globalAlpha = 0.22;
    if (gap) c.fillRect(x(at - gap), 0, x(at) - x(at - gap), height);
    c.globalAlpha = 1;
    c.fillRect(x(at) - 0.75, 0, 1.5, height);
  }
}

/** Bars [from_s, to_s, chunks per second, phase] since `from`, and the tallest. */
function barsOf(samples, from) {
  const bars = [];
  let top = 1;
  for (let i = samples.length - 1; i > 0; i -= 1) {
    const [t1, n1, phase] = samples[i];
    const [t0, n0] = samples[i - 1];
    if (t1 < from) break;
    if (n1 <= n0 || t1 <= t0) continue;
    const perS = (n1 - n0) / (t1 - t0);
    if (perS > top) top = perS;
    bars.push([t0, t1, perS, phase]);
  }
  return { bars, top };
}

function lastGrowth(samples) {
  for (let i = samples.length - 1; i > 0; i -= 1) if (samples[i][1] > samples[i - 1][1]) return samples[i][0];
  return null;
}
