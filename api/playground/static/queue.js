// The fourth tab: how the queue of each model stands, second by second.

import { $, about, count, el, number, rate, say } from "./dom.js";
import { traits } from "./models.js";
import { Spark } from "./spark.js";

export class Queue {
  #models = [];
  #cards = new Map();

  constructor(pulse) {
    this.pulse = pulse;
    pulse.addEventListener("change", () => this.#show());
  }

  offer(models) {
    this.#models = models;
    this.#cards = new Map(models.map((model) => [model.name, new Card(model)]));
    $("queue-models").replaceChildren(...[...this.#cards.values()].map(({ root }) => root));
    this.#show();
  }

  /** While somebody looks at it. */
  watch(wanted) {
    this.pulse.hurry(this, wanted);
  }

  #show() {
    const { problem, queues } = this.pulse;
    if (problem) return; // the page tells of it
    for (const [name, card] of this.#cards) if (queues.has(name)) card.show(queues.get(name));
  }
}

class Card {
  constructor(model) {
    this.waiting = new Figure("Waiting", 4);
    this.slots = new Figure("Slots in use", 1);
    this.speed = new Figure("Tokens/s", 100);
    this.workers = el("span", {});
    this.root = el(
      "article",
      { class: "card queue", "aria-label": model.name },
      el("h2", {}, model.name),
      el("p", { class: "hint" }, `${traits(model)}, `, this.workers),
      el("dl", { class: "figures" }, this.waiting.root, this.slots.root, this.speed.root),
    );
  }

  show(queue) {
    const { waiting, rows_waiting, running, rows_running, workers, slots, slots_in_use } = queue;
    say(this.workers, workers ? count(workers, "worker") : "no worker");
    this.root.classList.toggle("alone", !workers);
    const wait = queue.estimated_wait_seconds;
    const soon = wait && waiting ? [about(wait)] : [];
    const waits = [...parts(waiting, rows_waiting), ...soon].join(", ") || "nothing";
    this.waiting.show(waiting + rows_waiting, number(waiting + rows_waiting), waits);
    const runs = parts(running, rows_running).join(", ") || "nothing";
    this.slots.show(slots_in_use, `${number(slots_in_use)} of ${number(slots)}`, `${runs} running`, slots);
    const busy = running + rows_running > 0;
    const measured = queue.tokens_per_second;
    const note = busy ? "while decoding" : measured ? `idle; ${rate(measured)} while decoding` : "idle";
    this.speed.show(busy ? measured : 0, busy ? rate(measured) : "0", note);
  }
}

const parts = (jobs, rows) => [jobs && count(jobs, "job"), rows && count(rows, "row")].filter(Boolean);

/** A number, what it is made of, and how it went. */
class Figure {
  constructor(name, top) {
    this.value = el("dd", { class: "value" });
    this.note = el("dd", { class: "hint" });
    this.spark = new Spark(top);
    this.root = el("div", {}, el("dt", {}, name), this.value, this.note, el("dd", {}, this.spark.root));
  }

  show(value, text, note, top = this.spark.top) {
    say(this.value, text);
    say(this.note, note);
    this.spark.top = Math.max(1, top);
    this.spark.push(value);
  }
}
