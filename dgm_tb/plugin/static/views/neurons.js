// The focus layer's neurons between those of its neighbours: who contributed to whom, as colour and edge thickness.

import { html, useMemo, useRef, useState } from "../vendor/vendor.js";
import { getArrays } from "../api.js";
import { THEMES, contributionScale, magnitudeScale } from "../color.js";
import { formatCount, formatInteger, formatScaled, formatStep, formatValue, shorten, words } from "../format.js";
import { theme } from "../host.js";
import { detail, layer, quantity, revision, select, selection, statistic, step } from "../store.js";
import { Loaded, Name, Note, Panel, Switch, useResource, useSize } from "../ui.js";

/** @typedef {import("../types.d.ts").Message} Message */
/** @typedef {import("../types.d.ts").Numbers} Numbers */
/**
 * @typedef {{ index: number, layer: string, role: "source" | "focus" | "target", neurons: number, step: number | null, reason: string | null,
 *             raw: Numbers | null, scaled: Numbers | null }} Column
 * @typedef {{ neuron: number, x: number, y: number, size: number }} Cell
 */

const WITH_WEIGHTS = new Set(["weight", "update"]);
const MAX_CELLS = 1200;
const MAX_EDGES = 16;
const SAMPLES = [
  { value: "batch", label: "batch", hint: "contributions summed over the whole batch of the attributed snapshot" },
  { value: "abnormal", label: "abnormal", hint: "contributions of the finding's abnormal example alone" },
  { value: "normal", label: "normal", hint: "contributions of a normal example of the same batch" },
];
const DIRECTIONS = [
  { value: "forward", label: "forward", hint: "relevance that each neuron handed on, by the epsilon rule" },
  { value: "backward", label: "backward", hint: "contributions from the gradients" },
];

export function Neurons() {
  const run = detail.value;
  const at = layer.value;
  const [samples, setSamples] = useState("batch");
  const [direction, setDirection] = useState("forward");
  const neuron = selection.value.neurons.find((number) => at && number < at.neurons) ?? null;
  const query = { run: run?.run, layer: at?.name, neuron, step: step.value, samples };
  const key = run && at ? JSON.stringify(query) : null;
  const resource = useResource(key, revision.value, () => getArrays("contributions", query, revision.value), 120);
  const ownQuery = { run: run?.run, layer: at?.name, step: step.value };
  // The windows' numbers for all neurons, and the step's own for those whose polyline was kept.
  const own = useResource(key && JSON.stringify(ownQuery), revision.value, () => getArrays("neurons", ownQuery, revision.value), 120);
  const exactQuery = { ...ownQuery, step: null, first: step.value, last: step.value, quantity: quantity.value, statistic: statistic.value, k: 2000 };
  const hasValues = at && (at.has_weights !== false || !WITH_WEIGHTS.has(quantity.value));
  const exact = useResource(key && hasValues ? JSON.stringify(exactQuery) : null, revision.value, () => getArrays("dynamics", exactQuery, revision.value), 120);
  const title = at && html`<${Name} name=${at.name} /> ${neuron === null ? formatCount(at.neurons, "neuron") : html`<b>#${neuron}</b>`}`;
  return html`<${Panel}
    name="Neurons" className="area-neurons" title=${title}
    tools=${html`<${Switch} label="direction" value=${direction} options=${DIRECTIONS} onChange=${setDirection} />
      <${Switch} label="examples" value=${samples} options=${SAMPLES.map((option) => ({ ...option, disabled: option.value !== "batch" && !run?.finding_snapshots.length }))} onChange=${setSamples} />`}
    footer=${resource.value && !resource.error ? html`<${Legend} message=${resource.value} neuron=${neuron} />` : null}
  >
    ${at
      ? html`<${Loaded} resource=${resource} rows=${5}>
          ${(/** @type {Message} */ message) => html`<${Columns} message=${message} own=${own.value} exact=${exact.value} direction=${direction} neuron=${neuron} />`}
        <//>`
      : html`<${Note}>${run ? "Click a layer in the model to see its neurons." : ""}<//>`}
  <//>`;
}

/** @param {{ message: Message, neuron: number | null }} props */
function Legend({ message, neuron }) {
  const used = message.header.columns.find((/** @type {any} */ column) => column.step !== null);
  const { negative, middle, positive } = THEMES[theme.value];
  return html`<span class="ramp">−1<i style=${{ background: `linear-gradient(90deg, ${negative}, ${middle}, ${positive})` }}></i>+1</span>
    <span>${neuron === null ? "totals over the layer; click a neuron to trace it" : "contribution from and to the neuron"}</span>
    ${used ? html`<span>attributed at step ${formatStep(used.step)}</span>` : null}`;
}

/** @param {Message} message @param {string} direction @returns {Column[]} */
function readColumns(message, direction) {
  const whyNot = (/** @type {string} */ target) => detail.value?.layers.find((entry) => entry.name === target)?.contribution;
  return message.header.columns.map((/** @type {any} */ column, /** @type {number} */ index) => {
    const isRecorded = column.directions.includes(direction);
    const known = whyNot(column.role === "source" ? message.header.layer : column.layer);
    const missing = column.role !== "focus" && !isRecorded ? `no ${direction} contribution was recorded for these examples` : null;
    return {
      ...column, index,
      reason: (column.reason && known) || (column.reason ?? missing),
      raw: message.arrays[`${direction}_${index}`]?.values ?? null,
      scaled: message.arrays[`${direction}_scaled_${index}`]?.values ?? null,
    };
  });
}

/**
 * The focus layer's values at the focus snapshot: the quantity on screen, else (a layer without weights) its activation.
 *
 * @param {Message | null} own window values of all neurons @param {Message | null} exact values of this very step
 * @param {string} wanted @returns {{ name: string, values: Numbers | undefined, dead: Numbers | undefined }}
 */
export function focusValues(own, exact, wanted) {
  const name = own?.arrays[wanted] ? wanted : own?.header.names[0] ?? wanted;
  const values = own?.arrays[name]?.values.slice();
  if (values && exact && name === wanted) {
    const columns = exact.arrays.steps.shape[0];
    exact.arrays.neurons.values.forEach((neuron, row) => {
      const value = exact.arrays.values.values[row * columns];
      if (columns && (Number.isFinite(value) || exact.arrays.nonfinite.values[row * columns])) values[neuron] = value;
    });
  }
  return { name, values, dead: own?.arrays.dead?.values };
}

/** @param {{ message: Message, own: Message | null, exact: Message | null, direction: string, neuron: number | null }} props */
function Columns({ message, own, exact, direction, neuron }) {
  const host = useRef(/** @type {HTMLElement | null} */ (null));
  const [width, height] = useSize(host);
  const [chosen, setChosen] = useState(/** @type {Record<string, string>} */ ({}));
  const all = useMemo(() => readColumns(message, direction), [message, direction]);
  const wanted = `${quantity.value}.${statistic.value}`;
  const focus = useMemo(() => focusValues(own, exact, wanted), [own, exact, wanted]);
  const shown = ["source", "focus", "target"].map((role) => {
    const options = all.filter((column) => column.role === role);
    return { role, options, column: options.find((column) => column.layer === chosen[role]) ?? options.find((column) => !column.reason) ?? options[0] };
  });
  return html`<div class="columns">
    <div class="column-heads">
      ${shown.map(({ role, options, column }) => html`<${Head} key=${role} role=${role} column=${column} options=${options}
        onChange=${(/** @type {string} */ name) => setChosen({ ...chosen, [role]: name })} />`)}
    </div>
    <div class="cells" ref=${host}>
      ${width > 60 && height > 40 && html`<${Drawing} columns=${shown.map(({ column }) => column)} focus=${focus} neuron=${neuron} width=${width} height=${height} />`}
    </div>
  </div>`;
}

/** @param {{ role: string, column: Column | undefined, options: Column[], onChange: (layer: string) => void }} props */
function Head({ role, column, options, onChange }) {
  const label = { source: "from", focus: "focus", target: "to" }[role];
  if (!column) return html`<div class="column-head"><span>${label}</span> –</div>`;
  return html`<div class="column-head" title="${column.layer}, ${formatCount(column.neurons, "neuron")}${role === "focus" ? `; darker is farther from the layer's median ${quantity.value} ${words(statistic.value)}` : ""}">
    <span>${label}</span>
    ${options.length > 1
      ? html`<select aria-label="${label} layer" value=${column.layer} onChange=${(/** @type {any} */ event) => onChange(event.currentTarget.value)}>
          ${options.map((option) => html`<option key=${option.layer} value=${option.layer} selected=${option === column}>${option.layer}</option>`)}
        </select>`
      : html`<${Name} name=${column.layer} />`}
    <small>${column.neurons > MAX_CELLS ? `${formatInteger(MAX_CELLS)} of ` : ""}${formatInteger(column.neurons)}</small>
  </div>`;
}

/**
 * Cells of one column in reading order: as large as fits, all if they fit, else the strongest.
 *
 * @param {number} count @param {Numbers | null} strength
 * @param {{ x: number, y: number, width: number, height: number }} area
 * @param {number | null} always a neuron that must be among them
 * @returns {Cell[]}
 */
export function placeCells(count, strength, area, always) {
  let neurons = Array.from({ length: count }, (_, i) => i);
  if (count > MAX_CELLS) {
    const size = (/** @type {number} */ i) => (i === always ? Infinity : strength ? Math.abs(strength[i]) || 0 : 0);
    neurons = neurons.sort((a, b) => size(b) - size(a)).slice(0, MAX_CELLS).sort((a, b) => a - b);
  }
  let size = 24;
  while (size > 3 && Math.floor(area.width / size) * Math.floor(area.height / size) < neurons.length) size -= size > 8 ? 1 : 0.5;
  const perRow = Math.max(1, Math.min(Math.floor(area.width / size), Math.ceil(neurons.length / Math.max(1, Math.floor(area.height / size)))));
  const rows = Math.ceil(neurons.length / perRow);
  const left = area.x + (area.width - perRow * size) / 2;
  const top = area.y + Math.max(0, (area.height - rows * size) / 2);
  return neurons.map((neuron, i) => ({ neuron, size, x: left + (i % perRow) * size, y: top + Math.floor(i / perRow) * size }));
}

/** How far each neuron of the focus layer is from the layer's middle, in [0, 1]; NaN where it is not finite. @param {Numbers | undefined} values */
export function unusualness(values) {
  if (!values) return null;
  const finite = [...values].filter(Number.isFinite).sort((a, b) => a - b);
  const middle = finite[finite.length >> 1] ?? 0;
  const spread = Math.max(...finite.map((value) => Math.abs(value - middle)), 1e-30);
  return Float32Array.from(values, (value) => (Number.isFinite(value) ? Math.abs(value - middle) / spread : NaN));
}

/** @typedef {ReturnType<typeof focusValues>} FocusValues */

/** @param {{ columns: (Column | undefined)[], focus: FocusValues, neuron: number | null, width: number, height: number }} props */
function Drawing({ columns, focus: { name, values, dead }, neuron, width, height }) {
  const [pointed, setPointed] = useState(/** @type {DOMStringMap | null} */ (null));
  const colors = THEMES[theme.value];
  const gap = Math.max(36, width * 0.11);
  const columnWidth = (width - 2 * gap) / 3;
  const placed = useMemo(
    () => columns.map((column, i) => column && {
      column,
      cells: column.reason ? [] : placeCells(column.neurons, column.scaled, { x: i * (columnWidth + gap), y: 4, width: columnWidth, height: height - 8 }, i === 1 ? neuron : null),
    }),
    [columns.map((column) => column?.layer).join(), columns[0]?.scaled, columns[2]?.scaled, width, height, neuron],
  );
  const cells = useMemo(() => {
    const contribution = contributionScale(colors);
    const magnitude = magnitudeScale(colors);
    const odd = unusualness(values);
    return placed.map((item) => item?.cells.map((cell) => {
      const value = item.column.role === "focus" ? odd?.[cell.neuron] : item.column.scaled?.[cell.neuron];
      const isKnown = value !== undefined && Number.isFinite(value);
      const fill = !isKnown ? colors.sunken : item.column.role === "focus" ? magnitude(value) : contribution(value);
      const inset = cell.size > 7 ? 1 : 0.25;
      const [x, y, r] = [cell.x + cell.size / 2, cell.y + cell.size / 2, cell.size * 0.22];
      return html`<rect key=${`${item.column.index} ${cell.neuron}`} data-column=${item.column.index} data-neuron=${cell.neuron}
          x=${cell.x + inset / 2} y=${cell.y + inset / 2} width=${cell.size - inset} height=${cell.size - inset} fill=${fill} />
        ${value !== undefined && !isKnown && html`<path class="nan" d="M${x} ${y - r}l${r} ${r * 1.8}h${-2 * r}z" />`}
        ${item.column.role === "focus" && dead?.[cell.neuron] ? html`<path class="dead" d="M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}" />` : null}`;
    }));
  }, [placed, colors, values, dead]);
  const find = (/** @type {DOMStringMap | null} */ data) => {
    const item = placed.find((entry) => entry && String(entry.column.index) === data?.column);
    const cell = item?.cells.find((entry) => String(entry.neuron) === data?.neuron);
    return item && cell ? { column: item.column, cell } : null;
  };
  const hovered = find(pointed); // looked up anew: the numbers under a resting pointer may change
  const pick = (/** @type {any} */ event) => {
    const hit = find(event.target.dataset);
    if (hit) select({ layer: hit.column.layer, neurons: [hit.cell.neuron], finding: hit.column.role === "focus" ? selection.value.finding : "" });
  };
  const focus = neuron === null ? null : placed[1]?.cells.find((cell) => cell.neuron === neuron) ?? null;
  const others = selection.value.neurons.slice(1).flatMap((number) => placed[1]?.cells.filter((cell) => cell.neuron === number) ?? []);
  return html`<svg class="neurons" width=${width} height=${height} onMouseMove=${(/** @type {any} */ event) => setPointed(event.target.dataset)}
      onMouseLeave=${() => setPointed(null)} onClick=${pick} role="img" aria-label="Contributions around ${columns[1]?.layer ?? ""}${neuron === null ? "" : ` neuron ${neuron}`}">
    <g class=${hovered && hovered.column.role !== "focus" ? "quiet" : ""}>${cells}</g>
    ${focus && html`<${Edges} placed=${placed} focus=${focus} hovered=${hovered} />`}
    ${others.map((cell) => html`<${Ring} key=${cell.neuron} cell=${cell} className="ring other" />`)}
    ${focus && html`<${Ring} cell=${focus} className="ring" />`}
    ${hovered && html`<${Ring} cell=${hovered.cell} className="ring hover" />`}
  </svg>
  ${placed.map((item, i) => {
    const reason = item ? item.column.reason : i === 0 ? "No recorded layer before this one." : "No recorded layer after this one.";
    return reason && html`<p key=${i} class="no-matrix" style=${{ left: `${i * (columnWidth + gap)}px`, width: `${columnWidth}px` }}>${reason}</p>`;
  })}
  ${hovered && html`<${Tip} hovered=${hovered} name=${name} value=${values?.[hovered.cell.neuron]} isDead=${dead?.[hovered.cell.neuron]} width=${width} />`}`;
}

/** @param {{ cell: Cell, className: string }} props */
function Ring({ cell, className }) {
  const size = Math.max(cell.size, 8);
  const [x, y] = [cell.x + cell.size / 2 - size / 2, cell.y + cell.size / 2 - size / 2];
  return html`<rect class=${className} x=${x - 1} y=${y - 1} width=${size + 2} height=${size + 2} rx="2" />`;
}

/** The strongest contributions from and to the focus neuron; under the pointer, that one alone. @param {any} props */
function Edges({ placed, focus, hovered }) {
  const scale = contributionScale(THEMES[theme.value]);
  const to = [focus.x + focus.size / 2, focus.y + focus.size / 2];
  return [placed[0], placed[2]].flatMap((item, side) => {
    if (!item?.column.scaled) return [];
    const { scaled } = item.column;
    const isHovered = hovered && hovered.column === item.column;
    const strongest = isHovered
      ? [hovered.cell]
      : [...item.cells].sort((a, b) => Math.abs(scaled[b.neuron]) - Math.abs(scaled[a.neuron])).filter((cell) => Math.abs(scaled[cell.neuron]) > 0.02).slice(0, MAX_EDGES);
    return strongest.map((cell) => {
      const [x, y] = [cell.x + cell.size / 2, cell.y + cell.size / 2];
      const middle = (x + to[0]) / 2;
      const value = scaled[cell.neuron];
      return html`<path key=${`${side} ${cell.neuron}`} class="edge" d="M${x} ${y}C${middle} ${y} ${middle} ${to[1]} ${to[0]} ${to[1]}"
        stroke=${scale(Math.sign(value) * Math.max(0.35, Math.abs(value)))} stroke-width=${0.75 + 4 * Math.min(1, Math.abs(value) || 0)} stroke-dasharray=${value < 0 ? "5 3" : "none"} />`;
    });
  });
}

/** Raw and scaled numbers of the neuron under the pointer. @param {{ hovered: { column: Column, cell: Cell }, name: string, value: number | undefined, isDead: number | undefined, width: number }} props */
function Tip({ hovered: { column, cell }, name, value, isDead, width }) {
  const { neuron } = cell;
  const lines = column.role === "focus"
    ? [`${words(name.replace(".", " "))} ${formatValue(value ?? NaN)}`, isDead ? "dead: exactly zero" : ""]
    : column.raw && column.scaled ? [`${formatScaled(column.scaled[neuron])} scaled`, `${formatValue(column.raw[neuron])} raw`] : [];
  const isRight = cell.x > width / 2;
  const style = { top: `${Math.max(0, cell.y - 8)}px`, [isRight ? "right" : "left"]: `${isRight ? width - cell.x + 10 : cell.x + cell.size + 10}px` };
  return html`<div class="tip" style=${style}><b>${shorten(column.layer, 26)} #${neuron}</b>${lines.filter(Boolean).map((line) => html`<span key=${line}>${line}</span>`)}</div>`;
}
