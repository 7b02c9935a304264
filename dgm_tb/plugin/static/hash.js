// The selection as a part of TensorBoard's URL hash: `#dgmtracker&p.dgmtracker.run=...&p.dgmtracker.step=...`.

/** @typedef {import("./types.d.ts").Selection} Selection */

const PREFIX = "p.dgmtracker.";
export const TAB = "dgmtracker";

/**
 * The selection that a URL hash holds; what is missing or malformed is left out.
 *
 * @param {string} hash
 * @returns {Partial<Selection>}
 */
export function parseHash(hash) {
  /** @type {Record<string, string>} */
  const values = {};
  for (const part of hash.replace(/^#/, "").split("&")) {
    const at = part.indexOf("=");
    if (!part.startsWith(PREFIX) || at < 0) continue;
    values[part.slice(PREFIX.length, at)] = unescape(part.slice(at + 1));
  }
  /** @type {Partial<Selection>} */
  const selection = {};
  for (const key of /** @type {const} */ (["run", "layer", "finding", "quantity", "statistic"])) {
    if (values[key] !== undefined) selection[key] = values[key];
  }
  for (const key of /** @type {const} */ (["step", "sample"])) {
    if (/^\d+$/.test(values[key] ?? "")) selection[key] = Number(values[key]);
  }
  if (values.neurons !== undefined) {
    selection.neurons = values.neurons.split(",").filter((text) => /^\d+$/.test(text)).map(Number);
  }
  return selection;
}

/**
 * `hash` with our part of it replaced by the selection; other tabs' parameters stay.
 *
 * @param {string} hash
 * @param {Partial<Selection>} selection
 */
export function formatHash(hash, selection) {
  const [tab, ...rest] = hash.replace(/^#/, "").split("&");
  const others = rest.filter((part) => part && !part.startsWith(PREFIX));
  const ours = Object.entries(selection)
    .filter(([, value]) => value !== null && value !== undefined && value !== "" && !(Array.isArray(value) && !value.length))
    .map(([key, value]) => `${PREFIX}${key}=${escape(Array.isArray(value) ? value.join(",") : String(value))}`);
  return `#${[tab || TAB, ...others, ...ours].join("&")}`;
}

/** @param {string} text */
function escape(text) {
  return encodeURIComponent(text).replaceAll("%2C", ",").replaceAll("%2F", "/");
}

/** @param {string} text */
function unescape(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
