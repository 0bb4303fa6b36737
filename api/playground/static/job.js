// One job from its request to its end, with the times that a person in front of it sees.

import { count, el } from "./dom.js";
import { follow } from "./follow.js";
import { create, postJson } from "./http.js";

/**
 * Submits `request` and follows it. `on` is told: `taken(job)`, `status(status)`, `text(text, tokens)`
 * (all of the text so far), `lost()` when the connection breaks.
 *
 * Returns `{job, text, first, total}`: ms until its first token was here (null: there was none), and
 * until its end. Raises Problem.
 */
export async function run(request, on = {}) {
  const began = performance.now();
  const json = { ...request, stream: true };
  const taken = await create("jobs", { json, what: JSON.stringify(json) });
  on.taken?.(taken);
  let text = "";
  let first = null;
  let job = taken;
  for await (const { type, data, id } of follow(taken.id, on.lost)) {
    if (type === "status") {
      on.status?.(data.status);
    } else if (type === "restart") {
      text = "";
      on.text?.(text, 0);
    } else if (type === "token") {
      first ??= performance.now() - began;
      text += data.text;
      on.text?.(text, Number(id.split(":")[1]) || 0);
    } else if (type === "done") {
      job = data;
    }
  }
  return { job, text: job.outputs[0]?.text ?? text, first, total: performance.now() - began };
}

export const cancel = (id) => postJson(`jobs/${id}/cancel`);

/** Tokens per second while it ran, by the service's clock; null where it did not. */
export function speed({ started_at, finished_at, usage }) {
  const seconds = (Date.parse(finished_at) - Date.parse(started_at)) / 1000;
  return usage && seconds > 0 ? usage.completion_tokens / seconds : null;
}

/** What made the text: the same seed gives the same text for the same one. */
export const fingerprint = (job) => job.fingerprint && el("span", { class: "hint" }, job.fingerprint);

/** How a job ended, in a sentence. */
export function ending({ status, outputs, usage }) {
  const tokens = usage?.completion_tokens ?? 0;
  const many = count(tokens, "token");
  if (status === "cancelled") return tokens ? `Cancelled after ${many}; the text so far is kept.` : "Cancelled.";
  if (status === "expired") return "Expired: it waited longer than it may.";
  if (status === "failed") return "Failed.";
  const stopped = outputs[0]?.finish_reason === "stop" ? "the text came to its end" : "the length is reached";
  return `Done: ${many}, ${stopped}.`;
}
