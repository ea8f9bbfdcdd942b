// Asks /api/v1. A problem document becomes an Error in its own words; a 401 asks the user for the token, once.

export class Problem extends Error {
  constructor(status, title, detail) {
    super(detail || title);
    this.status = status;
  }
}

export async function get(path, { signal } = {}) {
  const answer = await fetch(`/api/v1/${path}`, { signal, headers: { accept: "application/json" } });
  if (answer.status === 401) {
    await askForToken();
    return get(path, { signal });
  }
  if (!answer.ok) throw await problem(answer);
  return answer.json();
}

export async function send(path, body, method = "POST") {
  const answer = await fetch(`/api/v1/${path}`, {
    method, headers: { "content-type": "application/json" }, body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!answer.ok) throw await problem(answer);
  return answer.status === 204 ? null : answer.json();
}

async function problem(answer) {
  try {
    const told = await answer.json();
    return new Problem(answer.status, told.title, told.detail);
  } catch {
    return new Problem(answer.status, `HTTP ${answer.status}`, `The console answered HTTP ${answer.status}.`);
  }
}

let asking = null;

/** Until a token that the console accepts is in the cookie; one dialog however many requests wait for it. */
export function askForToken() {
  asking ??= tokenFromUser().finally(() => { asking = null; });
  return asking;
}

async function tokenFromUser() {
  const dialog = document.getElementById("token");
  const input = dialog.querySelector("input");
  const wrong = dialog.querySelector(".wrong");
  for (;;) {
    dialog.returnValue = "";
    if (!dialog.open) dialog.showModal();
    await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
    if (!input.value) continue;
    document.cookie = `qm_token=${encodeURIComponent(input.value)}; path=/; max-age=31536000; samesite=strict`;
    const answer = await fetch("/api/v1/status");
    if (answer.status !== 401) {
      input.value = wrong.textContent = "";
      return;
    }
    wrong.textContent = "Not this console's token.";
    input.value = "";
  }
}

/** Items page by page, oldest cursor last; ends with the list or after `most` items. */
export async function* pages(path, { limit = 100, most = Infinity, signal } = {}) {
  let cursor = null;
  let given = 0;
  do {
    const mark = cursor ? `&cursor=${encodeURIComponent(cursor)}` : "";
    const page = await get(`${path}${path.includes("?") ? "&" : "?"}limit=${Math.min(limit, most - given)}${mark}`, { signal });
    given += page.items.length;
    yield page.items;
    cursor = page.next_cursor;
  } while (cursor && given < most);
}

/** The full findings of an exchange, whose own list only names them: read from the list of findings around their ids. */
export async function findingsOf(exchange, signal) {
  const brief = exchange.findings ?? [];
  if (!brief.length || brief.every((f) => f.summary !== undefined)) return brief;
  const ids = brief.map((f) => f.id).sort();
  const found = new Map();
  let cursor = `${ids.at(-1).slice(0, -12)}ffffffffffff`;
  for (let page = 0; page < 10 && cursor && found.size < ids.length && cursor >= ids[0]; page += 1) {
    const got = await get(`findings?limit=100&cursor=${encodeURIComponent(cursor)}`, { signal });
    for (const f of got.items) if (f.exchange_id === exchange.id) found.set(f.id, f);
    cursor = got.next_cursor;
  }
  return brief.map((f) => found.get(f.id) ?? f);
}
