/** A bar that two answers share, with the share of each in words. */

import { element } from "./card.js";

export class Meter {
  #bar = element("i", "");
  #first = element("b", "", "–");
  #second = element("b", "", "–");

  /** `name`: whose shares these are, or when they were so. */
  constructor(name, answers, className = "") {
    Object.assign(this, { name, answers });
    const shares = element("span", "shares", this.#first, element("span", "", name), this.#second);
    this.root = element("div", `meter ${className}`, shares, element("span", "split", this.#bar));
    this.root.setAttribute("role", "img");
    this.root.setAttribute("aria-label", `${name}: nothing said yet`);
  }

  /** Show the probabilities of both answers. */
  put(probabilities) {
    [this.#first.textContent, this.#second.textContent] = probabilities.map(shareText);
    this.#bar.style.setProperty("--share", probabilities[0]);
    this.root.setAttribute("aria-label", `${this.name}: ${sharesText(this.answers, probabilities)}`);
  }
}

/** A text between quotation marks. */
export function quoted(text) {
  return `“${text}”`;
}

/** Who has how much, as in: “Paris” 61 %, “Lyon” 39 %. */
export function sharesText(answers, probabilities) {
  return answers.map((answer, i) => `${quoted(answer)} ${shareText(probabilities[i])}`).join(", ");
}

/** A probability as a share, such that two that sum to one have as many digits. */
export function shareText(probability) {
  const share = 100 * probability;
  const least = Math.min(share, 100 - share);
  if (least > 0 && least < 0.1) return share < 50 ? "< 0.1 %" : "> 99.9 %";
  return `${share.toFixed(least < 10 ? 1 : 0)} %`;
}

/** How many of a thing, as in: 1 turn, 2 turns. */
export function count(number, thing) {
  return `${number} ${thing}${number === 1 ? "" : "s"}`;
}
