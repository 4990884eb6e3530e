/** One side of the comparison: its text, token by token, and the numbers below it. */

import { element } from "./card.js";
import { errorText } from "./request.js";
import { piecesOf, push, shade, signed, tokensOf, writer } from "./tokens.js";

export class Side {
  #pieces = new WeakMap();
  #waiting = [];

  constructor(root, card) {
    this.root = root;
    this.card = card;
    this.text = root.querySelector(".text");
    this.error = root.querySelector(".error");
    this.numbers = root.querySelector(".numbers");
    this.#listen();
    this.start(null);
  }

  /** Empty, with the clock at zero. `base`: the base's name on the guided side, null where it writes alone. */
  start(base) {
    this.base = base;
    this.#waiting = [];
    this.count = 0;
    this.pushed = { nats: 0, tokens: 0 };
    this.times = { start: performance.now(), first: null, last: null };
    this.usage = this.guidance = this.finish = null;
    this.text.replaceChildren();
    this.error.hidden = true;
    this.numbers.replaceChildren();
    this.card.hide();
  }

  /** A chunk of the stream. */
  take(chunk) {
    this.usage = chunk.usage ?? this.usage;
    this.guidance = chunk.guidance_usage ?? this.guidance;
    const choice = chunk.choices?.[0];
    if (choice) this.#takeChoice(choice);
    this.#tell();
  }

  fail(error) {
    this.error.textContent = errorText(error);
    this.error.hidden = false;
  }

  #takeChoice(choice) {
    this.finish = choice.finish_reason ?? this.finish;
    const text = choice.delta?.content ?? choice.text ?? "";
    const tokens = tokensOf(choice);
    if (text || tokens.length) {
      this.times.last = performance.now();
      this.times.first ??= this.times.last;
    }
    this.count += tokens.length;
    this.#waiting.push(...tokens);
    if (!text) return;
    for (const piece of piecesOf(text, this.#waiting)) this.#add(piece);
    this.#waiting = [];
  }

  #add(piece) {
    const span = element("span", "", piece.text);
    const nats = this.base === null ? null : push(piece, this.base);
    const { way, strength } = shade(nats);
    if (nats !== null) {
      this.pushed.nats += nats;
      this.pushed.tokens += piece.tokens.length;
    }
    span.dataset.way = way;
    span.style.setProperty("--strength", strength.toFixed(3));
    if (this.base !== null && ![null, "base", this.base].includes(writer(piece))) span.dataset.way = "helper";
    if (/\n/.test(piece.text)) span.dataset.breaks = "";
    span.tabIndex = this.text.childElementCount ? -1 : 0;
    this.#pieces.set(span, piece);
    this.text.append(span);
  }

  #tell() {
    const { start, first, last } = this.times;
    const rows = [];
    if (first !== null) rows.push(["first token", `${((first - start) / 1000).toFixed(2)} s`]);
    const speed = (1000 * (this.count - 1)) / (last - first);
    if (last > first && this.count > 1) rows.push(["speed", `${speed.toFixed(1)} tokens/s`]);
    if (this.pushed.tokens) rows.push(["mean push", `${signed(this.pushed.nats / this.pushed.tokens)} nats`]);
    if (this.finish) rows.push(["ended by", this.finish]);
    if (this.usage) rows.push(["tokens", `${this.usage.prompt_tokens} prompt, ${this.usage.completion_tokens} text`]);
    for (const [member, counts] of Object.entries(this.guidance ?? {})) rows.push([member, countsText(counts)]);
    const made = rows.map(([name, value]) => [element("dt", "", name), element("dd", "", value)]);
    this.numbers.replaceChildren(...made.map((pair) => element("div", "", ...pair)));
  }

  #listen() {
    const shown = ({ target }) => {
      const piece = this.#pieces.get(target);
      if (piece) this.card.show(target, piece, this.base);
    };
    this.text.addEventListener("pointerover", shown);
    this.text.addEventListener("focusin", shown);
    this.text.addEventListener("pointerleave", () => this.card.hide());
    this.text.addEventListener("focusout", () => this.card.hide());
    this.text.addEventListener("keydown", (event) => this.#walk(event));
  }

  /** One token is in the tab order; arrows, Home and End go to the others. */
  #walk(event) {
    const { target, key } = event;
    const { nextElementSibling: next, previousElementSibling: previous } = target;
    const { firstElementChild: Home, lastElementChild: End } = this.text;
    const goal = { ArrowRight: next, ArrowLeft: previous, Home, End }[key];
    if (!goal) return;
    event.preventDefault();
    target.tabIndex = -1;
    goal.tabIndex = 0;
    goal.focus();
  }
}

function countsText(counts) {
  if (typeof counts !== "object" || counts === null) return String(counts);
  return Object.entries(counts).map(([name, count]) => `${count} ${name}`).join(", ");
}
