// A line of recent values, as a picture without words; its numbers stand beside it.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 120;
const HEIGHT = 28;

function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** The last `WIDTH` values, one a second, the newest at the right; `top` is the least upper end. */
export class Spark {
  #values = [];

  constructor(top) {
    this.top = top;
    this.root = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" });
    this.area = svg("path", { class: "area" });
    this.line = svg("path", { class: "line" });
    this.root.append(this.area, this.line);
  }

  push(value) {
    this.#values = [...this.#values, value].slice(-WIDTH);
    const top = Math.max(this.top, ...this.#values);
    const left = WIDTH - this.#values.length;
    const points = this.#values.map((v, at) => `${left + at + 0.5} ${HEIGHT - 1 - (v / top) * (HEIGHT - 3)}`);
    const line = points.join("L");
    this.line.setAttribute("d", `M${line}`);
    this.area.setAttribute("d", `M${left + 0.5} ${HEIGHT}L${line}L${WIDTH - 0.5} ${HEIGHT}Z`);
  }
}
