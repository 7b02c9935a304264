// The two themes and every colour scale. Canvases read these objects, the style sheet the same values as variables.

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
  const down = mixer(theme.middle, theme.negative);
  const up = mixer(theme.middle, theme.positive);
  // 64 shades a side: mixing anew for each of thousands of cells would cost more than drawing them.
  const shades = Array.from({ length: 129 }, (_, i) => (i < 64 ? down((64 - i) / 64) : up((i - 64) / 64)));
  return (value) => {
    if (!Number.isFinite(value)) return theme.anomaly;
    return shades[Math.round(Math.max(-1, Math.min(1, value)) * 64) + 64];
  };
}

/** Grey of a magnitude in [0, 1], from the surface towards the text. @param {Theme} theme */
export function magnitudeScale(theme) {
  const mix = mixer(theme.middle, theme.sample);
  return (/** @type {number} */ value) => (Number.isFinite(value) ? mix(Math.max(0, Math.min(1, value))) : theme.anomaly);
}

/** [r, g, b] of a `#rrggbb` or `rgb(...)` colour. @param {string} color @returns {[number, number, number]} */
export function rgb(color) {
  const hex = color.match(/^#(..)(..)(..)$/);
  const parts = hex ? hex.slice(1).map((part) => parseInt(part, 16)) : (color.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
  return [parts[0], parts[1], parts[2]];
}

/**
 * Mixes two colours evenly for the eye: in Oklab (Ottosson 2020, https://bottosson.github.io/posts/oklab).
 *
 * @param {string} from
 * @param {string} to
 * @returns {(share: number) => string} share of `to` in [0, 1]
 */
export function mixer(from, to) {
  const [a, b] = [toOklab(rgb(from)), toOklab(rgb(to))];
  return (share) => `rgb(${toRgb(a.map((value, i) => value + (b[i] - value) * share)).join(",")})`;
}

/** @param {number[]} matrix row by row @param {number[]} vector */
function multiply(matrix, vector) {
  return [0, 3, 6].map((row) => matrix[row] * vector[0] + matrix[row + 1] * vector[1] + matrix[row + 2] * vector[2]);
}

/** @param {number[]} color sRGB, 0 to 255 */
function toOklab(color) {
  const linear = color.map((v) => (v <= 10.31475 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  const cones = multiply([0.4122214708, 0.5363325363, 0.0514459929, 0.2119034982, 0.6806995451, 0.1073969566, 0.0883024619, 0.2817188376, 0.6299787005], linear);
  return multiply([0.2104542553, 0.793617785, -0.0040720468, 1.9779984951, -2.428592205, 0.4505937099, 0.0259040371, 0.7827717662, -0.808675766], cones.map(Math.cbrt));
}

/** @param {number[]} color Oklab */
function toRgb(color) {
  const cones = multiply([1, 0.3963377774, 0.2158037573, 1, -0.1055613458, -0.0638541728, 1, -0.0894841775, -1.291485548], color);
  const linear = multiply([4.0767416621, -3.3077115913, 0.2309699292, -1.2684380046, 2.6097574011, -0.3413193965, -0.0041960863, -0.7034186147, 1.707614701], cones.map((v) => v ** 3));
  return linear.map((v) => Math.round(255 * Math.max(0, Math.min(1, v <= 0.0031308 ? v * 12.92 : 1.055 * v ** (1 / 2.4) - 0.055))));
}
