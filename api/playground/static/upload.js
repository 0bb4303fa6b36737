// A file of prompts, dropped or chosen, and what the service is told of it.

import { $, number, say } from "./dom.js";
import { Problem, create } from "./http.js";

const TYPES = { txt: "text/plain", csv: "text/csv", jsonl: "application/jsonl" };

/** The media type that a file's name stands for; undefined: none that the service reads. */
export const typeOf = (name) => TYPES[/\.(txt|csv|jsonl)(\.gz)?$/i.exec(name)?.[1].toLowerCase()];

/** The file that is to go up: dropped anywhere on the panel, or chosen. */
export class FileChoice {
  file = null;

  constructor() {
    const panel = $("panel-bulk");
    const input = $("bulk-file");
    const over = (is) => $("bulk-drop").classList.toggle("over", is);
    input.addEventListener("change", () => {
      this.#take(input.files[0]);
      input.value = ""; // so that the same file may be chosen again
    });
    panel.addEventListener("dragover", () => over(true));
    panel.addEventListener("dragleave", () => over(false));
    panel.addEventListener("drop", ({ dataTransfer }) => (over(false), this.#take(dataTransfer.files[0])));
    for (const kind of ["dragover", "drop"]) {
      window.addEventListener(kind, (event) => event.preventDefault()); // a miss must not leave the page
    }
  }

  /** Says what is wrong with the choice; empty: nothing. */
  complain(text) {
    $("bulk-file-error").textContent = text;
    $("bulk-file").setAttribute("aria-invalid", text !== "");
    if (text) $("bulk-file").focus();
  }

  #take(file) {
    if (!file) return;
    this.file = typeOf(file.name) ? file : null;
    this.complain(this.file ? "" : `${file.name} is none of .txt, .csv and .jsonl (also .gz).`);
    say($("bulk-file-name"), this.file?.name ?? "Drop a file here, or choose one");
    say($("bulk-file-hint"), this.file ? size(file.size) : ".txt, .csv or .jsonl; also .gz");
  }
}

/** `POST /batches`: the batch, once every line of the file was checked. Raises Problem. */
export function upload(file, options, signal) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(options)) query.set(name, String(value));
  const name = file.name.slice(0, 128);
  query.set("name", name);
  const type = typeOf(file.name);
  const what = `${file.size} ${file.lastModified}`;
  return create(`batches?${query}`, { what, content: file, type, signal }).catch((problem) => {
    if (problem.code !== "unreachable") throw problem;
    throw new Problem({ ...problem, title: "The upload broke off", detail: `${problem.detail} A file that can no longer be read also does this: choose it again.` });
  });
}

function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  return bytes < 1e6 ? `${number(bytes / 1e3, 1)} kB` : `${number(bytes / 1e6, 1)} MB`;
}
