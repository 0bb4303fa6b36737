// A model's templates: prompts with variables, which the service fills in. Here they are shown.

import { $, el } from "./dom.js";

const PARTS = /\{\{|\}\}|\{([a-z][a-z0-9_]*)\}/g;

/** A template's text with the values in place, as the service renders it; `…` where there is none. */
export const render = ({ text }, values) =>
  text.replace(PARTS, (part, name) => (name ? values[name] || "…" : part[0]));

/** The choice between a prompt of one's own and a model's templates, and the fields of either. */
export class Prompt {
  constructor() {
    this.templates = {};
    this.choice = $("generate-template");
    this.choice.addEventListener("change", () => this.#choose());
    $("generate-variable-fields").addEventListener("input", () => this.#preview());
  }

  /** Offers the templates of a model; one of the same name stays chosen. */
  offer(templates) {
    const before = this.choice.value;
    this.templates = templates;
    const names = Object.keys(templates);
    this.choice.replaceChildren(
      el("option", { value: "" }, "My own prompt"),
      ...names.map((name) => el("option", { value: name }, `Template ${name}`)),
    );
    this.choice.disabled = !names.length;
    this.choice.value = names.includes(before) ? before : "";
    this.#choose();
  }

  /** The part of a request that says what to continue. */
  read() {
    const template = this.choice.value;
    return template ? { template, variables: this.#values() } : { prompt: $("generate-prompt").value };
  }

  /** The text that will be continued. */
  get text() {
    const template = this.templates[this.choice.value];
    return template ? render(template, this.#values()) : $("generate-prompt").value;
  }

  #values() {
    const inputs = $("generate-variable-fields").querySelectorAll("input");
    return Object.fromEntries([...inputs].filter(({ value }) => value).map(({ name, value }) => [name, value]));
  }

  #choose() {
    const template = this.templates[this.choice.value];
    $("generate-prompt-field").hidden = Boolean(template);
    $("generate-variables").hidden = !template;
    const variables = Object.entries(template?.variables ?? {});
    $("generate-variable-fields").replaceChildren(...variables.map(([name, about]) => variable(name, about)));
    this.#preview();
  }

  #preview() {
    $("generate-preview").textContent = this.text;
  }
}

function variable(name, about) {
  const id = `generate-variable-${name}`;
  return el(
    "div",
    { class: "field", "data-pointer": `/variables/${name}` },
    el("label", { for: id }, name),
    el("input", { id, name, type: "text", autocomplete: "off", "aria-describedby": `${id}-hint` }),
    el("p", { class: "hint", id: `${id}-hint` }, about),
  );
}
