// A job as it happens: server-sent events over fetch, since EventSource sends no Authorization.

import { pause } from "./dom.js";
import { broken, send } from "./http.js";

/**
 * The events of a job, as `{type, data, id}`, until `done`. A lost connection is made again and goes
 * on where it was; `onLost` is told. After a `restart` all text so far is void. Raises Problem.
 */
export async function* follow(id, onLost) {
  let last = "";
  for (let failures = 0, begun = false; ; failures++) {
    try {
      const headers = last ? { "Last-Event-ID": last } : {};
      const response = await send(`jobs/${id}/stream`, { headers });
      if (begun && !last) yield { type: "restart", data: {} }; // it tells everything again
      begun = true;
      for await (const event of parse(response.body)) {
        failures = 0;
        if (event.id) last = event.id;
        if (event.type === "restart") last = ""; // places in the void text mean nothing now
        yield event;
        if (event.type === "done") return;
      }
    } catch (error) {
      const problem = broken(error);
      if (!problem.passes || failures > 20) throw problem;
    }
    onLost?.();
    await pause(Math.min(250 * 2 ** failures, 5000));
  }
}

async function* parse(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let event = { type: "message", lines: [], id: "" };
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (buffer + value).split(/\r\n|\n|\r(?!$)/);
      buffer = lines.pop();
      for (const line of lines) {
        if (line) {
          take(event, line);
        } else {
          if (event.lines.length) {
            yield { type: event.type, data: JSON.parse(event.lines.join("\n")), id: event.id };
          }
          event = { type: "message", lines: [], id: "" };
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function take(event, line) {
  const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
  if (name === "event") event.type = value;
  else if (name === "data") event.lines.push(value);
  else if (name === "id") event.id = value;
}
