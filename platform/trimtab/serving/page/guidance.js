/** Sliders for what an ensemble lets one change of its guide. */

import { element } from "./card.js";

export class Guidance {
  constructor(root) {
    this.root = root;
  }

  /** A slider for each of the ranges, {name: {min, max, default, step?}}. */
  build(ranges) {
    this.root.replaceChildren(...Object.entries(ranges).map(slider));
    this.root.hidden = !Object.keys(ranges).length;
  }

  /** What the sliders say, by name. */
  values() {
    return Object.fromEntries(this.#sliders().map((one) => [one.name, Number(one.value)]));
  }

  /** Set those that are named. */
  fill(values) {
    for (const one of this.#sliders()) {
      if (one.name in values) put(one, values[one.name]);
    }
  }

  #sliders() {
    return [...this.root.querySelectorAll("input")];
  }
}

/** The default is kept as it is, on no grid; what a hand moves to has three digits. */
function slider([name, { min, max, default: usual, step }]) {
  const input = element("input", "");
  Object.assign(input, { type: "range", id: `guidance-${name}`, name, min, max, step: step ?? "any" });
  const value = element("output", "");
  const label = element("label", "", `Guidance: ${name}`, value);
  label.htmlFor = value.htmlFor = input.id;
  input.addEventListener("input", () => put(input, Number(Number(input.value).toPrecision(3))));
  const made = element("div", "slider", label, input);
  put(input, usual, value);
  return made;
}

function put(input, number, shown = input.labels[0].querySelector("output")) {
  input.value = number;
  shown.textContent = input.value;
}
