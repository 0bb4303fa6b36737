// The fields that say how to continue a prompt; the service checks what they hold.

import { $, el } from "./dom.js";
import { Problem } from "./http.js";

const FIELDS = [
  { name: "max_tokens", label: "Length", value: "200", step: 1, hint: "Tokens at most" },
  { name: "temperature", label: "Temperature", value: "0.8", step: 0.1, hint: "0: likeliest only" },
  { name: "top_k", label: "Top-k", value: "40", step: 1, hint: "From the k likeliest", empty: "all" },
  { name: "top_p", label: "Top-p", value: "1", step: 0.05, hint: "Up to this probability" },
  { name: "seed", label: "Seed", value: "", step: 1, hint: "Same seed, same text", empty: "drawn" },
];

export class Settings {
  /** Puts the fields into `place`; their ids begin with `prefix`. */
  constructor(place, prefix) {
    this.prefix = prefix;
    place.append(...FIELDS.map((field) => this.#field(field)));
  }

  input(name) {
    return $(`${this.prefix}-${name}`);
  }

  /** As a request has them. Raises Problem where no number was written. */
  read() {
    const errors = [];
    const values = {};
    for (const { name } of FIELDS) {
      const { value, validity, valueAsNumber } = this.input(name);
      if (validity.badInput) errors.push({ pointer: `/${name}`, detail: "Write a number." });
      else if (name === "seed" && value && Number.isInteger(valueAsNumber) && !Number.isSafeInteger(valueAsNumber))
        errors.push({ pointer: "/seed", detail: `Write a seed of at most ${Number.MAX_SAFE_INTEGER}.` });
      else if (value) values[name] = valueAsNumber;
      else if (name === "top_k") values.top_k = null;
    }
    if (errors.length) throw new Problem({ title: "Some fields hold no number", errors });
    return values;
  }

  #field({ name, label, value, step, hint, empty = value }) {
    const id = `${this.prefix}-${name}`;
    const mode = Number.isInteger(step) ? "numeric" : "decimal";
    return el(
      "div",
      { class: `field ${name}`, "data-pointer": `/${name}` },
      el("label", { for: id }, label),
      el("input", {
        id,
        type: "number",
        min: 0,
        step,
        value,
        placeholder: empty, // what it means to write nothing
        inputmode: mode,
        "aria-describedby": `${id}-hint`,
      }),
      el("p", { class: "hint", id: `${id}-hint` }, hint),
    );
  }
}

/** A whole number that every client reads exactly. */
export function drawnSeed() {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return (high >>> 11) * 2 ** 32 + low;
}
