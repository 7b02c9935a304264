// Numbers, steps, times and names as the tab writes them.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const grouped = (/** @type {number} */ count) => whole.format(count);

/** A step: 24,397. @param {number | null | undefined} step */
export function formatStep(step) {
  return step === null || step === undefined || !Number.isFinite(step) ? "–" : grouped(Math.round(step));
}

/** A count: 18,432. @param {number} count */
export function formatInteger(count) {
  return grouped(count);
}

/** A measured value in three significant digits: 0.8, 9.12k, 1e-7; "NaN" and "Inf" stay words. @param {number} value */
export function formatValue(value) {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "Inf" : "−Inf";
  if (value === 0) return "0";
  const rounded = Number(value.toPrecision(3));
  const size = Math.abs(rounded);
  if (size < 1e-4 || size >= 1e12) return minus(value.toExponential(1).replace("e+", "e").replace(".0e", "e"));
  const [unit, letter] = size < 1e3 ? [1, ""] : size < 1e6 ? [1e3, "k"] : size < 1e9 ? [1e6, "M"] : [1e9, "B"];
  return minus(`${Number((rounded / unit).toPrecision(3))}${letter}`);
}

/** A share of 1 as the colour scale shows it: +0.83. @param {number} value */
export function formatScaled(value) {
  return Number.isFinite(value) ? `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}` : formatValue(value);
}

/** A count with its noun: 1 neuron, 18,432 neurons. @param {number} count @param {string} noun */
export function formatCount(count, noun) {
  return `${grouped(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** How long ago: "3 s ago". @param {number} seconds */
export function formatAge(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

/** A long name with its middle left out, so that the leaf stays readable. @param {string} name @param {number} length */
export function shorten(name, length) {
  if (name.length <= length) return name;
  const tail = Math.max(Math.ceil(length * 0.65), 1);
  return `${name.slice(0, Math.max(length - tail - 1, 0))}…${name.slice(-tail)}`;
}

/** The last part of a module path: `encoder.layers.0` -> `layers.0` (a bare number says nothing). @param {string} path */
export function leafName(path) {
  const parts = path.split(".");
  const last = parts[parts.length - 1];
  return /^\d/.test(last) && parts.length > 1 ? parts.slice(-2).join(".") : last;
}

/** A kind of finding or statistic in words: `dead_units` -> `dead units`. @param {string} name */
export function words(name) {
  return name.replaceAll("_", " ");
}

/** A shape without its batch axis: 32×8×8. @param {number[]} shape */
export function formatShape(shape) {
  return shape.slice(1).join("×") || "scalar";
}

/** A number of the JSON answers, where NaN and Inf are words. @param {unknown} value */
export function toNumber(value) {
  return typeof value === "string" ? { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity }[value] ?? NaN : Number(value);
}

/** One entry of a finding's evidence. @param {unknown} value @returns {string} */
export function formatEvidence(value) {
  if (typeof value === "number") return Number.isInteger(value) ? grouped(value).replace("-", "−") : formatValue(value);
  if (Array.isArray(value)) return value.length > 4 ? `${value.slice(0, 4).map(formatEvidence).join(", ")}, …` : value.map(formatEvidence).join(", ");
  if (value !== null && typeof value === "object") return Object.entries(value).map(([k, v]) => `${words(k)} ${formatEvidence(v)}`).join(", ");
  return String(value);
}

/** @param {string} text */
function minus(text) {
  return text.replaceAll("-", "−");
}
