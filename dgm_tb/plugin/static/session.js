// Reads the chosen run, and keeps reading while it trains: only while the tab can be seen.

import { batch, effect, signal } from "./vendor/vendor.js";
import { getJson } from "./api.js";
import { isVisible, onReload, onSelection, readSelection, writeSelection } from "./host.js";
import { chooseRun, detail, failure, findings, focusFinding, graph, runs, select, selection } from "./store.js";

const LIVE_MS = 3000;
const IDLE_MS = 20000;

/** Time of this computer in seconds, advanced while a training is live. */
export const now = signal(Date.now() / 1000);

let timer = 0;
let isReading = false;
let isAskedAgain = false;

/** Reads whatever is new; `force` reads the run again even if its revision is the same. */
export async function refresh(force = false) {
  if (isReading) return void (isAskedAgain = true);
  isReading = true;
  try {
    const listed = /** @type {import("./types.d.ts").RunEntry[]} */ (await getJson("runs"));
    runs.value = listed;
    now.value = Date.now() / 1000;
    const recorded = listed.filter((entry) => entry.recorded);
    const wanted = recorded.find((entry) => entry.run === selection.peek().run) ?? defaultRun(recorded);
    if (wanted && wanted.run !== selection.peek().run) chooseRun(wanted.run);
    const current = detail.peek();
    if (wanted && (force || current?.run !== wanted.run || current?.revision !== wanted.revision)) await readRun(wanted.run);
    failure.value = null;
  } catch (error) {
    failure.value = /** @type {Error} */ (error);
  } finally {
    isReading = false;
    if (isAskedAgain) setTimeout(refresh);
    else schedule();
    isAskedAgain = false;
  }
}

/** The run to show first: one that failed, else the one that wrote last. @param {import("./types.d.ts").RunEntry[]} recorded */
function defaultRun(recorded) {
  const newest = [...recorded].sort((a, b) => (b.last_wall_time ?? 0) - (a.last_wall_time ?? 0));
  return newest.find((entry) => (entry.findings?.error ?? 0) > 0) ?? newest[0];
}

/** @param {string} run */
async function readRun(run) {
  const [facts, model, list] = await Promise.all([
    getJson("run", { run }),
    getJson("graph", { run }).catch((error) => (error.status === 404 ? null : Promise.reject(error))),
    getJson("findings", { run }),
  ]);
  if (selection.peek().run !== run) return;
  batch(() => {
    detail.value = facts;
    // An unchanged graph keeps its identity, and with it the layout and what is open.
    if (JSON.stringify(model) !== JSON.stringify(graph.peek())) graph.value = model;
    findings.value = list;
    chooseStart();
  });
}

/** On arrival without a selection in the URL: look at the worst finding, else at the first layer's last step. */
function chooseStart() {
  const { step, layer } = selection.peek();
  const worst = findings.peek()?.[0];
  if (step === null && !layer && worst) focusFinding(worst);
  else if (!layer && detail.peek()?.layers.length) select({ layer: worst?.layer || detail.peek()?.layers[0].name });
}

function schedule() {
  window.clearTimeout(timer);
  timer = 0;
  if (!isVisible()) return;
  const isLive = !runs.peek()?.length || runs.peek()?.some((entry) => entry.recorded && (!entry.ended || entry.indexing));
  timer = window.setTimeout(() => void refresh(), isLive ? LIVE_MS : IDLE_MS);
}

/** Starts reading, and ties the selection to the URL. */
export function startSession() {
  select(readSelection());
  effect(() => {
    const value = selection.value;
    if (value.run) writeSelection(value);
  });
  onSelection((chosen) => {
    if (!Object.keys(chosen).length) return writeSelection(selection.peek()); // TensorBoard drops ours when tabs change
    if (chosen.run && chosen.run !== selection.peek().run) chooseRun(chosen.run);
    select({ neurons: [], sample: null, finding: "", ...chosen });
    return void refresh();
  });
  onReload(() => void refresh());
  effect(() => {
    const { run } = selection.value; // read before anything that may be null, or the effect depends on nothing
    const entry = runs.peek()?.find((item) => item.run === run);
    if (entry && detail.peek()?.run !== entry.run) void refresh();
  });
  // TensorBoard gives the frame of a tab that was left a height of 0, and its size back when it returns.
  const wake = () => {
    if (!isVisible()) return schedule();
    writeSelection(selection.peek());
    if (!timer) void refresh();
  };
  window.addEventListener("resize", wake);
  document.addEventListener("visibilitychange", wake);
  void refresh();
}
