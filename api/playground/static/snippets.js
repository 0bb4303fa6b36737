// A request as commands that do the same from elsewhere. They read the key from SLM_API_KEY, and
// never carry it.

import { base } from "./http.js";

/** For a POSIX shell. */
export function curl(request) {
  return [
    `curl -sS ${quoted(`${base()}/jobs`)}`,
    '-H "Authorization: Bearer $SLM_API_KEY"',
    "-H 'Content-Type: application/json' -H 'Prefer: wait=60'",
    `-d ${quoted(JSON.stringify(request))}`,
  ].join(" \\\n  ");
}

/** For `slm_client`, which comes with the service. */
export function python({ prompt, ...request }) {
  const names = Object.entries(request).map(([name, value]) => `${name}=${literal(value)}`);
  const lines = [...(prompt === undefined ? [] : [literal(prompt)]), ...names];
  return [
    "from slm_client import Client  # reads the key from SLM_API_KEY",
    "",
    `with Client(${literal(base())}) as client:`,
    "    job = client.generate(",
    ...lines.map((line) => `        ${line},`),
    "    )",
    "    print(job.text)",
    "",
  ].join("\n");
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// JSON's texts and numbers are Python's, too.
const literal = (value) => (value === null ? "None" : JSON.stringify(value));

/** Whether the clipboard took it; browsers lend theirs to pages of this machine or over TLS only. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
