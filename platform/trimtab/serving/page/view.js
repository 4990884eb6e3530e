/** What the views share: a form that runs and stops, a line for the shell, a link that fills the form again. */

import { key } from "./key.js";
import { curlLine, stream } from "./request.js";

/**
 * A view has an `offer`, the name under which a listed model tells that it belongs there, and fields that links fill;
 * it tells how it describes a model, what it asks, and what it runs: describe, path, body, clear, streams.
 */
export class View {
  #running = null;
  #listed = [];

  /** `prefix`: what the ids of its elements begin with. `askForKey`: called where the server wants a key. */
  constructor({ prefix, offer, fields, sliders, askForKey }) {
    Object.assign(this, { prefix, offer, fields, sliders, askForKey });
    this.form = this.at("model").form;
    this.#listen();
  }

  /** The element of this view that has an id. */
  at(id) {
    return document.getElementById(this.prefix + id);
  }

  /** What the server told of the chosen model. */
  get chosen() {
    return this.#listed.find((one) => one.id === this.at("model").value)?.[this.offer];
  }

  /** A number field's value, null where it is empty. */
  number(id) {
    return this.at(id).value === "" ? null : Number(this.at(id).value);
  }

  /** Offer those of the listed models that belong here; whether there are any. */
  list(models) {
    this.#listed = models.filter((one) => one[this.offer]);
    this.at("model").replaceChildren(...this.#listed.map(({ id }) => new Option(id, id)));
    this.at("run").disabled = !this.#listed.length;
    this.#choose();
    return this.#listed.length > 0;
  }

  /** The fields as a link has them; run=1 presses Run. */
  fill(given) {
    for (const id of this.fields) if (given.has(id)) this.at(id).value = given.get(id);
    this.#choose();
    this.sliders.fill(given);
    this.show();
    if (given.get("run") === "1") this.form.requestSubmit();
  }

  /** What a link says of this view. */
  inLink() {
    return [["run", "1"], ...this.fields.map((id) => [id, this.at(id).value]), ...this.sliders.inLink()];
  }

  /** The line for the shell follows the form. */
  show() {
    const url = new URL(this.path(), location.origin + location.pathname).href;
    this.at("curl").textContent = curlLine(url, this.body(), key() !== null);
    this.at("copied").textContent = "";
  }

  stop() {
    this.#running?.abort();
  }

  say(state) {
    this.at("state").textContent = state;
  }

  /** Follow one stream to its end; how it ended. */
  async follow(body, { take, fail }, signal) {
    try {
      for await (const chunk of stream(this.path(), body, { key: key(), signal })) take(chunk);
    } catch (error) {
      if (error.name === "AbortError") return "Stopped";
      fail(error);
      if (error.status === 401) this.askForKey();
      return "Failed";
    }
    return "Done";
  }

  async #run() {
    if (this.#running) return;
    this.#running = new AbortController();
    this.#busy(true);
    this.say("Running");
    this.clear();
    const ends = await Promise.all(this.streams(this.#running.signal));
    this.#running = null;
    this.#busy(false);
    this.say(["Failed", "Stopped", "Done"].find((one) => ends.includes(one)));
  }

  #busy(yes) {
    this.at("run").disabled = yes;
    this.at("stop").disabled = !yes;
  }

  /** Another model: its description, its sliders. */
  #choose() {
    if (!this.chosen) return;
    this.describe(this.chosen);
    this.sliders.build(this.chosen.ranges ?? {});
    this.show();
  }

  async #copy(text, shown) {
    try {
      await navigator.clipboard.writeText(text);
      this.at("copied").textContent = "Copied";
    } catch {
      this.at("copied").textContent = shown ? "Selected, copy it by hand" : text;
      if (shown) getSelection().selectAllChildren(shown);
    }
  }

  #link() {
    return `${location.origin}${location.pathname}#${new URLSearchParams(this.inLink())}`;
  }

  #listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#run();
    });
    this.form.addEventListener("input", () => this.show());
    this.form.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    this.at("model").addEventListener("change", () => this.#choose());
    this.at("stop").addEventListener("click", () => this.stop());
    this.at("copy-curl").addEventListener("click", () => this.#copy(this.at("curl").textContent, this.at("curl")));
    this.at("copy-link").addEventListener("click", () => this.#copy(this.#link(), null));
  }
}
