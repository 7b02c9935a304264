// Training dynamics of the focus layer: a blue-noise sample of its neurons as hairlines over the distribution of all.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/vendor.js";
import { getArrays } from "../api.js";
import { Chart } from "../chart.js";
import { THEMES } from "../color.js";
import { formatCount, formatStep, formatValue, words } from "../format.js";
import { theme } from "../host.js";
import { drawBand, drawLabel, drawLine, drawNonfinite, nearestLine, nonfiniteMarks } from "../marks.js";
import { extent, makeScale, nearestIndex, paddedRange, symlogThreshold } from "../scales.js";
import { bounds, detail, hoverStep, layer, quantity, range, revision, select, selection, statistic, step } from "../store.js";
import { Loaded, Name, Note, Panel, Select, useResource } from "../ui.js";
import { clampRange } from "./loss.js";

/** @typedef {import("../types.d.ts").Message} Message */
/**
 * @typedef {{ steps: Float64Array, lines: Float32Array[], codes: Uint8Array[], neurons: Int32Array, isOutlier: Uint8Array,
 *             quantiles: Float32Array[] }} Dynamics
 */

const SCALES = [{ value: "symlog", label: "symlog" }, { value: "linear", label: "linear" }];
const LABELS = 4;
const WITH_WEIGHTS = new Set(["weight", "update"]);

export function Dynamics() {
  const run = detail.value;
  const at = layer.value;
  const [scaleName, setScale] = useState("symlog");
  const query = {
    run: run?.run, layer: at?.name, quantity: quantity.value, statistic: statistic.value, k: 64, columns: 400,
    ...(range.value ? { first: range.value[0], last: range.value[1] } : {}),
  };
  const missing = at && WITH_WEIGHTS.has(quantity.value) && at.has_weights === false;
  const key = run && at && query.statistic && !missing ? JSON.stringify(query) : null;
  const resource = useResource(key, revision.value, () => getArrays("dynamics", query, revision.value));
  const lines = useMemo(() => toLines(resource.value), [resource.value]);
  return html`<${Panel}
    name="Dynamics"
    className="area-dynamics"
    title=${at ? html`<${Name} name=${at.name} /> ${at.type} · ${formatCount(at.neurons, "neuron")}` : ""}
    tools=${html`<${Quantities} /><${Select} label="scale" hideLabel value=${scaleName} options=${SCALES} onChange=${setScale} />`}
    footer=${resource.value && !resource.error ? html`<${Disclosure} header=${resource.value.header} lines=${lines} />` : null}
  >
    ${missing
      ? html`<${Note}>${at.type} ${at.name} has no weights of its own: choose activation or gradient, or a layer with weights.<//>`
      : at
      ? html`<${Loaded} resource=${resource} rows=${6}>
          ${() => lines && html`<${DynamicsChart} lines=${lines} scaleName=${scaleName} />`}
        <//>`
      : html`<${Note}>${run ? "Click a layer in the model to see how its neurons trained." : ""}<//>`}
  <//>`;
}

/** Which quantity and statistic all views show. */
export function Quantities() {
  const recorded = detail.value?.statistics ?? {};
  const statistics = recorded[quantity.value] ?? [];
  return html`<${Select} label="quantity" hideLabel value=${quantity.value} options=${Object.keys(recorded)}
      onChange=${(/** @type {string} */ value) => select({ quantity: value, statistic: "" })} />
    <${Select} label="statistic" hideLabel value=${statistic.value} options=${statistics}
      onChange=${(/** @type {string} */ value) => select({ statistic: value })} />`;
}

/** @param {Message | null} message @returns {Dynamics | null} */
function toLines(message) {
  if (!message) return null;
  const { steps, values, nonfinite, neurons, outlier, quantiles } = message.arrays;
  const columns = steps.shape[0];
  const rows = (/** @type {any} */ array) =>
    Array.from({ length: array.shape[0] }, (_, i) => array.values.subarray(i * columns, (i + 1) * columns));
  return /** @type {Dynamics} */ ({
    steps: steps.values, lines: rows(values), codes: rows(nonfinite), neurons: neurons.values, isOutlier: outlier.values,
    quantiles: rows(quantiles),
  });
}

/** How much of the layer is on screen. @param {{ header: Record<string, any>, lines: Dynamics | null }} props */
function Disclosure({ header, lines }) {
  const drawn = lines?.lines.length ?? 0;
  const all = header.neurons;
  const sampled = drawn >= all ? `all ${formatCount(all, "neuron")} drawn` : `${drawn} of ${formatCount(all, "neuron")} drawn (blue noise)`;
  return html`<span class="disclosure">
      ${sampled}, <b class=${header.outliers ? "bad" : ""}>${formatCount(header.outliers, "outlier")}</b>
      ${header.nonfinite_neurons ? html` · <b class="bad">▲ ${formatCount(header.nonfinite_neurons, "neuron")} not finite</b>` : null}
      · ${header.resolution} · band 5–95 % and 25–75 % of all
    </span>
    ${range.value
      ? html`<button class="button" onClick=${() => (range.value = null)}>${formatStep(range.value[0])}–${formatStep(range.value[1])} · reset</button>`
      : html`<span class="hint">drag to zoom</span>`}`;
}

/** @param {{ lines: Dynamics, scaleName: string }} props */
function DynamicsChart({ lines, scaleName }) {
  const host = useRef(/** @type {HTMLElement | null} */ (null));
  const chart = useRef(/** @type {Chart | null} */ (null));
  const [hovered, setHovered] = useState(-1);
  const current = useRef({ lines, hovered });
  current.current = { lines, hovered };
  const [first, last] = range.value ?? bounds.value;
  const state = useMemo(() => {
    const scale = makeScale(/** @type {any} */ (scaleName), symlogThreshold(lines.lines));
    return {
      xRange: /** @type {[number, number]} */ ([first, Math.max(last, first + 1)]),
      scale,
      yRange: paddedRange(extent([...lines.lines, lines.quantiles[0], lines.quantiles[4]]), scale),
      theme: THEMES[theme.value],
      draw: drawDynamics(lines),
    };
  }, [lines, scaleName, first, last, theme.value]);
  useEffect(() => {
    chart.current = new Chart(/** @type {HTMLElement} */ (host.current), state, {
      onPick: (at) => {
        const { lines: now, hovered: line } = current.current;
        select(line >= 0 ? { neurons: [now.neurons[line]] } : { step: at });
      },
      onZoom: (zoom) => (range.value = clampRange(zoom)),
      onHover: (at, _, distance) => {
        hoverStep.value = at;
        const { steps, lines: rows } = current.current.lines;
        const column = at === null || !steps.length ? 0 : nearestIndex(steps, at);
        setHovered(at === null ? -1 : nearestLine(rows, column, steps[column], distance));
      },
    });
    return () => chart.current?.destroy();
  }, []);
  useEffect(() => chart.current?.update(state), [state]);
  const chosen = selection.value.neurons;
  useEffect(() => {
    const marked = chosen.map((neuron) => lines.neurons.indexOf(neuron)).filter((i) => i >= 0);
    chart.current?.setOverlay(drawMarked(lines, marked, hovered, hoverStep.value), hovered >= 0 ? 0.4 : marked.length ? 0.7 : 1);
    chart.current?.setLines(step.value, hoverStep.value);
  }, [state, hovered, hoverStep.value, step.value, chosen]);
  return html`<div class="chart ${hovered >= 0 ? "has-hover" : ""}" ref=${host} role="img"
    aria-label="${words(statistic.value)} of the ${quantity.value} of ${lines.lines.length} neurons over steps ${first} to ${last}"></div>`;
}

/** All that does not change under the pointer. @param {Dynamics} lines @returns {import("../chart.js").Draw} */
function drawDynamics({ steps, lines, codes, isOutlier, quantiles }) {
  return (context, view) => {
    const { theme: colors } = view;
    context.globalAlpha = 0.14;
    drawBand(context, view, steps, quantiles[0], quantiles[4], colors.band);
    context.globalAlpha = 0.2;
    drawBand(context, view, steps, quantiles[1], quantiles[3], colors.band);
    context.globalAlpha = 1;
    // One device pixel: wider strokes leave the browser's hairline path and cost five to ten times as much.
    const alpha = lineAlpha(lines, view);
    lines.forEach((values, i) => !isOutlier[i] && drawLine(context, view, steps, values, { color: colors.sample, alpha }));
    drawLine(context, view, steps, quantiles[2], { color: colors.text, alpha: 0.5, dash: [4, 3] });
    lines.forEach((values, i) => isOutlier[i] && drawLine(context, view, steps, values, { color: colors.anomaly }));
    lines.forEach((values, i) => drawNonfinite(context, view, nonfiniteMarks(steps, values, codes[i]), colors.anomaly, { size: 3, spacing: isOutlier[i] ? 40 : Infinity }));
  };
}

/** Opacity of the sampled lines: less where they swing so much that they would fill the plot. @param {Float32Array[]} lines @param {import("../chart.js").View} view */
function lineAlpha(lines, view) {
  const some = lines.filter((_, i) => i % Math.ceil(lines.length / 16) === 0);
  let ink = 0;
  for (const values of some) {
    for (let i = 1; i < values.length; i++) ink += Math.abs(view.y(values[i]) - view.y(values[i - 1])) || 0;
  }
  const cover = (ink / Math.max(some.length, 1)) * (lines.length / (view.width * view.height));
  return Math.max(0.12, Math.min(0.55, 0.5 / cover));
}

/**
 * The hovered line, the focus neurons, and the numbers of the strongest outliers.
 *
 * @param {Dynamics} data @param {number[]} marked @param {number} hovered @param {number | null} at
 * @returns {import("../chart.js").Draw}
 */
function drawMarked({ steps, lines, codes, neurons, isOutlier }, marked, hovered, at) {
  return (context, view) => {
    const { theme: colors, ratio } = view;
    // The focus neuron and the hovered one stand out; further focus neurons stay hairlines, or they would hide the rest.
    for (const i of new Set(hovered >= 0 ? [...marked.toReversed(), hovered] : marked.toReversed())) {
      const color = isOutlier[i] ? colors.anomaly : colors.select;
      const isMain = i === hovered || i === marked[0];
      if (isMain) drawLine(context, view, steps, lines[i], { color: colors.surface, width: 4 * ratio, alpha: 0.8 });
      drawLine(context, view, steps, lines[i], { color, width: i === hovered ? 2 * ratio : isMain ? 1.5 * ratio : 1, alpha: isMain ? 1 : 0.75 });
      if (isMain) drawNonfinite(context, view, nonfiniteMarks(steps, lines[i], codes[i]), colors.anomaly);
    }
    const outliers = lines.map((_, i) => i).filter((i) => isOutlier[i] && !marked.includes(i));
    const labelled = [...marked.slice(0, LABELS), ...outliers.slice(0, LABELS)].slice(0, LABELS).filter((i) => i !== hovered);
    /** @type {number[]} */
    const taken = [];
    for (const i of labelled) {
      const peak = peakColumn(lines[i]);
      if (peak < 0) continue;
      const y = view.y(lines[i][peak]);
      if (taken.some((other) => Math.abs(other - y) < 14 * ratio)) continue;
      taken.push(y);
      drawLabel(context, view, `#${neurons[i]}`, view.x(steps[peak]), y, isOutlier[i] ? colors.anomaly : colors.select, codes[i][peak + 1] > 0);
    }
    if (hovered < 0 || at === null) return;
    const column = nearestIndex(steps, at);
    const [x, y] = [view.x(steps[column]), view.y(lines[hovered][column])];
    drawLabel(context, view, `#${neurons[hovered]}  ${formatValue(lines[hovered][column])}`, x, y, colors.select);
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
