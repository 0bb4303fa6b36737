// Elements, and numbers as people read them. Whatever is shown goes in as text, never as HTML.

export const $ = (id) => document.getElementById(id);

/** An element. `on…` attributes are listeners, `true` an attribute without a value. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** `<dt>` and `<dd>` of each pair that has a value. */
export function facts(pairs) {
  return pairs
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
}

/** Text that changes only where it differs: a live region says it again otherwise. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** For what is busy: a button that cannot be pressed now, yet keeps the focus. */
export function setBusy(start, cancel, busy) {
  start.setAttribute("aria-disabled", busy);
  if (!busy && document.activeElement === cancel) start.focus();
  cancel.hidden = !busy;
}

export const isBusy = (start) => start.getAttribute("aria-disabled") === "true";

export const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

export const count = (many, one, more = `${one}s`) => `${number(many)} ${many === 1 ? one : more}`;

export const rate = (value) => number(value, value < 10 ? 1 : 0);

/** A measured time, from milliseconds. */
export function time(ms) {
  if (ms < 999.5) return `${number(ms)} ms`;
  return ms < 60_000 ? `${number(ms / 1000, ms < 10_000 ? 2 : 1)} s` : `${number(ms / 60_000, 1)} min`;
}

/** An estimate, from seconds. */
export function about(seconds) {
  if (seconds < 1) return "less than a second";
  if (seconds < 90) return `about ${number(seconds)} s`;
  return seconds < 5400 ? `about ${number(seconds / 60)} min` : `about ${number(seconds / 3600, 1)} h`;
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
