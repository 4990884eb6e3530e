/** The card that shows a token's numbers beside it. */

import { logprobText, percent, push, shade, signed, visible, writer } from "./tokens.js";

const GAP = 6;
const WAYS = { up: "pushed by the guide", down: "held back by the guide", "as-is": "hardly changed by the guide" };

export class Card {
  constructor(root) {
    this.root = root;
    this.target = null;
  }

  get shown() {
    return !this.root.hidden;
  }

  /** Show a piece's numbers at its element. `base`: the base's name, where a guide was at work. */
  show(target, piece, base) {
    this.hide();
    this.target = target;
    target.setAttribute("aria-describedby", this.root.id);
    this.root.replaceChildren(heading(piece, base), ...tables(piece.tokens));
    this.root.hidden = false;
    this.#place([...target.getClientRects()].at(-1));
  }

  hide() {
    this.target?.removeAttribute("aria-describedby");
    this.target = null;
    this.root.hidden = true;
  }

  #place(at) {
    const { width, height } = this.root.getBoundingClientRect();
    const left = Math.max(GAP, Math.min(at.left, document.documentElement.clientWidth - width - GAP));
    const below = at.bottom + GAP;
    const fits = below + height < document.documentElement.clientHeight || at.top - GAP - height < 0;
    const top = fits ? below : at.top - GAP - height;
    this.root.style.left = `${left + scrollX}px`;
    this.root.style.top = `${top + scrollY}px`;
  }
}

function heading(piece, base) {
  const line = element("p", "", element("b", "", visible(piece.text)));
  const pushed = base === null ? null : push(piece, base);
  const wrote = writer(piece);
  if (pushed !== null) {
    line.append(element("span", "", `${signed(pushed)} nats`), element("span", "", WAYS[shade(pushed).way]));
  } else if (wrote) {
    line.append(element("span", "", `written by ${wrote}`));
  }
  return line;
}

/** Of one token all that is known; of several that make one piece what the models said. */
function tables(tokens) {
  if (tokens.length === 1) return [...said(tokens[0]), ...likeliest(tokens[0])];
  return tokens.flatMap((one) => [element("p", "part", visible(one.token)), ...said(one)]);
}

function said(token) {
  const { trace } = token;
  if (!trace) return [];
  const found = [table(["model", "weight", "log-prob", "p"], models(token))];
  if (typeof trace.alpha === "number") found.push(element("p", "", `alpha ${trace.alpha.toFixed(2)} for this token`));
  return found;
}

function likeliest({ token, top_logprobs: top }) {
  if (!top?.length) return [];
  const rows = top.map((one) => [visible(one.token), logprobText(one.logprob), percent(one.logprob)]);
  return [table(["likeliest here", "log-prob", "p"], rows, top.findIndex((one) => one.token === token))];
}

function models({ logprob, trace }) {
  const numbers = (value) => [logprobText(value), percent(value)];
  const weight = (name) => trace.weights?.[name]?.toFixed(2).replace("-", "−") ?? "";
  const each = Object.entries(trace.said ?? {}).map(([name, value]) => [name, weight(name), ...numbers(value)]);
  return [...each, [trace.source === "fused" ? "together" : "drawn from", "", ...numbers(logprob)]];
}

function table(heads, rows, chosen = -1) {
  const cells = (tag, texts) => texts.map((text) => element(tag, "", text));
  const head = element("tr", "", ...cells("th", heads));
  const body = rows.map((row, i) => element("tr", i === chosen ? "chosen" : "", ...cells("td", row)));
  return element("table", "", element("thead", "", head), element("tbody", "", ...body));
}

/** An element of a class with children; text comes in as text, never as markup. */
export function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}
