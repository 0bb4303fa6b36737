// The first tab: a prompt, its text as it comes, and how fast.

import { $, about, count, el, facts, isBusy, number, rate, say, setBusy, time } from "./dom.js";
import { getJson } from "./http.js";
import { cancel, ending, fingerprint, run, speed } from "./job.js";
import { NO_WORKER, aboutModel, fillSelect } from "./models.js";
import { clearProblems, notify, showProblem } from "./problems.js";
import { Settings } from "./settings.js";
import { copy, curl, python } from "./snippets.js";
import { Prompt } from "./template.js";

const STATES = { queued: "Waiting for a worker.", running: "Writing.", cancelled: "Cancelling." };

export class Generate {
  #models = new Map();
  #job = null; // that is followed now: {id, model, given, status, cancelled}

  constructor(pulse) {
    this.pulse = pulse;
    this.form = $("generate-form");
    this.start = $("generate-start");
    this.settings = new Settings($("generate-settings"), "generate");
    this.prompt = new Prompt();
    this.form.addEventListener("submit", (event) => (event.preventDefault(), this.#generate()));
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.matches("textarea")) this.#generate();
    });
    $("generate-cancel").addEventListener("click", () => this.#cancel());
    $("generate-curl").addEventListener("click", () => this.#show(curl));
    $("generate-python").addEventListener("click", () => this.#show(python));
    $("generate-model").addEventListener("change", () => this.#choose());
    pulse.addEventListener("change", () => this.#look());
  }

  offer(models) {
    this.#models = new Map(models.map((model) => [model.name, model]));
    fillSelect($("generate-model"), models);
    this.#choose();
  }

  #choose() {
    const model = this.#models.get($("generate-model").value);
    if (!model) return;
    this.prompt.offer(model.templates);
    this.#describe();
  }

  #describe() {
    const model = this.#models.get($("generate-model").value);
    if (model) say($("generate-model-hint"), aboutModel(model, this.pulse.workers(model.name)));
  }

  #request() {
    return { model: $("generate-model").value, ...this.prompt.read(), ...this.settings.read() };
  }

  async #generate() {
    if (isBusy(this.start)) return;
    clearProblems($("generate-notice"), this.form);
    this.#job = { id: null, model: $("generate-model").value, status: "queued", cancelled: false };
    try {
      const request = this.#request();
      this.#begin();
      this.#end(await run(request, this));
    } catch (problem) {
      say($("generate-status"), "Ready.");
      showProblem($("generate-notice"), problem, this.form);
    }
    this.#job = null;
    this.pulse.hurry(this, false);
    say($("generate-wait"), "");
    $("generate-story").removeAttribute("aria-busy");
    setBusy(this.start, $("generate-cancel"), false);
  }

  #begin() {
    this.#job.given = this.prompt.text;
    say($("generate-status"), "Sending.");
    setBusy(this.start, $("generate-cancel"), true);
  }

  // What `run` tells.

  taken({ id, status }) {
    this.#job.id = id;
    $("generate-given").textContent = this.#job.given;
    $("generate-text").textContent = "";
    $("generate-facts").hidden = true;
    $("generate-story").setAttribute("aria-busy", "true");
    this.status(status);
    this.pulse.hurry(this);
    if (this.#job.cancelled) this.#cancel();
  }

  status(status) {
    this.#job.status = status;
    if (status === "running") this.#job.since = performance.now();
    this.#look();
  }

  lost() {
    say($("generate-status"), "The connection broke; trying again.");
  }

  text(text, tokens) {
    $("generate-text").textContent = text;
    const seconds = (performance.now() - this.#job.since) / 1000;
    say($("generate-wait"), tokens && seconds > 0.2 ? `${tokens} tokens, ${rate(tokens / seconds)} a second` : "");
  }

  /** Says how the job stands; while it waits, how long it will, or why. */
  async #look() {
    this.#describe();
    const job = this.#job;
    if (!job?.id) return;
    const alone = this.pulse.workers(job.model) === 0; // what ran on a dead worker still seems to run
    const place = $("generate-notice");
    if (alone && !place.hasChildNodes()) {
      notify(place, NO_WORKER.title(job.model), NO_WORKER.detail, { kind: "warn" });
    } else if (!alone && place.querySelector(".warn")) {
      place.replaceChildren();
    }
    const state = job.cancelled ? "cancelled" : alone ? "queued" : job.status;
    say($("generate-status"), STATES[state]);
    if (job.status !== "queued") return;
    const { queue } = await getJson(`jobs/${job.id}`).catch(() => ({}));
    if (this.#job === job && job.status === "queued") say($("generate-wait"), queue ? waiting(queue) : "");
  }

  async #cancel() {
    this.#job.cancelled = true;
    say($("generate-status"), STATES.cancelled);
    if (!this.#job.id) return;
    try {
      await cancel(this.#job.id);
    } catch (problem) {
      if (this.#job) this.#job.cancelled = false;
      showProblem($("generate-notice"), problem);
    }
  }

  #end({ job, text, first, total }) {
    $("generate-text").textContent = text;
    say($("generate-status"), ending(job));
    $("generate-notice").replaceChildren();
    if (job.error) notify($("generate-notice"), `The job failed: ${job.error.code}`, job.error.message);
    const perSecond = speed(job);
    $("generate-facts").replaceChildren(
      ...facts([
        ["First token", first === null ? null : time(first)],
        ["Whole text", time(total)],
        ["Tokens/s", perSecond && rate(perSecond)],
        ["Tokens", job.usage && `${number(job.usage.prompt_tokens)} + ${number(job.usage.completion_tokens)}`],
        ["Seed", this.#seed(job.seed)],
        ["Made by", fingerprint(job)],
      ]),
    );
    $("generate-facts").hidden = false;
  }

  #seed(seed) {
    const reuse = () => {
      this.settings.input("seed").value = seed;
      this.settings.input("seed").focus();
    };
    return el("span", {}, `${seed} `, el("button", { type: "button", class: "plain", onclick: reuse }, "Use again"));
  }

  async #show(write) {
    clearProblems($("generate-notice"), this.form);
    let snippet;
    try {
      snippet = write(this.#request());
    } catch (problem) {
      showProblem($("generate-notice"), problem, this.form);
      return;
    }
    $("generate-snippet").textContent = snippet;
    $("generate-code").hidden = false;
    const copied = await copy(snippet);
    if (!copied) getSelection().selectAllChildren($("generate-snippet"));
    const how = copied ? "Copied." : "Copy it from here.";
    say($("generate-code-status"), `${how} It reads the key from SLM_API_KEY.`);
  }
}

function waiting({ ahead, estimated_wait_seconds: seconds }) {
  const jobs = ahead ? `${count(ahead, "job")} ahead` : "It is next";
  return seconds === null ? `${jobs}.` : `${jobs}, ${about(seconds)}.`;
}
