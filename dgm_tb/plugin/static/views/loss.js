// Every loss over time, with the focus snapshot: a line through the chart and a slider under it.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/vendor.js";
import { getArrays } from "../api.js";
import { Chart, RIGHT_MARGIN, Y_AXIS_WIDTH } from "../chart.js";
import { DASHES, LOSS_COLORS, THEMES } from "../color.js";
import { formatStep, formatValue } from "../format.js";
import { theme } from "../host.js";
import { drawDot, drawLine, drawNonfinite, nonfiniteMarks } from "../marks.js";
import { extent, makeScale, nearestIndex, paddedRange, symlogThreshold } from "../scales.js";
import { bounds, detail, findings, hoverStep, range, revision, select, step } from "../store.js";
import { Loaded, Note, Panel, Select, useResource } from "../ui.js";

/** @typedef {import("../types.d.ts").Message} Message */
/** @typedef {{ name: string, steps: Float64Array, values: Float32Array, number: number }} Series */

const SCALES = [{ value: "symlog", label: "symlog" }, { value: "log", label: "log" }, { value: "linear", label: "linear" }];

export function Loss() {
  const run = detail.value;
  const [scaleName, setScale] = useState("symlog");
  const [hidden, setHidden] = useState(/** @type {string[]} */ ([]));
  const [first, last] = range.value ?? bounds.value;
  const query = { run: run?.run, columns: 800, ...(range.value ? { first, last } : {}) };
  const key = run ? JSON.stringify(query) : null;
  const resource = useResource(key, revision.value, () => getArrays("losses", query, revision.value));
  const series = useMemo(() => toSeries(resource.value), [resource.value]);
  const shown = series.filter((item) => !hidden.includes(item.name));
  const toggle = (/** @type {string} */ name) => setHidden(hidden.includes(name) ? hidden.filter((item) => item !== name) : [...hidden, name]);
  return html`<${Panel}
    name="Loss"
    className="area-loss"
    title=${html`<${Legend} series=${series} hidden=${hidden} toggle=${toggle} skipped=${resource.value?.header.skipped ?? 0} />`}
    tools=${html`${range.value ? html`<button class="button" onClick=${() => (range.value = null)}>Reset zoom</button>` : null}
      <${Select} label="scale" hideLabel value=${scaleName} options=${SCALES} onChange=${setScale} />`}
    footer=${run ? html`<${Slider} series=${series} />` : null}
  >
    <${Loaded} resource=${resource} rows=${4}>
      ${() => (series.length ? html`<${LossChart} series=${shown} scaleName=${scaleName} />` : html`<${Note}>No loss was recorded yet: losses returned by training_step, logged, or passed to manual_backward appear here.<//>`)}
    <//>
  <//>`;
}

/** @param {Message | null} message @returns {Series[]} */
function toSeries(message) {
  if (!message) return [];
  return message.header.names.map((/** @type {string} */ name, /** @type {number} */ number) => ({
    name, number, steps: message.arrays[`steps_${number}`].values, values: message.arrays[`values_${number}`].values,
  }));
}

/** @param {Series} item */
function valueAt(item, /** @type {number} */ at) {
  return item.steps.length ? item.values[nearestIndex(item.steps, at)] : NaN;
}

/** Names, colours and values under the pointer, else at the focus snapshot. @param {{ series: Series[], hidden: string[], toggle: (name: string) => void, skipped: number }} props */
function Legend({ series, hidden, toggle, skipped }) {
  const at = hoverStep.value ?? step.value;
  return html`<ul class="legend">
    ${series.map((item) => {
      const value = valueAt(item, at);
      return html`<li key=${item.name}>
        <button aria-pressed=${!hidden.includes(item.name)} onClick=${() => toggle(item.name)} title="Show or hide ${item.name}">
          <svg width="18" height="8" aria-hidden="true"><line x2="18" y1="4" y2="4" stroke=${lossColor(item.number)} stroke-width="2" stroke-dasharray=${DASHES[item.number % DASHES.length].join(" ")} /></svg>
          <bdi>${item.name}</bdi> <b class=${Number.isFinite(value) ? "" : "bad"}>${formatValue(value)}</b>
        </button>
      </li>`;
    })}
    ${series.length ? html`<li class="at">at step ${formatStep(at)}</li>` : null}
    ${skipped ? html`<li class="at" title="The gradient scaler left their optimizer steps out">${skipped} ${skipped === 1 ? "step" : "steps"} skipped: gradient overflow</li>` : null}
  </ul>`;
}

/** @param {number} number */
function lossColor(number) {
  const colors = LOSS_COLORS[theme.value];
  return colors[number % colors.length];
}

/** @param {{ series: Series[], scaleName: string }} props */
function LossChart({ series, scaleName }) {
  const host = useRef(/** @type {HTMLElement | null} */ (null));
  const chart = useRef(/** @type {Chart | null} */ (null));
  const [first, last] = range.value ?? bounds.value;
  const state = useMemo(() => {
    const values = series.map((item) => item.values);
    const scale = makeScale(/** @type {any} */ (scaleName), symlogThreshold(values));
    const colors = series.map((item) => lossColor(item.number));
    return {
      xRange: /** @type {[number, number]} */ ([first, Math.max(last, first + 1)]),
      scale,
      yRange: paddedRange(extent(values, scale.name), scale),
      theme: THEMES[theme.value],
      draw: drawSeries(series, colors),
    };
  }, [series, scaleName, first, last, theme.value]);
  useEffect(() => {
    chart.current = new Chart(/** @type {HTMLElement} */ (host.current), state, {
      onPick: (at) => select({ step: at }),
      onZoom: (zoom) => (range.value = clampRange(zoom)),
      onHover: (at) => (hoverStep.value = at),
    });
    return () => chart.current?.destroy();
  }, []);
  useEffect(() => chart.current?.update(state), [state]);
  useEffect(() => {
    chart.current?.setLines(step.value, hoverStep.value);
  }, [step.value, hoverStep.value, state]);
  return html`<div class="chart" ref=${host} role="img" aria-label="Losses from step ${first} to ${last}"></div>`;
}

/** A zoom inside what is recorded, or null for all. @param {[number, number] | null} zoom @returns {[number, number] | null} */
export function clampRange(zoom) {
  const [low, high] = bounds.peek();
  if (!zoom) return null;
  const [first, last] = [Math.max(low, zoom[0]), Math.min(high, zoom[1])];
  return (first <= low && last >= high) || last - first < 1 ? null : [first, last];
}

/** @param {Series[]} series @param {string[]} colors @returns {import("../chart.js").Draw} */
function drawSeries(series, colors) {
  return (context, view) => {
    series.forEach(({ steps, values, number }, i) => {
      drawLine(context, view, steps, values, { color: colors[i], width: Math.max(1, 1.3 * view.ratio), dash: DASHES[number % DASHES.length] });
      if (steps.length < view.width / 12) steps.forEach((at, k) => drawDot(context, view.x(at), view.y(values[k]), 1.8 * view.ratio, colors[i]));
    });
    series.forEach(({ steps, values }) => drawNonfinite(context, view, nonfiniteMarks(steps, values, null), view.theme.anomaly));
  };
}

/** The focus snapshot as a real slider, with the findings marked on its track. @param {{ series: Series[] }} props */
function Slider({ series }) {
  const [low, high] = bounds.value;
  const at = step.value;
  const loss = series.length ? `, ${series[0].name} ${formatValue(valueAt(series[0], at))}` : "";
  const onKey = (/** @type {KeyboardEvent} */ event) => {
    const by = { ArrowLeft: -10, ArrowRight: 10 }[event.key];
    if (!event.shiftKey || !by) return;
    event.preventDefault();
    select({ step: Math.max(low, Math.min(high, at + by)) });
  };
  const marks = (findings.value ?? []).filter((finding) => finding.severity !== "info");
  return html`<div class="slider" style=${{ paddingLeft: `${Y_AXIS_WIDTH}px`, paddingRight: `${RIGHT_MARGIN}px` }}>
    <output>${formatStep(at)}</output>
    <div class="track">
      ${marks.map((finding) => html`<i key=${finding.id} class=${finding.severity} style=${{ left: `${((finding.step - low) / Math.max(high - low, 1)) * 100}%` }}></i>`)}
      <input
        type="range" aria-label="focus snapshot" aria-valuetext="step ${formatStep(at)}${loss}"
        min=${low} max=${Math.max(high, low)} step="1" value=${at}
        onInput=${(/** @type {any} */ event) => select({ step: Number(event.currentTarget.value) })} onKeyDown=${onKey}
      />
    </div>
  </div>`;
}
