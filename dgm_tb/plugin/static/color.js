// The two themes and every colour scale. Canvases read these objects, the style sheet the same values as variables.

import { interpolateLab } from "./vendor/vendor.js";

/**
 * `negative`, `middle`, `positive` span contributions in [-1, 1] (checked for contrast and colour blindness, red left
 * free for anomalies); `focus` marks the focus snapshot and nothing else.
 */
export const THEMES = {
  light: {
    surface: "#ffffff", sunken: "#f7f7f8", raised: "#ffffff", line: "#e3e3e6", strong: "#b9bcc2",
    text: "#212121", muted: "#5f6368", faint: "#8a8f96", accent: "#b34a00",
    focus: "#c2185b", anomaly: "#d32f2f", warning: "#a15c00", good: "#2e7d32",
    sample: "#4f6d8f", band: "#4f6d8f", select: "#111111",
    negative: "#b35806", middle: "#f5f5f5", positive: "#1565c0",
  },
  dark: {
    surface: "#303030", sunken: "#292929", raised: "#383838", line: "#454545", strong: "#6b6b6b",
    text: "#ffffff", muted: "#bdc1c6", faint: "#9aa0a6", accent: "#ffa04d",
    focus: "#ff80ab", anomaly: "#ff6b6b", warning: "#ffc266", good: "#81c784",
    sample: "#9db7d3", band: "#8fabc9", select: "#ffffff",
    negative: "#ffa657", middle: "#3c3c3c", positive: "#6cb6ff",
  },
};

/** @typedef {typeof THEMES.light} Theme */

/** TensorBoard's run palette in its order. */
export const RUN_COLORS = {
  light: ["#425066", "#12b5cb", "#e52592", "#f9ab00", "#9334e6", "#7cb342", "#e8710a"],
  dark: ["#8e98a3", "#12b5cb", "#e52592", "#f9ab00", "#b06cff", "#7cb342", "#e8710a"],
};

/** Losses of one run: apart from the focus magenta and the anomaly red; told apart by dash as well. */
export const LOSS_COLORS = {
  light: ["#37506f", "#00838f", "#b06f00", "#7b32c9", "#4b7d1e", "#6d4c41"],
  dark: ["#a9c1de", "#4dd0e1", "#ffca5f", "#c79bff", "#a5d66f", "#d0b0a4"],
};
export const DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3]];

/** Makes a theme's colours the style sheet's variables. @param {Theme} theme */
export function applyTheme(theme) {
  for (const [name, value] of Object.entries(theme)) document.documentElement.style.setProperty(`--${name}`, value);
}

/**
 * Colour of a contribution in [-1, 1]; what is beyond is clipped, what is not finite is the anomaly colour.
 *
 * @param {Theme} theme
 * @returns {(value: number) => string}
 */
export function contributionScale(theme) {
  const down = interpolateLab(theme.middle, theme.negative);
  const up = interpolateLab(theme.middle, theme.positive);
  // 64 shades a side: interpolating in Lab for each of thousands of cells would cost more than drawing them.
  const shades = Array.from({ length: 129 }, (_, i) => (i < 64 ? down((64 - i) / 64) : up((i - 64) / 64)));
  return (value) => {
    if (!Number.isFinite(value)) return theme.anomaly;
    return shades[Math.round(Math.max(-1, Math.min(1, value)) * 64) + 64];
  };
}

/** Grey of a magnitude in [0, 1], from the surface towards the text. @param {Theme} theme */
export function magnitudeScale(theme) {
  const mix = interpolateLab(theme.middle, theme.sample);
  return (/** @type {number} */ value) => (Number.isFinite(value) ? mix(Math.max(0, Math.min(1, value))) : theme.anomaly);
}

/** [r, g, b] of a `#rrggbb` or `rgb(...)` colour. @param {string} color @returns {[number, number, number]} */
export function rgb(color) {
  const hex = color.match(/^#(..)(..)(..)$/);
  const parts = hex ? hex.slice(1).map((part) => parseInt(part, 16)) : (color.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
  return [parts[0], parts[1], parts[2]];
}

/** A colour with an opacity. @param {string} color @param {number} alpha */
export function fade(color, alpha) {
  return `rgba(${rgb(color).join(",")},${alpha})`;
}
