// Connect: the lines to paste for each client, at any time.

import { fill, h } from "../lib/dom.js";
import { pasteBoard } from "./paste.js";

export function show(place) {
  fill(place, h("h1", null, "Connect a client"),
    pasteBoard("Point it at the proxy", "The proxy answers exactly as Ollama does, byte for byte; to go back, take the line out again."));
  return { title: "Connect" };
}
