// Problems where people see them: beside the field that is wrong, and above it in a notice.

import { $, el } from "./dom.js";

/** A notice in `place`: a title, what is wrong, and `more` elements. */
export function notify(place, title, detail = "", { kind = "bad", more = [] } = {}) {
  const text = detail && detail !== title ? el("p", {}, detail) : null;
  place.replaceChildren(
    el("div", { class: `notice ${kind}`, role: "alert" }, el("p", {}, el("strong", {}, title)), text, ...more),
  );
}

/** Shows a Problem in `place`, and its field errors beside the fields of `form`. */
export function showProblem(place, problem, form) {
  const shown = form ? markFields(form, problem.errors) : 0;
  const listed = (problem.rows ?? []).slice(0, 20).map(rowLine);
  const detail = shown && shown === problem.errors.length ? "See the marked fields." : problem.detail;
  const more = [
    listed.length ? el("ol", { class: "rows" }, ...listed) : null,
    problem.request ? el("p", { class: "hint" }, `Request ${problem.request}`) : null,
  ];
  notify(place, problem.title ?? "The page failed", detail ?? String(problem), { more: more.filter(Boolean) });
  form?.querySelector("[aria-invalid=true]")?.focus();
}

/** A line of a file, or a row of a batch, and what is wrong with it. */
export function rowLine({ line, custom_id, message, error }) {
  const name = line ? `Line ${line}` : `Row ${custom_id}`;
  return el("li", {}, el("strong", {}, name), ` ${message ?? error?.message ?? ""}`);
}

export function clearProblems(place, form) {
  place.replaceChildren();
  for (const field of form?.querySelectorAll("[data-pointer]") ?? []) mark(field, "");
}

/** Marks what the `errors` point at; returns how many of them point at a field. */
export function markFields(form, errors) {
  let found = 0;
  for (const { pointer, detail } of errors) {
    const fits = ({ dataset, hidden }) => !hidden && `${pointer}/`.startsWith(`${dataset.pointer}/`);
    const field = [...form.querySelectorAll("[data-pointer]")].filter(fits).at(-1); // the innermost
    if (!field) continue;
    mark(field, detail);
    found++;
  }
  return found;
}

function mark(field, detail) {
  const control = field.querySelector("input, textarea, select");
  if (!control) return;
  const id = `${control.id}-error`;
  if (!$(id)) {
    field.append(el("p", { class: "field-error", id }));
    const described = [control.getAttribute("aria-describedby"), id];
    control.setAttribute("aria-describedby", described.filter(Boolean).join(" "));
  }
  $(id).textContent = detail;
  control.setAttribute("aria-invalid", detail !== "");
}
