// Entry of the tab: TensorBoard imports this module into an empty page and calls render().

import { html, render as mount } from "./vendor/vendor.js";
import { App } from "./app.js";
import { takeFocus, watchTheme } from "./host.js";
import { startSession } from "./session.js";

export async function render() {
  document.title = "DGMTracker";
  document.documentElement.lang = "en";
  await Promise.all(["./vendor/uPlot.css", "./style.css"].map(addStyleSheet));
  watchTheme();
  startSession();
  mount(html`<${App} />`, document.body);
  takeFocus();
}

/** @param {string} path */
function addStyleSheet(path) {
  const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href: new URL(path, import.meta.url).href });
  document.head.append(link);
  return new Promise((resolve) => link.addEventListener("load", resolve, { once: true }));
}
