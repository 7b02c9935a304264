// The chart of a layer's neurons: density of all, a blue-noise sample as hairlines, the outliers, what is hovered and chosen.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/vendor.js";
import { ask, getArrays } from "../api.js";
import { Chart } from "../chart.js";
import { THEMES, rgb } from "../color.js";
import { formatValue, words } from "../format.js";
import { theme } from "../host.js";
import { drawBand, drawImage, drawLabel, drawLine, drawNonfinite, nearestLine, nonfiniteMarks } from "../marks.js";
import { nearestIndex } from "../scales.js";
import { bounds, hoverStep, quantity, range, select, selection, statistic, step } from "../store.js";
import { useResource, useSize } from "../ui.js";

/** @typedef {import("../types.d.ts").Message} Message */
/** @typedef {import("../types.d.ts").Numbers} Numbers */
/** @typedef {import("../api.js").Query} Query */
/**
 * @typedef {{ neuron: number, steps: Numbers, values: Float32Array, codes: Uint8Array, isOutlier: boolean, isDrawn: boolean }} Line
 * @typedef {{ header: Record<string, any>, steps: Numbers, lines: Line[], quantiles: Float32Array[] }} Swarm
 * @typedef {{ scale: import("../scales.js").Scale, threshold: number, yRange: [number, number] }} Axis
 */

const LABELS = 4;
const MAX_CHOSEN = 128;
const CELL = 2;
const REST_MS = 70;

/** @param {Message} message @param {number} smoothing @returns {Swarm} */
export function toSwarm({ header, arrays }, smoothing) {
  return { header, steps: arrays.steps.values, lines: toLines(arrays, smoothing, true), quantiles: rowsOf(arrays.quantiles) };
}

/** @param {Message["arrays"]} arrays @param {number} smoothing @param {boolean} isDrawn @returns {Line[]} */
function toLines({ steps, values, nonfinite, neurons, outlier }, smoothing, isDrawn) {
  const codes = rowsOf(nonfinite);
  return rowsOf(values).map((row, i) => ({
    neuron: neurons.values[i], steps: steps.values, values: smoothed(row, smoothing), codes: codes[i],
    isOutlier: Boolean(outlier?.values[i]), isDrawn,
  }));
}

/** @param {import("../types.d.ts").WireArray} array @returns {any[]} */
function rowsOf({ shape, values }) {
  return Array.from({ length: shape[0] }, (_, i) => values.subarray(i * shape[1], (i + 1) * shape[1]));
}

/** Exponential smoothing as TensorBoard does it: without bias at the beginning, past what is not finite. @param {Float32Array} values @param {number} weight */
export function smoothed(values, weight) {
  if (!weight) return values;
  let [last, mass] = [0, 0];
  return values.map((value) => {
    if (!Number.isFinite(value)) return value;
    last = last * weight + (1 - weight) * value;
    mass = mass * weight + (1 - weight);
    return last / mass;
  });
}

/**
 * @param {{ swarm: Swarm, query: Query, version: string, axis: Axis, drag: any, smoothing: number, chartRef: (chart: Chart | null) => void,
 *           onZoom: (steps: [number, number] | null, values: [number, number] | null) => void, onStroke: (stroke: any) => void }} props
 */
export function SwarmChart({ swarm, query, version, axis, drag, smoothing, chartRef, onZoom, onStroke }) {
  const host = useRef(/** @type {HTMLElement | null} */ (null));
  const chart = useRef(/** @type {Chart | null} */ (null));
  const [hovered, setHovered] = useState(/** @type {Line | null} */ (null));
  const [first, last] = range.value ?? bounds.value;
  const density = useDensity(query, version, axis, useSize(host), [first, last]);
  const chosen = useChosen(swarm, query, version, smoothing);
  const state = useMemo(() => ({
    xRange: /** @type {[number, number]} */ ([first, Math.max(last, first + 1)]),
    scale: axis.scale, yRange: axis.yRange, theme: THEMES[theme.value], drag,
    draw: drawSwarm(swarm, density, axis),
  }), [swarm, density, axis, first, last, drag, theme.value]);
  const current = useRef(/** @type {any} */ (null));
  current.current = { swarm, query, axis, hovered, smoothing, onZoom, onStroke };
  useEffect(() => {
    const rest = restingPointer(current, chart, setHovered);
    chart.current = new Chart(/** @type {HTMLElement} */ (host.current), state, {
      onPick: (at, event) => pick(current.current.hovered, at, event),
      onZoom: (steps, values) => current.current.onZoom(steps, values),
      onStroke: (stroke) => current.current.onStroke(stroke),
      onHover: (at, value, distance) => {
        hoverStep.value = at;
        const { steps, lines } = current.current.swarm;
        const column = at === null || !steps.length ? 0 : nearestIndex(steps, at);
        const nearest = at === null ? -1 : nearestLine(lines.map((/** @type {Line} */ line) => line.values), column, steps[column], distance);
        setHovered(nearest < 0 ? null : lines[nearest]);
        rest(at, value);
      },
    });
    chartRef(chart.current);
    return () => { rest(null, 0); chartRef(null); chart.current?.destroy(); };
  }, []);
  useEffect(() => chart.current?.update(state), [state]);
  useEffect(() => {
    chart.current?.setOverlay(drawMarked(swarm, chosen, hovered, hoverStep.value), hovered ? 0.4 : chosen.length ? 0.7 : 1);
    chart.current?.setLines(step.value, hoverStep.value);
  }, [state, hovered, hoverStep.value, step.value, chosen]);
  return html`<div class="chart ${hovered ? "has-hover" : ""}" ref=${host} role="img"
    aria-label="${words(statistic.value)} of the ${quantity.value} of ${swarm.lines.length} neurons over steps ${first} to ${last}"></div>`;
}

/** A click: the hovered neuron (Shift adds, Alt removes), else the step. @param {Line | null} line @param {number} at @param {MouseEvent} event */
function pick(line, at, event) {
  const known = selection.peek().neurons;
  if (!line) select({ step: at });
  else if (event.altKey) select({ neurons: known.filter((neuron) => neuron !== line.neuron) });
  else select({ neurons: event.shiftKey ? [line.neuron, ...known.filter((neuron) => neuron !== line.neuron)] : [line.neuron] });
}

/** How many neurons pass where, as an image. @param {Query} query @param {string} version @param {Axis} axis @param {[number, number]} size @param {[number, number]} steps */
function useDensity(query, version, axis, [width, height], [first, last]) {
  const [low, high] = axis.yRange;
  const asked = { ...query, first, last, low, high, width: Math.min(1200, Math.round(width / CELL)), height: Math.min(500, Math.round(height / CELL)) };
  const resource = useResource(width > 60 && height > 40 ? JSON.stringify(asked) : null, version, () => getArrays("density", asked, version), 60);
  const message = resource.value;
  return useMemo(() => message && { ...message.header, image: toImage(message.arrays.density, THEMES[theme.value].band) }, [message, theme.value]);
}

/** @param {import("../types.d.ts").WireArray} array @param {string} color */
function toImage({ shape: [height, width], values }, color) {
  const canvas = Object.assign(document.createElement("canvas"), { width: Math.max(width, 1), height: Math.max(height, 1) });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(canvas.width, canvas.height);
  const [red, green, blue] = rgb(color);
  values.forEach((value, i) => value && image.data.set([red, green, blue, 12 + 0.55 * value], 4 * i));
  context.putImageData(image, 0, 0);
  return canvas;
}

/** The lines of the chosen neurons, drawn already or not. @param {Swarm} swarm @param {Query} query @param {string} version @param {number} smoothing @returns {Line[]} */
function useChosen(swarm, query, version, smoothing) {
  const wanted = selection.value.neurons.filter((neuron) => neuron < swarm.header.neurons).slice(0, MAX_CHOSEN);
  const drawn = new Map(swarm.lines.map((line) => [line.neuron, line]));
  const missing = wanted.filter((neuron) => !drawn.has(neuron));
  const asked = { ...query, neurons: missing.join(",") };
  const resource = useResource(missing.length ? JSON.stringify(asked) : null, version, () => getArrays("lines", asked, version), 60);
  const fetched = useMemo(() => (resource.value ? toLines(resource.value.arrays, smoothing, false) : []), [resource.value, smoothing]);
  return useMemo(() => {
    const extra = new Map(fetched.map((line) => [line.neuron, line]));
    return wanted.flatMap((neuron) => drawn.get(neuron) ?? extra.get(neuron) ?? []);
  }, [swarm, fetched, selection.value.neurons]);
}

/**
 * Asks for the nearest of *all* neurons where the pointer rests.
 *
 * @param {{ current: any }} current @param {{ current: Chart | null }} chart @param {(line: Line | null) => void} setHovered
 * @returns {(at: number | null, value: number) => void}
 */
function restingPointer(current, chart, setHovered) {
  let timer = 0;
  let asked = 0;
  return (at, value) => {
    clearTimeout(timer);
    const number = ++asked;
    if (at === null) return;
    timer = window.setTimeout(async () => {
      const { query, axis, swarm, smoothing } = current.current;
      if (swarm.lines.length >= swarm.header.neurons) return;
      try {
        const { arrays } = await ask("nearest", { ...query, step: at, value: axis.scale.apply(value), limit: 1 });
        const pixels = (arrays.distance.values[0] / (axis.yRange[1] - axis.yRange[0])) * (chart.current?.size[1] ?? 0);
        if (number !== asked || !(pixels < 28)) return;
        const neuron = arrays.neurons.values[0];
        const drawn = swarm.lines.find((/** @type {Line} */ line) => line.neuron === neuron);
        const line = drawn ?? toLines((await ask("lines", { ...query, neurons: String(neuron) })).arrays, smoothing, false)[0];
        if (number === asked) setHovered(line);
      } catch {
        // the drawn line that is nearest stays
      }
    }, REST_MS);
  };
}

/** All that does not change under the pointer. @param {Swarm} swarm @param {any} density @param {Axis} axis @returns {import("../chart.js").Draw} */
function drawSwarm({ steps, lines, quantiles }, density, { scale }) {
  return (context, view) => {
    const { theme: colors } = view;
    if (density) {
      drawImage(context, density.image, view.x(density.first), view.y(scale.invert(density.high)), view.x(density.last), view.y(scale.invert(density.low)));
    } else {
      context.globalAlpha = 0.14;
      drawBand(context, view, steps, quantiles[0], quantiles[4], colors.band);
      context.globalAlpha = 1;
    }
    // One device pixel: wider strokes leave the browser's hairline path and cost five to ten times as much.
    const alpha = lineAlpha(lines, view) * (density ? 0.55 : 1);
    for (const line of lines) if (!line.isOutlier) drawLine(context, view, line.steps, line.values, { color: colors.sample, alpha });
    for (const row of [quantiles[0], quantiles[4]]) drawLine(context, view, steps, row, { color: colors.text, alpha: 0.28, dash: [1, 3] });
    drawLine(context, view, steps, quantiles[2], { color: colors.text, alpha: 0.5, dash: [4, 3] });
    for (const line of lines) if (line.isOutlier) drawLine(context, view, line.steps, line.values, { color: colors.anomaly });
    for (const line of lines) {
      drawNonfinite(context, view, nonfiniteMarks(line.steps, line.values, line.codes), colors.anomaly, { size: 3, spacing: line.isOutlier ? 40 : Infinity });
    }
  };
}

/** Opacity of the sampled lines: less where they swing so much that they would fill the plot. @param {Line[]} lines @param {import("../chart.js").View} view */
function lineAlpha(lines, view) {
  const some = lines.filter((_, i) => i % Math.ceil(lines.length / 16) === 0);
  let ink = 0;
  for (const { values } of some) {
    for (let i = 1; i < values.length; i++) ink += Math.abs(view.y(values[i]) - view.y(values[i - 1])) || 0;
  }
  const cover = (ink / Math.max(some.length, 1)) * (lines.length / (view.width * view.height));
  return Math.max(0.12, Math.min(0.55, 0.5 / cover));
}

/**
 * The hovered line, the chosen neurons, and the numbers of the strongest outliers.
 *
 * @param {Swarm} swarm @param {Line[]} chosen @param {Line | null} hovered @param {number | null} at
 * @returns {import("../chart.js").Draw}
 */
function drawMarked({ lines }, chosen, hovered, at) {
  return (context, view) => {
    const { theme: colors, ratio } = view;
    // The focus neuron and the hovered one stand out; further chosen ones stay hairlines, or they would hide the rest.
    for (const line of new Set(hovered ? [...chosen.toReversed(), hovered] : chosen.toReversed())) {
      const color = line.isOutlier ? colors.anomaly : colors.select;
      const isMain = line === hovered || line === chosen[0];
      if (isMain) drawLine(context, view, line.steps, line.values, { color: colors.surface, width: 4 * ratio, alpha: 0.8 });
      drawLine(context, view, line.steps, line.values, { color, width: line === hovered ? 2 * ratio : isMain ? 1.5 * ratio : 1, alpha: isMain ? 1 : 0.75 });
      if (isMain) drawNonfinite(context, view, nonfiniteMarks(line.steps, line.values, line.codes), colors.anomaly);
    }
    const outliers = lines.filter((line) => line.isOutlier && !chosen.includes(line));
    const labelled = [...chosen.slice(0, LABELS), ...outliers.slice(0, LABELS)].slice(0, LABELS).filter((line) => line !== hovered);
    /** @type {number[]} */
    const taken = [];
    for (const { neuron, steps, values, codes, isOutlier } of labelled) {
      const peak = peakColumn(values);
      if (peak < 0) continue;
      const y = view.y(values[peak]);
      if (taken.some((other) => Math.abs(other - y) < 14 * ratio)) continue;
      taken.push(y);
      drawLabel(context, view, `#${neuron}`, view.x(steps[peak]), y, isOutlier ? colors.anomaly : colors.select, codes[peak + 1] > 0);
    }
    if (!hovered || at === null) return;
    const column = nearestIndex(hovered.steps, at);
    const value = hovered.values[column];
    const note = hovered.isDrawn ? "" : "  (not drawn)";
    drawLabel(context, view, `#${hovered.neuron}  ${formatValue(value)}${note}`, view.x(hovered.steps[column]), view.y(value), colors.select);
  };
}

/** Where a line is farthest from its own middle. @param {Float32Array} values */
function peakColumn(values) {
  const finite = [...values].filter(Number.isFinite).sort((a, b) => a - b);
  const middle = finite[finite.length >> 1];
  let best = -1;
  values.forEach((value, i) => {
    if (Number.isFinite(value) && (best < 0 || Math.abs(value - middle) > Math.abs(values[best] - middle))) best = i;
  });
  return best;
}
