// Everything the tab takes from TensorBoard's own page, which frames it: URL hash, theme, reload button, visibility.
// TensorBoard has no public API for the first two; the frame is of the same origin, and every access is guarded.

import { signal } from "./vendor/vendor.js";
import { TAB, formatHash, parseHash } from "./hash.js";

/** @typedef {import("./types.d.ts").Selection} Selection */

/** "light" or "dark", as TensorBoard's page is now. */
export const theme = signal(/** @type {"light" | "dark"} */ ("light"));

/** TensorBoard's window, or null where the browser forbids it (a notebook's proxy). */
const parentWindow = (() => {
  try {
    return window.parent !== window && window.parent.document ? window.parent : null;
  } catch {
    return null;
  }
})();

const page = parentWindow ?? window;
let ownHash = "";

/** @returns {Partial<Selection>} */
export function readSelection() {
  return parseHash(page.location.hash);
}

/** @param {Partial<Selection>} selection */
export function writeSelection(selection) {
  const hash = page.location.hash;
  if (parentWindow && !hash.startsWith(`#${TAB}`)) return; // another tab is open; ours is rewritten when it returns
  ownHash = formatHash(hash, selection);
  if (ownHash !== hash) page.history.replaceState(page.history.state, "", ownHash);
}

/**
 * Calls back when someone else changed the hash: the back button, an edited or pasted URL.
 *
 * @param {(selection: Partial<Selection>) => void} listener
 */
export function onSelection(listener) {
  page.addEventListener("hashchange", () => {
    if (page.location.hash !== ownHash && page.location.hash.startsWith(`#${TAB}`)) listener(readSelection());
  });
}

/** Follows TensorBoard's light and dark toggle; outside TensorBoard, the system's preference. */
export function watchTheme() {
  const body = parentWindow?.document.body;
  const preference = window.matchMedia("(prefers-color-scheme: dark)");
  const update = () => {
    const isDark = body ? body.classList.contains("dark-mode") : preference.matches;
    theme.value = isDark ? "dark" : "light";
  };
  if (body) new MutationObserver(update).observe(body, { attributes: true, attributeFilter: ["class"] });
  preference.addEventListener("change", update);
  update();
}

/** Whether the tab can be seen: TensorBoard keeps the frame of a tab that was left, with a height of 0. */
export function isVisible() {
  return window.innerHeight > 0 && document.visibilityState === "visible";
}

/** Makes the tab's keys work at once, unless something in TensorBoard's page has the focus. */
export function takeFocus() {
  const active = parentWindow?.document.activeElement;
  if (!active || active === parentWindow?.document.body) window.focus();
}

/**
 * Calls back when TensorBoard's reload button was pressed or its auto-reload fired.
 *
 * @param {() => void} listener
 */
export function onReload(listener) {
  if (!parentWindow) return;
  const channel = new MessageChannel();
  channel.port1.onmessage = (event) => {
    const message = typeof event.data === "string" ? JSON.parse(event.data) : event.data;
    if (message.isReply) return;
    channel.port1.postMessage(JSON.stringify({ type: message.type, id: message.id, payload: null, error: null, isReply: true }));
    if (message.type === "experimental.DataReloaded") listener();
  };
  parentWindow.postMessage("experimental.bootstrap", "*", [channel.port2]);
}
