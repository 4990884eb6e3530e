/** The turns of a debate as they are spoken, and between them how the panel of judges leans. */

import { element } from "./card.js";
import { count, Meter } from "./meter.js";

export class Transcript {
  #spoken = new Map();

  constructor(root) {
    this.root = root;
  }

  start() {
    this.root.replaceChildren();
    this.#spoken.clear();
  }

  /** An event of the debate. */
  take(event) {
    if (event.event === "begin") this.#begin(event);
    if (event.event === "turn") this.#turn(event);
    if (event.event === "delta") this.#spoken.get(event.speaker).add(event.text);
    if (event.event === "said") this.#said(event);
    if (event.event === "judged") this.#judged(event);
  }

  /** No more comes: turns that are not whole stay as they are, and say so. */
  end() {
    for (const turn of this.#spoken.values()) turn.breakOff();
    this.#spoken.clear();
  }

  #begin({ answers, speakers }) {
    Object.assign(this, { answers, speakers });
    this.root.dataset.columns = new Set(speakers.map(({ answer }) => answer)).size;
  }

  #turn({ speaker, round }) {
    const turn = new Turn(this.speakers[speaker], round);
    this.#spoken.set(speaker, turn);
    this.root.append(turn.root);
  }

  #said(event) {
    this.#spoken.get(event.speaker).end(event);
    this.#spoken.delete(event.speaker);
  }

  #judged({ after, panel }) {
    const when = after ? `panel after ${count(after, "turn")}` : "panel before the first turn";
    const beat = new Meter(when, this.answers, "beat");
    beat.put(panel);
    this.root.append(beat.root);
  }
}

class Turn {
  constructor({ name, answer }, round) {
    this.text = element("p", "said");
    this.told = element("p", "hint");
    const title = element("h2", "", name, element("span", "", `round ${round + 1}`));
    this.root = element("article", "turn", title, this.text, this.told);
    this.root.ariaLabel = `${name}, round ${round + 1}`;
    this.root.ariaBusy = "true";
    this.root.dataset.side = answer ?? "none";
  }

  add(text) {
    this.text.append(this.text.textContent ? text : text.trimStart());
  }

  /** The turn as it stands now, which may be less than what was spoken. */
  end({ text, quotes, tokens, cut }) {
    this.text.replaceChildren(...partsOf(text, quotes ?? []).map(shown));
    const told = [count(tokens, "token"), cut && "cut to the limit of words", ...quotesText(quotes ?? [])];
    this.#close(told.filter(Boolean).join(" · "));
  }

  breakOff() {
    this.#close("broken off here");
  }

  #close(told) {
    this.told.textContent = told;
    this.root.ariaBusy = "false";
  }
}

/** A text in parts, each {text, quote}, where quote is null outside of quotes; quotes that overlap another are left. */
export function partsOf(text, quotes) {
  const found = [];
  for (const quote of quotes) {
    const free = (at) => found.every(({ start, end }) => at >= end || at + quote.text.length <= start);
    let start = text.indexOf(quote.text);
    while (start >= 0 && !free(start)) start = text.indexOf(quote.text, start + 1);
    if (quote.text && start >= 0) found.push({ start, end: start + quote.text.length, quote });
  }
  found.sort((one, other) => one.start - other.start);
  const parts = [];
  let at = 0;
  for (const { start, end, quote } of found) {
    parts.push({ text: text.slice(at, start), quote: null }, { text: text.slice(start, end), quote });
    at = end;
  }
  return [...parts, { text: text.slice(at), quote: null }].filter((one) => one.text);
}

function shown({ text, quote }) {
  if (!quote) return text;
  const made = quote.verified ? element("mark", "", text) : element("s", "", text);
  made.title = quote.verified ? "Stands in the source, word for word" : "Does not stand in the source";
  return made;
}

/** How many quotes stand in the source, and how many do not. */
function quotesText(quotes) {
  const verified = quotes.filter((one) => one.verified).length;
  const [there, not] = [verified, quotes.length - verified].map((number) => number && count(number, "quote"));
  return [there && `${there} in the source`, not && `${not} not in the source`];
}
