// Entry of the tab: TensorBoard imports this module into an empty page and calls render(). And the page itself: toolbar,
// panels, and what stands in their place while there is nothing to show.

import { html, render as mount, useEffect, useState } from "./vendor/vendor.js";
import { RUN_COLORS, THEMES, applyTheme } from "./color.js";
import { formatAge, formatStep } from "./format.js";
import { takeFocus, theme, watchTheme } from "./host.js";
import { now, refresh, startSession } from "./session.js";
import { chooseRun, detail, failure, runs, selection, stepBack, stepFinding } from "./store.js";
import { ErrorNote, Select } from "./ui.js";
import { VIEWS } from "./views/index.js";

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

const SNIPPET = `from dgm_tb import DGMTrackerCallback
trainer = L.Trainer(callbacks=[DGMTrackerCallback()])
trainer.fit(model)   # or in a loop of your own: dgm_tb.record(model, "runs/first")`;

const KEYS = [
  ["[  ]", "previous, next finding"], ["← →", "focus snapshot by one step (on the slider; Shift: by ten)"], ["/", "filter layers by regular expression"],
  ["↑ ↓ ← →", "walk the model along its edges (on a node; Enter opens or selects)"], ["Esc", "one step back"], ["?", "this sheet"],
  ["drag", "zoom a chart in time (dynamics: in value, too), or select neurons by box or stroke; double-click resets"], ["Alt + wheel", "zoom at the pointer"],
];

function App() {
  const [isHelpOpen, setHelp] = useState(false);
  useEffect(() => {
    applyTheme(THEMES[theme.value]);
    document.documentElement.dataset.theme = theme.value;
  }, [theme.value]);
  useEffect(() => listenToKeys(setHelp), []);
  const recorded = runs.value?.filter((entry) => entry.recorded) ?? [];
  if (runs.value && !recorded.length) return html`<${Empty} />`;
  return html`<main class="app">
    <h1 class="hidden">DGMTracker</h1>
    <${Toolbar} recorded=${recorded} openHelp=${() => setHelp(true)} />
    ${failure.value && !detail.value
      ? html`<${ErrorNote} error=${failure.value} retry=${() => refresh(true)} />`
      : html`<div class="panels">${VIEWS.map(({ name, view: View }) => html`<${View} key=${name} />`)}</div>`}
    ${isHelpOpen ? html`<${Help} close=${() => setHelp(false)} />` : null}
  </main>`;
}

/** @param {{ recorded: import("./types.d.ts").RunEntry[], openHelp: () => void }} props */
function Toolbar({ recorded, openHelp }) {
  const colors = RUN_COLORS[theme.value];
  const at = recorded.findIndex((entry) => entry.run === selection.value.run);
  const notes = detail.value?.notes ?? [];
  const gaps = detail.value?.gaps ?? [];
  return html`<div class="toolbar">
    <span class="run"><i class="swatch" style=${{ background: at < 0 ? "transparent" : colors[at % colors.length] }}></i>
      <${Select} label="run" value=${selection.value.run} onChange=${chooseRun} options=${recorded.map((entry) => ({ value: entry.run, label: runLabel(entry) }))} />
    </span>
    ${recorded.length > 1 ? html`<span class="muted">${recorded.length} runs</span>` : null}
    <span class="spacer"></span>
    ${notes.length ? html`<details class="notes"><summary>${notes.length} note${notes.length === 1 ? "" : "s"}</summary><ul>${notes.map((note) => html`<li>${note}</li>`)}</ul></details>` : null}
    ${gaps.length ? html`<span class="warn" title=${gaps.map((gap) => `${gap.reason}, ${gap.bytes} bytes after step ${gap.after_step ?? "–"}`).join("\n")}>● ${gaps.length} damaged part${gaps.length === 1 ? "" : "s"} skipped</span>` : null}
    ${failure.value && detail.value ? html`<span class="warn" title=${failure.value.message}>● not up to date</span>` : null}
    <${Status} />
    <button class="button icon" aria-label="Keyboard and mouse" title="Keyboard and mouse (?)" onClick=${openHelp}>?</button>
  </div>`;
}

/** @param {import("./types.d.ts").RunEntry} entry */
function runLabel({ run, findings }) {
  const errors = findings?.error ?? 0;
  const name = run === "." ? "(log folder)" : run;
  return errors ? `${name} · ${errors} error${errors === 1 ? "" : "s"}` : name;
}

/** Live or ended, and how far. */
function Status() {
  const run = runs.value?.find((entry) => entry.run === selection.value.run);
  if (!run) return html`<span class="status">reading …</span>`;
  const steps = `step ${formatStep(run.last_step)}`;
  if (run.indexing) return html`<span class="status live">reading · ${steps}</span>`;
  if (run.ended) return html`<span class="status">${run.reason === "finished" ? "finished" : html`<b class="bad">${run.reason}</b>`} · ${steps}</span>`;
  const age = Math.max(0, now.value - (run.last_wall_time ?? now.value));
  return html`<span class="status ${age < 60 ? "live" : ""}" title="training has not ended">${steps} · ${formatAge(age)}</span>`;
}

/** No recording under the log folder: how to make one. */
function Empty() {
  const others = runs.value?.length ?? 0;
  return html`<main class="empty">
    <h1>No recording yet</h1>
    <p>${others ? `TensorBoard found ${others} run${others === 1 ? "" : "s"} here, none with a recording of DGMTracker.` : "This log folder holds no run."} Three lines record one:</p>
    <pre tabindex="0">${SNIPPET}</pre>
    <p>It appears here while it trains. To see the tab with a training that fails, run <code>dgm-tb demo</code>.</p>
    ${failure.value ? html`<${ErrorNote} error=${failure.value} retry=${() => refresh(true)} />` : null}
  </main>`;
}

/** @param {{ close: () => void }} props */
function Help({ close }) {
  return html`<div class="sheet" role="dialog" aria-modal="true" aria-label="Keyboard and mouse" onClick=${close}>
    <dl onClick=${(/** @type {Event} */ event) => event.stopPropagation()}>
      ${KEYS.map(([keys, text]) => html`<div key=${keys}><dt>${keys}</dt><dd>${text}</dd></div>`)}
      <button class="button" onClick=${close} ref=${(/** @type {HTMLElement | null} */ button) => button?.focus()}>Close</button>
    </dl>
  </div>`;
}

/** Keys that work everywhere but in text fields. @param {(value: boolean) => void} setHelp */
function listenToKeys(setHelp) {
  const listener = (/** @type {KeyboardEvent} */ event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    const isTyping = target instanceof HTMLInputElement && target.type !== "range" && target.type !== "checkbox";
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      target.blur?.();
      setHelp(false);
      if (!isTyping && !document.querySelector(".sheet")) stepBack();
    } else if (isTyping) return;
    else if (event.key === "[") stepFinding(-1);
    else if (event.key === "]") stepFinding(1);
    else if (event.key === "?") setHelp(true);
    else if (event.key === "/") document.getElementById("layer-filter")?.focus();
    else return;
    event.preventDefault();
  };
  document.addEventListener("keydown", listener);
  return () => document.removeEventListener("keydown", listener);
}
