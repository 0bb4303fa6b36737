// What people are told about the models of `GET /models`.

import { count, el } from "./dom.js";

/** What sets a model apart from the others. */
export function traits({ trained, kv_cache }) {
  return `${trained ? "trained" : "untrained"}, ${kv_cache ? "with" : "without"} KV cache`;
}

export function aboutModel(model, workers) {
  const alive = workers === null ? model.workers : workers;
  const hosts = alive ? count(alive, "worker") : "no worker";
  return `${traits(model)}, ${model.context_length} tokens in all, ${hosts}`;
}

/** Fills a `<select>`; what was chosen stays, if it is still there. */
export function fillSelect(select, models) {
  const before = select.value || models.find((model) => model.default)?.name;
  select.replaceChildren(...models.map(({ name }) => el("option", { value: name }, name)));
  if (models.some(({ name }) => name === before)) select.value = before;
}

export const NO_WORKER = {
  title: (model) => `No worker is alive for ${model}`,
  detail:
    "The job keeps its place and runs as soon as one is; or cancel it. slm up starts dead workers again " +
    "by itself. Elsewhere start one with python -m celery -A worker.app worker, and see its log.",
};
