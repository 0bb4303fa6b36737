// The third tab: a file of prompts as a batch. Its id stays in this tab, so a reload goes on with it.

import { $, about, count, el, facts, isBusy, number, rate, say, setBusy } from "./dom.js";
import { getJson, postJson } from "./http.js";
import { all, saveAs, some } from "./lines.js";
import { NO_WORKER, fillSelect } from "./models.js";
import { clearProblems, notify, rowLine, showProblem } from "./problems.js";
import { Settings } from "./settings.js";
import { FileChoice, upload } from "./upload.js";

const NAME = "slm-batch";
const POLL_MS = 1000;
const SHOWN = 3; // results, and 20 errors
const ENDS = {
  completed: "Done.",
  cancelled: "Cancelled; what was done is kept.",
  expired: "Expired: its time was over before all rows had begun.",
  failed: "Refused.",
};

export class Bulk {
  #id = stored(); // of the batch that is followed, if any
  #batch = null; // as it was told last
  #timer = 0;
  #previewed = ""; // the batch whose first results are shown
  #upload = null; // an AbortController, while a file goes up

  constructor(pulse) {
    this.pulse = pulse;
    this.form = $("bulk-form");
    this.start = $("bulk-start");
    this.file = new FileChoice();
    this.settings = new Settings($("bulk-settings"), "bulk");
    this.form.addEventListener("submit", (event) => (event.preventDefault(), this.#send()));
    $("bulk-cancel").addEventListener("click", () => this.#cancel());
    $("bulk-results").addEventListener("click", () => this.#download("results"));
    $("bulk-errors").addEventListener("click", () => this.#download("errors"));
    document.addEventListener("visibilitychange", () => document.hidden || this.#poll());
  }

  offer(models) {
    fillSelect($("bulk-model"), models);
    if (!this.#batch?.finished_at) this.#poll();
  }

  async #send() {
    if (isBusy(this.start)) return;
    clearProblems($("bulk-notice"), this.form);
    const { file } = this.file;
    if (!file) return this.file.complain("Choose a file first.");
    try {
      const skip = $("bulk-skip").checked && { on_invalid: "skip" };
      const options = { model: $("bulk-model").value, ...this.settings.read(), ...skip };
      this.#upload = new AbortController();
      setBusy(this.start, $("bulk-cancel"), true);
      this.#clear();
      say($("bulk-title"), file.name);
      say($("bulk-status"), "Sending the file; every line is checked.");
      const batch = await upload(file, options, this.#upload.signal);
      this.#id = batch.id;
      store(batch.id);
      this.#show(batch);
    } catch (problem) {
      setBusy(this.start, $("bulk-cancel"), false);
      const aborted = problem.name === "AbortError";
      say($("bulk-status"), aborted ? "Cancelled; nothing was kept." : "The file was not taken.");
      if (!aborted) showProblem($("bulk-notice"), problem, this.form);
    }
    this.#upload = null;
  }

  /** Makes room for another batch. What is still told of the one before comes too late. */
  #clear() {
    this.#id = this.#previewed = "";
    this.#batch = null;
    $("bulk-failures").replaceChildren();
    $("bulk-preview").replaceChildren();
    for (const part of ["batch", "errors", "failures", "preview"]) $(`bulk-${part}`).hidden = true;
    say($("bulk-rate"), "");
    say($("bulk-download"), "");
  }

  async #poll() {
    clearTimeout(this.#timer);
    const id = this.#id;
    if (!id || document.hidden) return;
    try {
      this.#show(await getJson(`batches/${id}`));
    } catch (problem) {
      if (id === this.#id) this.#fail(problem);
    }
  }

  #fail(problem) {
    if (problem.passes) {
      say($("bulk-rate"), "The service does not answer; trying again.");
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#poll(), POLL_MS);
      return;
    }
    setBusy(this.start, $("bulk-cancel"), false);
    say($("bulk-rate"), "");
    if (problem.status === 401) return; // another key is asked for, and goes on
    if (problem.status !== 404) return showProblem($("bulk-notice"), problem);
    if (this.#batch) {
      say($("bulk-status"), "Gone.");
      showProblem($("bulk-notice"), problem);
    }
    store("");
    this.#clear();
  }

  #show(batch) {
    if (batch.id !== this.#id) return;
    this.#batch = batch;
    const { counts, status } = batch;
    const ended = batch.finished_at !== null;
    setBusy(this.start, $("bulk-cancel"), !ended);
    say($("bulk-title"), batch.name ?? batch.id);
    say($("bulk-status"), ENDS[status] ?? (batch.cancel_requested ? "Cancelling." : "Running."));
    say($("bulk-rate"), ended ? "" : pace(batch));
    $("bulk-batch").hidden = false;
    $("bulk-progress").max = Math.max(1, counts.total);
    $("bulk-progress").value = counts.total - counts.pending - counts.running;
    const rows = Object.entries(counts).filter(([name, many]) => many || name === "succeeded");
    $("bulk-counts").replaceChildren(
      ...facts([
        ...rows.map(([name, many]) => [name, number(many)]),
        ["tokens", number(batch.usage.completion_tokens)],
      ]),
    );
    this.#lines(batch, ended);
    this.#warn(ended);
    clearTimeout(this.#timer);
    if (!ended) this.#timer = setTimeout(() => this.#poll(), POLL_MS);
  }

  /** The first results, and the first rows that failed. */
  async #lines({ id, counts }, ended) {
    const failed = counts.failed + counts.cancelled + counts.expired;
    $("bulk-results").hidden = !counts.succeeded;
    try {
      if (ended || failed) {
        const errors = await some(id, "errors", 20);
        if (id !== this.#id) return;
        $("bulk-errors").hidden = $("bulk-failures").hidden = !errors.length;
        $("bulk-failures").replaceChildren(...errors.map(rowLine));
      }
      if ((ended || counts.succeeded >= SHOWN) && this.#previewed !== id) {
        const results = await some(id, "results", SHOWN);
        if (id !== this.#id) return;
        this.#previewed = id;
        $("bulk-preview").hidden = !results.length;
        $("bulk-preview").replaceChildren(...results.map(story));
      }
    } catch {
      // they are shown with the next look
    }
  }

  #warn(ended) {
    const place = $("bulk-notice");
    const alone = !ended && this.pulse.workers(this.#batch.model) === 0;
    if (!alone) place.querySelector(".warn")?.remove();
    else if (!place.hasChildNodes()) {
      notify(place, NO_WORKER.title(this.#batch.model), NO_WORKER.detail, { kind: "warn" });
    }
  }

  async #cancel() {
    if (this.#upload) return this.#upload.abort();
    try {
      this.#show(await postJson(`batches/${this.#batch.id}/cancel`));
    } catch (problem) {
      showProblem($("bulk-notice"), problem);
    }
  }

  async #download(list) {
    const { id, name } = this.#batch;
    const told = $("bulk-download");
    try {
      const blob = await all(id, list, (lines) => say(told, `Fetching: ${count(lines, "line")}.`));
      saveAs(blob, `${(name ?? id).replace(/\.(txt|csv|jsonl)(\.gz)?$/i, "")}.${list}.jsonl`);
      say(told, "Saved.");
    } catch (problem) {
      say(told, "");
      showProblem($("bulk-notice"), problem);
    }
  }
}

function pace({ rows_per_second: rows, tokens_per_second: tokens, estimated_seconds: seconds }) {
  const parts = [rows && `${rate(rows)} rows/s`, tokens && `${rate(tokens)} tokens/s`];
  return [...parts, seconds !== null && `${about(seconds)} left`].filter(Boolean).join(", ");
}

function story({ prompt, text, outputs }) {
  const begin = Array.isArray(prompt) ? prompt.join(" ") : prompt;
  return el("li", {}, el("span", { class: "given" }, begin ?? ""), text ?? outputs?.[0]?.text ?? "");
}

function stored() {
  try {
    return sessionStorage.getItem(NAME);
  } catch {
    return null;
  }
}

function store(id) {
  try {
    if (id) sessionStorage.setItem(NAME, id);
    else sessionStorage.removeItem(NAME);
  } catch {
    // then a reload forgets it
  }
}
