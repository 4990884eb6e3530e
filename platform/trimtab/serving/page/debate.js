/** The view of debates: copies of a model argue for opposite answers, weaker ones judge. */

import { Board } from "./board.js";
import { element } from "./card.js";
import { debateOf, errorText } from "./request.js";
import { Sliders } from "./sliders.js";
import { Transcript } from "./transcript.js";
import { View } from "./view.js";

const KINDS = {
  consultancy: "Consultancy: one speaker argues for one of the answers.",
  sequential: "Sequential: the speakers take turns, and each hears what was said before.",
  simultaneous: "Simultaneous: both speak at once, and hear each other afterwards.",
  self_critique: "Self-critique: one speaker weighs both answers and argues for none.",
};
const RANGES = { turns: "Turns of each", words: "Words a turn" };

export class DebateView extends View {
  constructor(askForKey) {
    super({
      prefix: "debate-",
      offer: "debate",
      fields: ["model", "question", "first", "second", "source", "seed"],
      sliders: new Sliders(document.getElementById("protocol"), (name) => RANGES[name] ?? name),
      askForKey,
    });
    this.board = new Board(this.at("board"), this.at("verdict"));
    this.transcript = new Transcript(this.at("transcript"));
  }

  fill(given) {
    super.fill(given);
    this.at("with-source").open ||= this.at("source").value !== "";
  }

  inLink() {
    return [["view", "debate"], ...super.inLink()];
  }

  describe({ description, debater, judges, protocol: { kind } }) {
    const who = `${debater} argues, ${judges.join(" and ")} ${judges.length === 1 ? "judges" : "judge"}.`;
    this.at("about").textContent = description ?? "";
    this.at("who").textContent = `${who} ${KINDS[kind] ?? kind}`;
  }

  show() {
    const [first, second] = ["first", "second"].map((id) => this.at(id).value.trim());
    this.at("second").setCustomValidity(first && first === second ? "The two answers must differ." : "");
    super.show();
  }

  path() {
    return "v1/chat/completions";
  }

  body() {
    return debateOf({
      model: this.at("model").value,
      question: this.at("question").value,
      answers: [this.at("first").value, this.at("second").value],
      source: this.at("source").value,
      seed: this.number("seed"),
      numbers: this.sliders.values(),
    });
  }

  clear() {
    this.turns = 0;
    this.began = performance.now();
    this.board.start();
    this.transcript.start();
    this.at("error").hidden = true;
    this.at("numbers").replaceChildren();
  }

  streams(signal) {
    const take = (chunk) => this.#take(chunk);
    return [this.follow(this.body(), { take, fail: (error) => this.#fail(error) }, signal).finally(() => this.transcript.end())];
  }

  escape() {
    this.stop();
  }

  #take({ choices, usage }) {
    for (const event of choices?.[0]?.debate ?? []) this.#event(event);
    if (usage) this.#tell(usage);
  }

  #event(event) {
    if (event.event === "begin") this.utterances = event.utterances;
    if (event.event === "turn") this.say(`Turn ${++this.turns} of ${this.utterances}`);
    this.board.take(event);
    this.transcript.take(event);
  }

  #tell({ prompt_tokens: prompt, completion_tokens: text }) {
    const took = ((performance.now() - this.began) / 1000).toFixed(1);
    const rows = { took: `${took} s`, tokens: `${prompt} prompt, ${text} text` };
    const pair = ([name, value]) => element("div", "", element("dt", "", name), element("dd", "", value));
    this.at("numbers").replaceChildren(...Object.entries(rows).map(pair));
  }

  #fail(error) {
    this.at("error").textContent = errorText(error);
    this.at("error").hidden = false;
  }
}
