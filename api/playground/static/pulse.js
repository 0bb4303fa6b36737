// How the queues stand: asked for again and again, while somebody looks, for every part of the page.

import { getJson } from "./http.js";
import { key } from "./key.js";

const QUICK_MS = 1000;
const CALM_MS = 5000;
const PATIENCE_MS = 10_000; // after which a service that hangs is as good as away

/** Tells `change` events; `queues` are `GET /queue`'s by model, `problem` why there are none now. */
export class Pulse extends EventTarget {
  queues = new Map();
  problem = null;
  #eager = new Set();
  #timer = 0;
  #asking = false;

  constructor() {
    super();
    document.addEventListener("visibilitychange", () => document.hidden || this.ask());
  }

  /** Asks every second as long as any `who` is in a hurry. */
  hurry(who, wanted = true) {
    const calm = !this.#eager.size;
    if (wanted) this.#eager.add(who);
    else this.#eager.delete(who);
    if (wanted && calm) this.ask();
  }

  /** Workers alive for a model; null: not known yet. */
  workers(model) {
    return this.queues.get(model)?.workers ?? null;
  }

  async ask() {
    clearTimeout(this.#timer);
    if (this.#asking || document.hidden || !key()) return;
    this.#asking = true;
    try {
      const { data } = await getJson("queue", { signal: AbortSignal.timeout(PATIENCE_MS) });
      this.queues = new Map(data.map((queue) => [queue.model, queue]));
      this.problem = null;
    } catch (problem) {
      this.problem = problem;
    }
    this.#asking = false;
    this.dispatchEvent(new CustomEvent("change"));
    if (this.problem?.status !== 401) {
      this.#timer = setTimeout(() => this.ask(), this.#eager.size ? QUICK_MS : CALM_MS);
    }
  }
}
