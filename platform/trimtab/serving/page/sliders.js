/** Sliders for the numbers that a model lets one change. */

import { element } from "./card.js";

export class Sliders {
  /** `named`: what a range's name is called beside its slider. */
  constructor(root, named) {
    this.root = root;
    this.named = named;
  }

  /** A slider for each of the ranges, {name: {min, max, default, step?}}. */
  build(ranges) {
    this.root.replaceChildren(...Object.entries(ranges).map((one) => this.#slider(...one)));
    this.root.hidden = !Object.keys(ranges).length;
  }

  /** What the sliders say, by name. */
  values() {
    return Object.fromEntries(this.#inputs().map((one) => [one.name, Number(one.value)]));
  }

  /** Set those that a link names, as they are called there. */
  fill(given) {
    for (const one of this.#inputs()) {
      if (given.has(this.#inLinks(one.name))) put(one, given.get(this.#inLinks(one.name)));
    }
  }

  /** What the sliders say, as links call it. */
  inLink() {
    return Object.entries(this.values()).map(([name, value]) => [this.#inLinks(name), value]);
  }

  #inLinks(name) {
    return `${this.root.id}_${name}`;
  }

  #inputs() {
    return [...this.root.querySelectorAll("input")];
  }

  /** The default is kept as it is, on no grid; what a hand moves to has three digits. */
  #slider(name, { min, max, default: usual, step }) {
    const input = element("input", "");
    Object.assign(input, { type: "range", id: `${this.root.id}-${name}`, name, min, max, step: step ?? "any" });
    const value = element("output", "");
    const label = element("label", "", this.named(name), value);
    label.htmlFor = value.htmlFor = input.id;
    input.addEventListener("input", () => put(input, Number(Number(input.value).toPrecision(3))));
    const made = element("div", "slider", label, input);
    put(input, usual, value);
    return made;
  }
}

function put(input, number, shown = input.labels[0].querySelector("output")) {
  input.value = number;
  shown.textContent = input.value;
}
