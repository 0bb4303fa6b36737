// Tabs as the ARIA Authoring Practices have them: arrows, Home and End move, and choose at once.

import { $ } from "./dom.js";

/** `onShow(name)` is told which tab is chosen; the address ends with it, so that a reload keeps it. */
export function makeTabs(list, onShow) {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  const nameOf = (tab) => tab.id.replace("tab-", "");

  function show(chosen) {
    for (const tab of tabs) {
      const selected = tab === chosen;
      tab.setAttribute("aria-selected", selected);
      tab.tabIndex = selected ? 0 : -1;
      $(tab.getAttribute("aria-controls")).hidden = !selected;
    }
    document.title = `${chosen.textContent} · SLM playground`;
    onShow(nameOf(chosen));
  }

  function choose(tab) {
    history.replaceState(null, "", `#${nameOf(tab)}`);
    show(tab);
  }

  const fromAddress = () => tabs.find((tab) => `#${nameOf(tab)}` === location.hash);

  list.addEventListener("click", ({ target }) => tabs.includes(target) && choose(target));
  list.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(event.target);
    const step = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const tab = tabs.at(step % tabs.length);
    choose(tab);
    tab.focus();
  });
  window.addEventListener("hashchange", () => fromAddress() && show(fromAddress()));
  show(fromAddress() ?? tabs[0]);
}
