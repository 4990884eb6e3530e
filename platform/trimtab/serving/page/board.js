/** What the judges think: a bar for the panel and one for each of them, and the verdict. */

import { element } from "./card.js";
import { count, Meter, quoted, shareText, sharesText } from "./meter.js";

export class Board {
  /** `root` has the bars, `verdict` the words in the end. */
  constructor(root, verdict) {
    Object.assign(this, { root, verdict });
    this.heads = root.querySelector(".answers");
    this.meters = root.querySelector(".meters");
    this.beat = root.querySelector("[role=status]");
    this.start();
  }

  start() {
    this.root.hidden = true;
    this.beat.textContent = "";
    this.verdict.replaceChildren();
  }

  /** An event of the debate; those of turns say nothing here. */
  take(event) {
    if (event.event === "begin") this.#begin(event);
    if (event.event === "judged") this.#judged(event);
    if (event.event === "verdict") this.#verdict(event);
  }

  #begin({ answers, judges, utterances }) {
    Object.assign(this, { answers, utterances });
    this.panel = new Meter("panel", answers, "panel");
    this.judges = Object.fromEntries(judges.map((name) => [name, new Meter(name, answers)]));
    this.heads.replaceChildren(...answers.map((answer) => element("b", "", answer)));
    this.meters.replaceChildren(this.panel.root, ...Object.values(this.judges).map((one) => one.root));
    this.root.hidden = false;
  }

  #judged({ after, judges, panel }) {
    this.#put(judges, panel);
    const when = after ? `After ${after} of ${count(this.utterances, "turn")}` : "Before the first turn";
    this.beat.textContent = `${when} the panel gives ${sharesText(this.answers, panel)}.`;
  }

  #verdict({ answer, text, probabilities, judges }) {
    this.#put(judges, probabilities);
    this.heads.children[answer].dataset.won = "";
    const all = Object.values(judges);
    const with_ = all.filter((said) => said[answer] > said[1 - answer]).length;
    const [won, lost] = [answer, 1 - answer].map((i) => shareText(probabilities[i]));
    this.verdict.replaceChildren(
      element("span", "", "Verdict"),
      element("b", "", quoted(text)),
      element("span", "", `${won} to ${lost}; ${with_} of ${count(all.length, "judge")} on this side`),
    );
    this.verdict.dataset.side = answer;
  }

  #put(judges, panel) {
    this.panel.put(panel);
    for (const [name, said] of Object.entries(judges)) this.judges[name].put(said);
  }
}
