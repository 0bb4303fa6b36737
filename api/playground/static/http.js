// Requests to the service, beside whose page this runs, and its problem documents (RFC 9457).

import { key } from "./key.js";

/** What was refused or failed, as people are told it. `errors` are `{pointer, detail}`. */
export class Problem extends Error {
  constructor({ title, detail = "", code = "", status = 0, errors = [], rows = [], instance = "" }) {
    super(title);
    Object.assign(this, { title, detail, code, status, errors, rows });
    this.request = instance.replace("urn:slm:request:", "");
  }

  /** Whether the same may well be answered a moment later. */
  get passes() {
    return this.status === 0 || this.status >= 500;
  }
}

/** Told when the service does not take the key. */
export const refusals = new EventTarget();

/** Where the service is, for people who call it from elsewhere. */
export const base = () => new URL(".", document.baseURI).href.replace(/\/$/, "");

/** A successful response. Raises Problem; and AbortError, when `signal` says so. */
export async function send(path, { method = "GET", json, content, type, headers = {}, signal } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method,
      signal,
      body: json === undefined ? content : JSON.stringify(json),
      headers: {
        Authorization: `Bearer ${key()}`,
        ...(json !== undefined && { "Content-Type": "application/json" }),
        ...(type && { "Content-Type": type }),
        ...headers,
      },
    });
  } catch (error) {
    throw broken(error);
  }
  if (response.ok) return response;
  const problem = await read(response);
  if (problem.status === 401) refusals.dispatchEvent(new CustomEvent("refused"));
  throw problem;
}

export async function getJson(path, options) {
  const response = await send(path, options);
  try {
    return await response.json();
  } catch (error) {
    throw broken(error);
  }
}

const lost = new Map(); // the Idempotency-Key of what was sent, while nobody knows whether it came

/**
 * What a POST makes. Sent again after its reply was lost, it makes nothing more; `what` tells one body
 * from another. Raises Problem; and AbortError, when `signal` says so.
 */
export async function create(path, { what, ...options }) {
  const name = `${path} ${what}`;
  const idempotencyKey = lost.get(name) ?? crypto.getRandomValues(new Uint32Array(4)).join("-");
  lost.delete(name);
  try {
    return await getJson(path, { ...options, method: "POST", headers: { "Idempotency-Key": idempotencyKey } });
  } catch (problem) {
    const refused = problem.status >= 400 && problem.status < 500;
    if (!refused || problem.code === "idempotency_in_progress") lost.set(name, idempotencyKey);
    throw problem;
  }
}

export const postJson = (path, json, signal) => getJson(path, { method: "POST", json, signal });

/** What a lost connection is to people. */
export function broken(error) {
  if (error.name === "AbortError" || error instanceof Problem) return error;
  return new Problem({
    code: "unreachable",
    title: "The service does not answer",
    detail: `Nothing answers at ${base()}. See that it runs (slm up starts it), then try again.`,
  });
}

async function read(response) {
  const title = `The service answered ${response.status} ${response.statusText}`.trim();
  try {
    return new Problem({ title, ...(await response.json()), status: response.status });
  } catch {
    return new Problem({ title, status: response.status });
  }
}
