// Numbers as a person reads them: three figures, a unit, and a dash for what is not known.

export const NONE = "–";

export function seconds(value) {
  if (value == null) return NONE;
  const a = Math.abs(value);
  if (a === 0) return "0 s";
  if (a < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (a < 0.0995) return `${(value * 1e3).toFixed(1)} ms`;
  if (a < 0.9995) return `${(value * 1e3).toFixed(0)} ms`;
  if (a < 99.95) return `${value.toFixed(a < 9.995 ? 2 : 1)} s`;
  if (a < 5400) return `${Math.floor(Math.round(value) / 60)} m ${Math.round(value) % 60} s`;
  if (a < 172800) return `${(value / 3600).toFixed(1)} h`;
  return `${(value / 86400).toFixed(1)} d`;
}

export function count(value) {
  if (value == null) return NONE;
  if (value < 10000) return String(value);
  if (value < 1e6) return `${(value / 1e3).toFixed(value < 1e5 ? 1 : 0)} k`;
  return `${(value / 1e6).toFixed(value < 1e7 ? 2 : 1)} M`;
}

export function bytes(value) {
  if (value == null) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${value.toFixed(at === 0 || value >= 100 ? 0 : 1)} ${units[at]}`;
}

export function rate(value) {
  return value == null ? NONE : value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);
}

export function share(value, digits = 0) {
  return value == null ? NONE : `${(value * 100).toFixed(digits)} %`;
}

const HOUR = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });

/** An ISO instant in the reader's own time zone; the day only if it is not today. */
export function clock(iso) {
  if (!iso) return NONE;
  const at = new Date(iso);
  const today = new Date().toDateString() === at.toDateString();
  return today ? HOUR.format(at) : `${DAY.format(at)} ${HOUR.format(at)}`;
}

export function short(id) {
  return id ? id.slice(-6) : NONE;
}

/** "llama3:latest" and "llama3" are one model. */
export function modelName(name) {
  return name ? name.replace(/:latest$/, "") : NONE;
}

/** The q-quantile of sorted values, by linear interpolation; null for none. */
export function quantile(sorted, q) {
  if (!sorted.length) return null;
  const at = (sorted.length - 1) * q;
  const low = Math.floor(at);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (at - low);
}

/** Milliseconds since 1970 that a UUIDv7 bears. */
export function idTime(id) {
  return parseInt(id.slice(0, 8) + id.slice(9, 13), 16);
}
