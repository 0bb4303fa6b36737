// The second tab: one prompt and one seed on several models, and what each takes for it.

import { $, el, facts, isBusy, rate, say, setBusy, time } from "./dom.js";
import { cancel, ending, fingerprint, run, speed } from "./job.js";
import { NO_WORKER, traits } from "./models.js";
import { clearProblems, notify, showProblem } from "./problems.js";
import { Settings, drawnSeed } from "./settings.js";

export class Compare {
  #models = [];
  #job = null; // the one that runs now
  #stopped = false;

  constructor(pulse) {
    this.pulse = pulse;
    this.form = $("compare-form");
    this.start = $("compare-start");
    this.settings = new Settings($("compare-settings"), "compare");
    this.form.addEventListener("submit", (event) => (event.preventDefault(), this.#compare()));
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.matches("textarea")) this.#compare();
    });
    $("compare-cancel").addEventListener("click", () => this.#cancel());
  }

  /** From what knows least to what is fastest, so that each shows what was added. */
  offer(models) {
    const rank = ({ trained, kv_cache }) => 2 * trained + kv_cache;
    this.#models = models.toSorted((one, other) => rank(one) - rank(other));
    const before = this.#chosen().map(({ name }) => name);
    $("compare-models").replaceChildren(
      ...this.#models.map((model) => choice(model, before.includes(model.name) || (!before.length && model.workers > 0))),
    );
  }

  #chosen() {
    return this.#models.filter(({ name }) => $(`compare-with-${name}`)?.checked);
  }

  async #compare() {
    if (isBusy(this.start)) return;
    clearProblems($("compare-notice"), this.form);
    const models = this.#chosen();
    if (!models.length) {
      notify($("compare-notice"), "No model is chosen", "Choose at least one of the models.");
      return;
    }
    try {
      const request = { prompt: $("compare-prompt").value, ...this.settings.read() };
      request.seed ??= drawnSeed();
      setBusy(this.start, $("compare-cancel"), true);
      await this.#all(models, request);
    } catch (problem) {
      say($("compare-status"), "");
      showProblem($("compare-notice"), problem, this.form);
    }
    setBusy(this.start, $("compare-cancel"), false);
  }

  async #all(models, request) {
    this.#stopped = false;
    const cards = models.map((model) => new Card(model));
    $("compare-cards").replaceChildren(...cards.map(({ root }) => root));
    $("compare-times").hidden = true;
    try {
      for (const card of cards) {
        if (!this.#stopped) await this.#one(card, request);
        drawBars(cards);
      }
    } finally {
      cards.filter(({ begun }) => !begun).forEach((card) => card.say("Not run."));
    }
    say($("compare-status"), `${this.#stopped ? "Cancelled" : "Done"}, with seed ${request.seed}.`);
  }

  async #one(card, request) {
    const { name } = card.model;
    card.begun = true;
    say($("compare-status"), `Running ${name}.`);
    const taken = ({ id }) => ((this.#job = id), this.#stopped && this.#end());
    const status = (status) => this.#tell(card, status);
    const text = (text) => card.write(text);
    this.pulse.hurry(this);
    const look = () => this.#tell(card, card.status);
    this.pulse.addEventListener("change", look);
    try {
      card.doing = "Getting ready.";
      await run({ ...request, model: name, max_tokens: 1 }, { taken, status });
      card.doing = "Writing.";
      if (this.#stopped) card.say("Not run.");
      else card.show(await run({ ...request, model: name }, { taken, status, text }));
    } catch (problem) {
      card.say(`${problem.title}. ${problem.detail ?? ""}`);
      if (!problem.status || ["invalid_request", "unauthorised"].includes(problem.code)) {
        this.#stopped = true; // the others would do no better
        throw problem;
      }
    } finally {
      this.#job = null;
      this.pulse.removeEventListener("change", look);
      this.pulse.hurry(this, false);
    }
  }

  #tell(card, status) {
    card.status = status;
    const alone = this.pulse.workers(card.model.name) === 0;
    if (alone) notify($("compare-notice"), NO_WORKER.title(card.model.name), NO_WORKER.detail, { kind: "warn" });
    else $("compare-notice").querySelector(".warn")?.remove();
    card.say(status === "running" && !alone ? card.doing : "Waiting for a worker.");
  }

  #cancel() {
    this.#stopped = true;
    say($("compare-status"), "Cancelling.");
    if (this.#job) this.#end();
  }

  #end() {
    cancel(this.#job).catch((problem) => showProblem($("compare-notice"), problem));
  }
}

function choice(model, checked) {
  const id = `compare-with-${model.name}`;
  const hint = model.workers ? traits(model) : `${traits(model)}, no worker`;
  return el(
    "div",
    { class: "check" },
    el("input", { type: "checkbox", id, checked, "aria-describedby": `${id}-hint` }),
    el("span", {}, el("label", { for: id }, model.name), el("span", { class: "hint", id: `${id}-hint` }, hint)),
  );
}

/** What one model made of the prompt. */
class Card {
  status = "queued";
  doing = ""; // while it runs
  begun = false;
  times = null; // {first, total}, in ms

  constructor(model) {
    this.model = model;
    this.state = el("p", { class: "state" }, "Its turn comes.");
    this.facts = el("dl", { class: "facts" });
    this.text = el("span");
    this.root = el(
      "article",
      { class: "card", "aria-label": model.name },
      el("h2", {}, model.name),
      el("p", { class: "hint" }, traits(model)),
      this.state,
      this.facts,
      el("p", { class: "story" }, el("span", { class: "given", "aria-hidden": "true" }, "…"), this.text),
    );
  }

  say(text) {
    say(this.state, text);
  }

  write(text) {
    this.text.textContent = text;
  }

  show({ job, text, first, total }) {
    this.write(text);
    this.say(job.error ? `Failed: ${job.error.message}` : ending(job));
    const perSecond = speed(job);
    this.times = { first: first ?? total, total };
    this.facts.replaceChildren(
      ...facts([
        ["First token", first === null ? null : time(first)],
        ["Whole text", time(total)],
        ["Tokens/s", perSecond && rate(perSecond)],
        ["Made by", fingerprint(job)],
      ]),
    );
  }
}

/** Bars from zero, on one scale; the numbers are on the cards, too. */
function drawBars(cards) {
  const done = cards.filter(({ times }) => times);
  const longest = Math.max(...done.map(({ times }) => times.total));
  $("compare-times").hidden = !done.length;
  $("compare-bars").replaceChildren(
    ...done.map(({ model, times: { first, total } }) => {
      const bars = [first, total - first].map(() => el("span", {}));
      [first, total - first].forEach((ms, at) => (bars[at].style.width = `${(100 * ms) / longest}%`));
      return el(
        "div",
        { class: "row" },
        el("span", { class: "name" }, model.name),
        el("span", { class: "track", "aria-hidden": "true" }, ...bars),
        el("span", { class: "value" }, `${time(first)} · ${time(total)}`),
      );
    }),
  );
}
