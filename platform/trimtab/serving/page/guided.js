/** The view of guidance: two streams that answer what is asked, the base alone and guided. */

import { Card } from "./card.js";
import { bodyOf, pathOf } from "./request.js";
import { Side } from "./side.js";
import { Sliders } from "./sliders.js";
import { View } from "./view.js";

export class Guided extends View {
  constructor(askForKey) {
    super({
      prefix: "",
      offer: "ensemble",
      fields: ["model", "prompt", "max-tokens", "temperature", "seed"],
      sliders: new Sliders(document.getElementById("guidance"), (name) => `Guidance: ${name}`),
      askForKey,
    });
    this.card = new Card(this.at("card"));
    this.base = new Side(this.at("base"), this.card);
    this.steered = new Side(this.at("steered"), this.card);
  }

  fill(given) {
    if (given.has("mode")) this.form.elements.mode.value = given.get("mode");
    super.fill(given);
  }

  inLink() {
    return [["mode", this.form.elements.mode.value], ...super.inLink()];
  }

  describe({ description, members: { base, helpers }, method }) {
    this.at("about").textContent = description ?? "";
    this.base.root.querySelector(".who").textContent = base;
    this.steered.root.querySelector(".who").textContent = [base, ...helpers].join(" + ") + `, ${method}`;
  }

  path() {
    return pathOf(this.#asked());
  }

  body() {
    return bodyOf(this.#asked(), { ...this.sliders.values(), trace: true });
  }

  clear() {
    this.base.start(null);
    this.steered.start(this.chosen.members.base);
  }

  streams(signal) {
    const [plain, guided] = [bodyOf(this.#asked(), { method: "none" }), this.body()];
    return [this.#stream(this.base, plain, signal), this.#stream(this.steered, guided, signal)];
  }

  /** Put away the card where it is shown, else stop. */
  escape() {
    if (this.card.shown) this.card.hide();
    else this.stop();
  }

  #stream(side, body, signal) {
    return this.follow(body, { take: (chunk) => side.take(chunk), fail: (error) => side.fail(error) }, signal);
  }

  #asked() {
    return {
      model: this.at("model").value,
      prompt: this.at("prompt").value,
      chat: this.form.elements.mode.value === "chat",
      maxTokens: this.number("max-tokens"),
      temperature: this.number("temperature"),
      seed: this.number("seed"),
    };
  }
}
