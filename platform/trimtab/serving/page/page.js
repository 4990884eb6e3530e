/** The page: what is asked, and two streams that answer it, the base alone and guided. */

import { Card } from "./card.js";
import { Guidance } from "./guidance.js";
import { bodyOf, curlLine, models, pathOf, stream } from "./request.js";
import { Side } from "./side.js";

const byId = (id) => document.getElementById(id);
const ask = byId("ask");
const card = new Card(byId("card"));
const base = new Side(byId("base"), card);
const steered = new Side(byId("steered"), card);
const guidance = new Guidance(byId("guidance"));
const KEY = "trimtab-api-key";
const FIELDS = ["model", "prompt", "max-tokens", "temperature", "seed"];
const GUIDANCE = "guidance_";

let ensembles = [];
let running = null;

function chosen() {
  return ensembles.find((one) => one.id === byId("model").value);
}

function asked() {
  const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
  return {
    model: byId("model").value,
    prompt: byId("prompt").value,
    chat: ask.elements.mode.value === "chat",
    maxTokens: number("max-tokens"),
    temperature: number("temperature"),
    seed: number("seed"),
  };
}

const guidedBody = () => bodyOf(asked(), { ...guidance.values(), trace: true });

async function load() {
  byId("trouble").hidden = true;
  try {
    ensembles = (await models(sessionStorage.getItem(KEY))).filter((one) => one.ensemble);
  } catch (error) {
    return complain(error);
  }
  byId("model").replaceChildren(...ensembles.map(({ id }) => new Option(id, id)));
  byId("run").disabled = !ensembles.length;
  if (!ensembles.length) return complain(new Error("This server has no ensemble to guide with."));
  fill(new URLSearchParams(location.hash.slice(1)));
}

/** The fields as a link's fragment has them, which no server gets to see; run=1 presses Run. */
function fill(given) {
  for (const id of FIELDS) if (given.has(id)) byId(id).value = given.get(id);
  if (given.has("mode")) ask.elements.mode.value = given.get("mode");
  choose();
  const ours = [...given].filter(([name]) => name.startsWith(GUIDANCE));
  guidance.fill(Object.fromEntries(ours.map(([name, value]) => [name.slice(GUIDANCE.length), value])));
  show();
  history.replaceState(null, "", location.pathname + location.search);
  if (given.get("run") === "1") ask.requestSubmit();
}

function link() {
  const given = new URLSearchParams({ run: "1", mode: ask.elements.mode.value });
  for (const id of FIELDS) given.set(id, byId(id).value);
  for (const [name, value] of Object.entries(guidance.values())) given.set(GUIDANCE + name, value);
  return `${location.origin}${location.pathname}#${given}`;
}

/** Another ensemble: its description, its sliders. */
function choose() {
  const ensemble = chosen()?.ensemble;
  if (!ensemble) return;
  const { base: first, helpers } = ensemble.members;
  byId("about").textContent = ensemble.description ?? "";
  base.root.querySelector(".who").textContent = first;
  steered.root.querySelector(".who").textContent = [first, ...helpers].join(" + ") + `, ${ensemble.method}`;
  guidance.build(ensemble.ranges ?? {});
  show();
}

/** The line for the shell follows the form. */
function show() {
  const url = new URL(pathOf(asked()), location.origin + location.pathname).href;
  byId("curl").textContent = curlLine(url, guidedBody(), sessionStorage.getItem(KEY) !== null);
  byId("copied").textContent = "";
}

async function run() {
  if (running) return;
  running = new AbortController();
  const { signal } = running;
  const path = pathOf(asked());
  const [plain, guided] = [bodyOf(asked(), { method: "none" }), guidedBody()];
  busy(true);
  byId("state").textContent = "Running";
  base.start(null);
  steered.start(chosen().ensemble.members.base);
  const ends = await Promise.all([follow(base, path, plain, signal), follow(steered, path, guided, signal)]);
  running = null;
  busy(false);
  byId("state").textContent = ["Failed", "Stopped", "Done"].find((one) => ends.includes(one));
}

async function follow(side, path, body, signal) {
  try {
    for await (const chunk of stream(path, body, { key: sessionStorage.getItem(KEY), signal })) side.take(chunk);
  } catch (error) {
    if (error.name === "AbortError") return "Stopped";
    side.fail(error);
    if (error.status === 401) askForKey();
    return "Failed";
  }
  return "Done";
}

function busy(yes) {
  byId("run").disabled = yes;
  byId("stop").disabled = !yes;
}

function complain(error) {
  byId("trouble").textContent = error.message;
  byId("trouble").hidden = false;
  byId("run").disabled = true;
  if (error.status === 401) askForKey();
}

function askForKey() {
  byId("key-form").hidden = false;
  byId("key").focus();
}

async function copy(text, shown) {
  try {
    await navigator.clipboard.writeText(text);
    byId("copied").textContent = "Copied";
  } catch {
    byId("copied").textContent = shown ? "Selected, copy it by hand" : text;
    if (shown) getSelection().selectAllChildren(shown);
  }
}

ask.addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value);
  byId("key").value = "";
  byId("key-form").hidden = true;
  if (ensembles.length) byId("run").focus();
  else load();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("model").addEventListener("change", choose);
ask.addEventListener("input", show);
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (card.shown) card.hide();
  else running?.abort();
});
byId("copy-curl").addEventListener("click", () => copy(byId("curl").textContent, byId("curl")));
byId("copy-link").addEventListener("click", () => copy(link(), null));
load();
