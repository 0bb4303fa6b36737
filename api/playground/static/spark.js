// A line of recent values, as a picture without words; its numbers stand beside it.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 120; // seconds
const HEIGHT = 28;

function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** The values of the last `WIDTH` seconds, the newest at the right; `top` is the least upper end. */
export class Spark {
  #values = []; // [ms, value]

  constructor(top) {
    this.top = top;
    this.root = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" });
    this.area = svg("path", { class: "area" });
    this.line = svg("path", { class: "line" });
    this.root.append(this.area, this.line);
  }

  push(value) {
    const now = Date.now(); // goes on while the machine sleeps
    this.#values = [...this.#values, [now, value]].filter(([at]) => now - at < WIDTH * 1000);
    const top = Math.max(this.top, ...this.#values.map(([, v]) => v));
    const x = (at) => WIDTH - (now - at) / 1000;
    const points = this.#values.map(([at, v]) => `${x(at)} ${HEIGHT - 1 - (v / top) * (HEIGHT - 3)}`);
    const line = points.join("L");
    this.line.setAttribute("d", `M${line}`);
    this.area.setAttribute("d", `M${x(this.#values[0][0])} ${HEIGHT}L${line}L${WIDTH} ${HEIGHT}Z`);
  }
}
