// The examples behind a finding: abnormal and normal inputs as data, with what of them drove the suspect neuron.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/vendor.js";
import { getArrays } from "../api.js";
import { THEMES, contributionScale, rgb } from "../color.js";
import { formatStep, formatValue, leafName } from "../format.js";
import { theme } from "../host.js";
import { detail, findings, layer, revision, sampleFinding, select, selection } from "../store.js";
import { Loaded, Note, Panel, Switch, useResource } from "../ui.js";

/** @typedef {import("../types.d.ts").Message} Message */
/** @typedef {import("../types.d.ts").Numbers} Numbers */
/** @typedef {{ index: number | null, position: number, role: string, label: number | null }} Example */
/** @typedef {{ width: number, height: number, channels: number, columns: number }} Shape */

const SCALES = [
  { value: "shared", label: "normal", hint: "grey values span the normal examples; what lies outside is red" },
  { value: "own", label: "own", hint: "grey values span each example's own range" },
];

export function Samples() {
  const finding = sampleFinding.value;
  const run = detail.value;
  const [range, setRange] = useState("shared");
  const [overlay, setOverlay] = useState(false);
  const query = { run: run?.run, finding: finding?.id };
  const key = run && finding ? JSON.stringify(query) : null;
  const resource = useResource(key, revision.value, () => getArrays("samples", query, revision.value));
  const hasRelevance = Boolean(resource.value?.header.relevance.length);
  const tools = resource.value && html`
    ${hasRelevance ? html`<label class="check"><input type="checkbox" checked=${overlay} onChange=${() => setOverlay(!overlay)} />relevance</label>` : null}
    <span class="hint">range</span><${Switch} label="value range" value=${range} options=${SCALES} onChange=${setRange} />`;
  return html`<${Panel} name="Samples" className="area-samples" tools=${tools}
    footer=${resource.value && !resource.error ? html`<${Caption} message=${resource.value} overlay=${overlay} />` : null}
  >
    ${finding
      ? html`<${Loaded} resource=${resource} rows=${4}>
          ${(/** @type {Message} */ message) => html`<${Examples} message=${message} range=${range} overlay=${overlay} />`}
        <//>`
      : findings.value ? html`<${Note}>Examples are recorded with findings; none has any.<//>` : null}
  <//>`;
}

/** What the map or the numbers under the images mean. @param {{ message: Message, overlay: boolean }} props */
function Caption({ message, overlay }) {
  const [map] = message.header.relevance;
  const at = `step ${formatStep(message.header.step)}`;
  const name = layer.value?.name ?? "";
  if (overlay && map) return html`<span>${at} · what drove <code>${leafName(map.target)}</code> #${map.neuron}: blue for, orange against</span>`;
  return html`<span>${at}${message.header.layers.includes(name) ? html` · |a|: largest |activation| in <code>${leafName(name)}</code>` : ""}</span>`;
}

/** Rows, columns and channels to draw an input with. @param {string} axes @param {number[]} shape of `inputs` @returns {Shape} */
export function imageShape(axes, shape) {
  const size = (/** @type {string} */ axis) => (axes.includes(axis) ? shape[axes.indexOf(axis)] : 1);
  if (axes.includes("H") && axes.includes("W")) return { width: size("W"), height: size("H"), channels: size("C"), columns: size("W") };
  const values = shape.slice(1).reduce((a, b) => a * b, 1);
  const columns = Math.ceil(Math.sqrt(values));
  return { width: columns, height: Math.ceil(values / columns), channels: 1, columns };
}

/**
 * An input as pixels: grey or RGB inside [low, high]; red, darker the farther, outside of it; NaN and Inf full red.
 *
 * @param {Numbers} values channels first
 * @param {Shape} shape
 * @param {number} low
 * @param {number} high
 */
export function toPixels(values, { width, height, channels }, low, high) {
  const pixels = new Uint8ClampedArray(width * height * 4);
  const plane = width * height;
  const isColor = channels === 3;
  const span = high - low || 1;
  let far = 0;
  for (const value of values) if (Number.isFinite(value)) far = Math.max(far, low - value, value - high);
  for (let i = 0; i < plane; i++) {
    const parts = Array.from({ length: isColor ? 3 : channels }, (_, c) => values[c * plane + i] ?? NaN);
    const shown = isColor ? parts : Array(3).fill(parts.reduce((a, b) => a + b, 0) / parts.length);
    const out = Math.max(...shown.map((value) => Math.max(low - value, value - high)));
    if (i >= values.length) continue;
    if (shown.some((value) => !Number.isFinite(value))) pixels.set([211, 47, 47, 255], i * 4);
    else if (out > span * 1e-3) pixels.set([...outside(out / far), 255], i * 4);
    else pixels.set([...shown.map((value) => ((value - low) / span) * 255), 255], i * 4);
  }
  return pixels;
}

/** Light to dark red by how far a value is out, in [0, 1]. @param {number} share */
function outside(share) {
  const t = Math.sqrt(Math.min(1, share));
  return [255 - 72 * t, 205 - 177 * t, 205 - 177 * t];
}

/**
 * A relevance map as translucent pixels in the contribution colours.
 *
 * @param {Numbers} values shaped as the input
 * @param {Shape} shape
 * @param {number} largest
 * @param {(value: number) => string} scale
 */
export function toOverlay(values, { width, height, channels }, largest, scale) {
  const pixels = new Uint8ClampedArray(width * height * 4);
  const plane = width * height;
  for (let i = 0; i < plane; i++) {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += values[c * plane + i] ?? 0;
    const share = Math.max(-1, Math.min(1, sum / (largest || 1)));
    pixels.set([...rgb(scale(Math.sign(share))), Number.isFinite(share) ? Math.sqrt(Math.abs(share)) * 215 : 255], i * 4);
  }
  return pixels;
}

/** @param {Iterable<number>} values @returns {[number, number]} */
function finiteRange(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return low <= high ? [low, high] : [0, 1];
}

/** @param {{ message: Message, range: string, overlay: boolean }} props */
function Examples({ message, range, overlay }) {
  const { examples, axes, layers, relevance } = message.header;
  const { inputs, statistics } = message.arrays;
  const shape = imageShape(axes, inputs.shape);
  const size = inputs.shape.slice(1).reduce((a, b) => a * b, 1);
  const rows = useMemo(() => examples.map((/** @type {Example} */ _, /** @type {number} */ i) => inputs.values.subarray(i * size, (i + 1) * size)), [message]);
  const shared = useMemo(() => {
    const normal = rows.filter((/** @type {Numbers} */ _, /** @type {number} */ i) => examples[i].role === "normal");
    return finiteRange((normal.length ? normal : rows).flatMap((/** @type {Numbers} */ row) => [...row]));
  }, [message]);
  const column = layers.indexOf(layer.value?.name ?? "");
  const strength = (/** @type {number} */ i) => (column < 0 ? null : statistics.values[i * layers.length + column]);
  const card = (/** @type {Example} */ example, /** @type {number} */ i) => {
    const map = relevance.findIndex((/** @type {any} */ entry) => entry.example === i);
    return html`<${Card} key=${i} example=${example} values=${rows[i]} shape=${shape} range=${range === "own" ? finiteRange(rows[i]) : shared} strength=${strength(i)}
      map=${overlay && map >= 0 ? { values: message.arrays[`relevance_${map}`].values, largest: relevance[map].largest } : null} />`;
  };
  const group = (/** @type {string} */ role) => examples.map((/** @type {Example} */ example, /** @type {number} */ i) => (example.role === role ? card(example, i) : null));
  const normals = examples.filter((/** @type {Example} */ example) => example.role === "normal").length;
  return html`<div class="examples">
    <div class="abnormal"><h3>abnormal</h3><div>${group("abnormal")}</div></div>
    ${normals ? html`<div class="normal"><h3>normal, same batch</h3><div>${group("normal")}</div></div>` : null}
  </div>`;
}

/**
 * @param {{ example: Example, values: Numbers, shape: Shape, range: [number, number], strength: number | null,
 *           map: { values: Numbers, largest: number } | null }} props
 */
function Card({ example, values, shape, range, strength, map }) {
  const image = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  const shade = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  const [low, high] = finiteRange(values);
  const isCovered = Boolean(map); // under a relevance map, grey in its own range: two colour scales in one image cannot be read
  useEffect(() => paint(image.current, toPixels(values, shape, ...(isCovered ? /** @type {[number, number]} */ ([low, high]) : range)), shape), [values, range[0], range[1], isCovered]);
  useEffect(() => {
    if (map) paint(shade.current, toOverlay(map.values, shape, Number(map.largest), contributionScale(THEMES[theme.value])), shape);
  }, [map?.values, theme.value]);
  const name = example.index === null ? `position ${example.position}` : `#${example.index}`;
  const place = example.index === null ? "in the batch" : "dataset index";
  const id = example.index ?? example.position;
  const bad = [...values].filter((value) => !Number.isFinite(value)).length;
  return html`<button class="example" aria-pressed=${selection.value.sample === id} onClick=${() => select({ sample: id })}
    aria-label="${example.role} example, ${place} ${id}${example.label === null ? "" : `, label ${example.label}`}, values from ${formatValue(low)} to ${formatValue(high)}">
    <span class="image" style=${{ aspectRatio: `${shape.width} / ${shape.height}` }}>
      <canvas ref=${image} width=${shape.width} height=${shape.height}></canvas>
      <canvas ref=${shade} width=${shape.width} height=${shape.height} hidden=${!map}></canvas>
    </span>
    <span class="caption">
      <b title=${place}>${name}</b>
      ${example.label === null ? null : html`<small>label ${example.label}</small>`}
      <small>${formatValue(low)} … ${formatValue(high)}</small>
      ${bad ? html`<small class="bad">▲ ${bad} not finite</small>` : null}
      ${strength === null ? null : html`<small title="largest |activation| of the example in ${layer.value?.name}">|a| <b class=${example.role === "abnormal" ? "bad" : ""}>${formatValue(Number(strength.toPrecision(2)))}</b></small>`}
    </span>
  </button>`;
}

/** @param {HTMLCanvasElement | null} canvas @param {Uint8ClampedArray} pixels @param {Shape} shape */
function paint(canvas, pixels, { width, height }) {
  canvas?.getContext("2d")?.putImageData(new ImageData(/** @type {any} */ (pixels), width, height), 0, 0);
}
