/** The page: tabs for what the server has, the API key that it may want, and the link that the page was opened with. */

import { DebateView } from "./debate.js";
import { Guided } from "./guided.js";
import { key, KeyForm } from "./key.js";
import { models } from "./request.js";
import { Tabs } from "./tabs.js";

const byId = (id) => document.getElementById(id);
const keyForm = new KeyForm(byId("key-form"), () => (loaded ? byId(tabs.selected).querySelector(".main").focus() : load()));
const askForKey = () => keyForm.ask();
const views = { guided: new Guided(askForKey), debate: new DebateView(askForKey) };
const MISSING = { guided: "This server has no ensemble to guide with.", debate: "This server has no debate." };
const tabs = new Tabs(document.querySelector("[role=tablist]"));
let loaded = false;

async function load() {
  byId("trouble").hidden = true;
  try {
    open(await models(key()));
  } catch (error) {
    complain(error.message);
    byId("run").disabled = true;
    if (error.status === 401) askForKey();
  }
}

/** Offer what is listed, then do as the link's fragment says, which no server gets to see. */
function open(listed) {
  const offered = Object.keys(views).filter((name) => views[name].list(listed));
  loaded = offered.length > 0;
  if (!loaded) return complain("This server has no ensemble to guide with, and no debate.");
  tabs.offer(offered);
  const given = new URLSearchParams(location.hash.slice(1));
  history.replaceState(null, "", location.pathname + location.search);
  const linked = given.get("view") === "debate" ? "debate" : "guided";
  const wanted = given.size ? linked : offered[0];
  tabs.select(offered.includes(wanted) ? wanted : offered[0]);
  if (offered.includes(wanted)) views[wanted].fill(given);
  else complain(MISSING[wanted]);
}

function complain(message) {
  byId("trouble").textContent = message;
  byId("trouble").hidden = false;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") views[tabs.selected].escape();
});
load();
