// JSON lines of a batch, page by page, into a file for the person.

import { pause } from "./dom.js";
import { broken, send } from "./http.js";

const PAGE = 2000; // lines
const TRIES = 5;

/** Up to `limit` lines of `results` or `errors`, parsed. */
export async function some(batch, list, limit) {
  const response = await send(`batches/${batch}/${list}?limit=${limit}`);
  return parsed(await response.text());
}

/** All that are there now, as a Blob; `onPage(lines)` is told how many so far. Raises Problem. */
export async function all(batch, list, onPage) {
  const pages = [];
  for (let after = 0, lines = 0, failures = 0; ; ) {
    let text;
    try {
      text = await (await send(`batches/${batch}/${list}?after=${after}&limit=${PAGE}`)).text();
      failures = 0;
    } catch (error) {
      const problem = broken(error);
      if (!problem.passes || ++failures === TRIES) throw problem;
      await pause(500 * failures);
      continue;
    }
    const rows = parsed(text);
    if (!rows.length) return new Blob(pages, { type: "application/jsonl" });
    pages.push(text);
    after = rows.at(-1).seq;
    onPage((lines += rows.length));
  }
}

const parsed = (text) => text.split("\n").filter(Boolean).map((line) => JSON.parse(line));

/** Hands a Blob to the browser as a download. */
export function saveAs(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
