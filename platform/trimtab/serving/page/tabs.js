/** Tabs: one is chosen and in the tab order, arrows, Home and End go to the others. */

export class Tabs {
  #tabs;

  /** `list`: a tablist whose tabs each control a panel by its id. */
  constructor(list) {
    this.#tabs = [...list.querySelectorAll("[role=tab]")];
    for (const tab of this.#tabs) tab.addEventListener("click", () => this.select(panelOf(tab)));
    list.addEventListener("keydown", (event) => this.#walk(event));
  }

  /** The panel that is shown. */
  get selected() {
    return panelOf(this.#tabs.find((tab) => tab.ariaSelected === "true"));
  }

  /** Only these panels have a tab to see. */
  offer(panels) {
    for (const tab of this.#tabs) tab.hidden = !panels.includes(panelOf(tab));
  }

  select(panel) {
    for (const tab of this.#tabs) {
      const chosen = panelOf(tab) === panel;
      tab.ariaSelected = String(chosen);
      tab.tabIndex = chosen ? 0 : -1;
      document.getElementById(panelOf(tab)).hidden = !chosen;
    }
  }

  #walk(event) {
    const shown = this.#tabs.filter((tab) => !tab.hidden);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = shown.at((shown.indexOf(event.target) + step) % shown.length);
    const goal = step ? next : { Home: shown[0], End: shown.at(-1) }[event.key];
    if (!goal) return;
    event.preventDefault();
    this.select(panelOf(goal));
    goal.focus();
  }
}

function panelOf(tab) {
  return tab.getAttribute("aria-controls");
}
