// Training dynamics of the focus layer: its panel, with what can be asked of it. The chart itself is in swarm.js.

import { batch, html, useMemo, useRef, useState } from "../vendor/vendor.js";
import { ask, getArrays, getJson } from "../api.js";
import { EXPORTS, saveChart } from "../export.js";
import { formatCount, formatInteger, formatStep, formatValue, words } from "../format.js";
import { extent, makeScale, paddedRange, symlogThreshold } from "../scales.js";
import { detail, hoverStep, layer, quantity, range, revision, runs, select, selection, statistic } from "../store.js";
import { Loaded, Name, Note, Panel, Select, Switch, useResource } from "../ui.js";
import { clampRange } from "./loss.js";
import { SwarmChart, toSwarm } from "./swarm.js";

/** @typedef {import("./swarm.js").Swarm} Swarm */
/** @typedef {import("../api.js").Query} Query */
/** @typedef {{ neuron: number, kind: string, score: number | string, step: number, sentence: string }} Unusual */

const SCALES = [{ value: "symlog", label: "symlog" }, { value: "log", label: "log" }, { value: "linear", label: "linear" }];
const DRAGS = [
  { value: "zoom", label: "zoom", hint: "drag zooms in time, or in time and value; double-click resets" },
  { value: "box", label: "box", hint: "drag selects all neurons that pass through a box; Shift adds, Alt removes" },
  { value: "line", label: "cross", hint: "drag selects all neurons that cross a stroke; Shift adds, Alt removes" },
];
const SMOOTHINGS = [0, 0.5, 0.8, 0.9, 0.95, 0.99].map((weight) => ({ value: String(weight), label: weight ? `smooth ${weight}` : "raw" }));
const LISTED = 24;
const MAX_SELECTED = 2000;
const WITH_WEIGHTS = new Set(["weight", "update"]);

export function Dynamics() {
  const run = detail.value;
  const at = layer.value;
  const [scaleName, setScale] = useState("symlog");
  const [drag, setDrag] = useState("zoom");
  const [smoothing, setSmoothing] = useState(0);
  const [other, setOther] = useState("");
  const [question, setQuestion] = useState("");
  const query = queryOf(run?.run, at?.name);
  const missing = at && WITH_WEIGHTS.has(quantity.value) && at.has_weights === false;
  const key = run && at && query.statistic && !missing ? JSON.stringify(query) : null;
  const resource = useResource(key, revision.value, () => getArrays("dynamics", query, revision.value));
  const second = useCompared(other, key);
  const swarms = useMemo(() => [resource.value, second.value].map((message) => message && toSwarm(message, smoothing)), [resource.value, second.value, smoothing]);
  const values = useValueRange(`${key} ${scaleName}`);
  const axis = useMemo(() => commonAxis(swarms, scaleName, values.range), [swarms, scaleName, values.range]);
  const charts = useRef(/** @type {(import("../chart.js").Chart | null)[]} */ ([null, null]));
  const asked = { ...query, k: null, scale: axis.scale.name, threshold: axis.threshold };
  const zoom = (/** @type {[number, number] | null} */ steps, /** @type {[number, number] | null} */ scaled) => batch(() => {
    range.value = clampRange(steps);
    values.set(steps ? scaled ?? values.range : null);
  });
  const chart = (/** @type {number} */ i, /** @type {Query} */ own, /** @type {string} */ version) => swarms[i] && html`<${SwarmChart}
    key=${i} swarm=${swarms[i]} query=${own} version=${version} axis=${axis} drag=${drag} onZoom=${zoom} smoothing=${smoothing}
    onStroke=${(/** @type {any} */ stroke) => askWith(stroke, own)} chartRef=${(/** @type {any} */ made) => (charts.current[i] = made)} />`;
  return html`<${Panel}
    name="Dynamics"
    className="area-dynamics"
    title=${at ? html`<${Name} name=${at.name} /> ${at.type} · ${formatCount(at.neurons, "neuron")}` : ""}
    tools=${html`<${Quantities} /><${Select} label="scale" hideLabel value=${scaleName} options=${SCALES} onChange=${setScale} />`}
    footer=${resource.value && swarms[0] && !resource.error ? html`<${Disclosure} swarm=${swarms[0]} values=${values} />` : null}
  >
    ${at && !missing && resource.value && !resource.error ? html`<div class="chart-tools">
      <${Switch} label="drag" value=${drag} options=${DRAGS} onChange=${setDrag} />
      <${Select} label="smoothing" hideLabel value=${String(smoothing)} options=${SMOOTHINGS} onChange=${(/** @type {string} */ value) => setSmoothing(Number(value))} />
      <${Select} label="ask" hideLabel value=${question} onChange=${setQuestion}
        options=${[{ value: "", label: "ask …" }, { value: "unusual", label: "most unusual" }, { value: "similar", label: selection.value.neurons.length ? `more like #${selection.value.neurons[0]}` : "more like …" }]} />
      <${Select} label="compare with" hideLabel value=${other} onChange=${setOther} options=${comparable(at.name)} />
      <${Select} label="export" hideLabel value="" options=${[{ value: "", label: "export …" }, ...EXPORTS]}
        onChange=${(/** @type {string} */ format) => saveChart(format, `${at.name} ${query.quantity} ${query.statistic}`, charts.current[0], swarms[0])} />
      ${selection.value.neurons.length ? html`<${Selected} neurons=${selection.value.neurons} all=${at.neurons} />` : null}
    </div>` : null}
    ${missing
      ? html`<${Note}>${at.type} ${at.name} has no weights of its own: choose activation or gradient, or a layer with weights.<//>`
      : at
      ? html`<${Loaded} resource=${resource} rows=${6}>
          ${() => html`<div class="swarms">
            ${chart(0, asked, revision.value)}
            ${other ? html`<div class="second"><small>${other.replace(":", " ")}</small>${second.error ? html`<${Note}>${second.error.message}<//>` : chart(1, { ...asked, ...otherOf(other) }, second.version)}</div>` : null}
            ${question ? html`<${Answers} kind=${question} query=${asked} version=${revision.value} close=${() => setQuestion("")} />` : null}
          </div>`}
        <//>`
      : html`<${Note}>${run ? "Click a layer in the model to see how its neurons trained." : ""}<//>`}
  <//>`;
}

/** @param {string | undefined} run @param {string | undefined} name @returns {Query} */
function queryOf(run, name) {
  const [first, last] = range.value ?? [null, null];
  return { run, layer: name, quantity: quantity.value, statistic: statistic.value, k: 64, columns: 400, first, last };
}

/** What stands beside the layer: `run:<name>` the same layer of another run, `layer:<name>` another one of this run. @param {string} other @returns {Query} */
function otherOf(other) {
  const at = other.indexOf(":");
  return { [other.slice(0, at)]: other.slice(at + 1) };
}

/** @param {string} other @param {string | null} key */
function useCompared(other, key) {
  const query = { ...queryOf(detail.value?.run, layer.value?.name), ...otherOf(other) };
  const version = runs.value?.find((entry) => entry.run === query.run)?.revision ?? revision.value;
  const resource = useResource(other && key ? JSON.stringify(query) : null, version, () => getArrays("dynamics", query, version));
  return { ...resource, version };
}

/** @param {string} name */
function comparable(name) {
  const others = (runs.value ?? []).filter((entry) => entry.recorded && entry.run !== detail.value?.run);
  const layers = (detail.value?.layers ?? []).filter((entry) => entry.name !== name);
  return [
    { value: "", label: "compare …" },
    ...others.map((entry) => ({ value: `run:${entry.run}`, label: `run ${entry.run}` })),
    ...layers.map((entry) => ({ value: `layer:${entry.name}`, label: `layer ${entry.name}` })),
  ];
}

/** Values that were zoomed to, in scaled units; forgotten when something else is drawn. @param {string} of */
function useValueRange(of) {
  const [state, setState] = useState({ of: "", range: /** @type {[number, number] | null} */ (null) });
  const layerAndScale = of.replace(/"(first|last)":(null|\d+)/g, "");
  const current = state.of === layerAndScale ? state.range : null;
  return { range: current, set: (/** @type {[number, number] | null} */ next) => setState({ of: layerAndScale, range: next }) };
}

/** One value axis for all charts side by side. @param {(Swarm | null)[]} swarms @param {string} scaleName @param {[number, number] | null} zoomed */
function commonAxis(swarms, scaleName, zoomed) {
  const drawn = swarms.flatMap((swarm) => swarm?.lines.map((line) => line.values) ?? []);
  const bands = swarms.flatMap((swarm) => (swarm ? [swarm.quantiles[0], swarm.quantiles[4]] : []));
  const threshold = symlogThreshold(drawn);
  const scale = makeScale(/** @type {any} */ (scaleName), threshold);
  return { scale, threshold, yRange: zoomed ?? paddedRange(extent([...drawn, ...bands], scale.name), scale) };
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

/** How much of the layer is on screen, and how finely it was kept. @param {{ swarm: Swarm, values: ReturnType<typeof useValueRange> }} props */
function Disclosure({ swarm, values }) {
  const { header, lines } = swarm;
  const sampled = lines.length >= header.neurons
    ? `all ${formatCount(header.neurons, "neuron")} drawn`
    : `${formatInteger(lines.length)} of ${formatCount(header.neurons, "neuron")} drawn (blue noise)`;
  const at = hoverStep.value;
  const span = at === null ? null : header.spans?.find((/** @type {number[]} */ [first, last]) => first <= at && at <= last);
  const kept = !span ? header.resolution : span[2] > 1 ? `step ${formatStep(at)}: windows of ${formatInteger(span[2])} steps` : `step ${formatStep(at)}: every step`;
  const [first, last] = range.value ?? [null, null];
  const zoomed = [range.value && `${formatStep(first)}–${formatStep(last)}`, values.range && "values"].filter(Boolean).join(", ");
  return html`<span class="disclosure">
      ${sampled}, <b class=${header.outliers ? "bad" : ""}>${formatCount(header.outliers, "outlier")}</b>
      ${header.nonfinite_neurons ? html` · <b class="bad">▲ ${formatCount(header.nonfinite_neurons, "neuron")} not finite</b>` : null}
      ${" · "}${kept} · shade: density of all; dotted: 5, 50 and 95 %
    </span>
    ${zoomed
      ? html`<button class="button" onClick=${() => { range.value = null; values.set(null); }}>${zoomed} · reset</button>`
      : html`<span class="hint">drag to zoom</span>`}`;
}

// -- questions about all neurons -------------------------------------------------------------------------------------------

/** Selects the neurons that a stroke meant; Shift adds them to those selected, Alt takes them away. @param {import("../chart.js").Stroke} stroke @param {Query} query */
async function askWith({ kind, step1, value1, step2, value2, add, remove }, query) {
  const { arrays } = await ask("brush", { ...query, kind, step1, value1, step2, value2 });
  const meant = new Set(arrays.neurons.values);
  const before = selection.peek().neurons;
  const neurons = remove ? before.filter((neuron) => !meant.has(neuron)) : add ? [...new Set([...before, ...meant])] : [...meant];
  select({ neurons: neurons.slice(0, MAX_SELECTED) });
}

/** @param {{ kind: string, query: Query, version: string, close: () => void }} props */
function Answers({ kind, query, version, close }) {
  return html`<aside class="answers" aria-label=${kind === "unusual" ? "most unusual neurons" : "similar neurons"}>
    <header><b>${kind === "unusual" ? "most unusual" : `like #${selection.value.neurons[0] ?? "…"}`}</b>
      <button class="button icon" aria-label="close" onClick=${close}>×</button></header>
    ${kind === "unusual" ? html`<${UnusualList} query=${query} version=${version} />` : html`<${SimilarList} query=${query} version=${version} />`}
  </aside>`;
}

/** @param {{ query: Query, version: string }} props */
function UnusualList({ query, version }) {
  const resource = useResource(JSON.stringify(query), version, () => getJson("unusual", { ...query, limit: 100 }));
  return html`<${Loaded} resource=${resource}>
    ${(/** @type {{ unusual: Unusual[], count: number, common: Record<string, number> }} */ { unusual, count, common }) => html`
      ${Object.entries(common).map(([what, many]) => html`<p class="muted">${formatCount(many, "neuron")}: ${words(what)}, too many to be unusual</p>`)}
      ${unusual.length ? html`<ol>${unusual.map((item) => html`<li key=${item.neuron}>
        <button aria-pressed=${selection.value.neurons[0] === item.neuron} onClick=${() => select({ neurons: [item.neuron], step: item.step })}>
          <b>#${item.neuron}</b> <em>${words(item.kind)}</em> ${item.sentence}
        </button></li>`)}</ol>` : html`<${Note}>No neuron of this layer stands out here.<//>`}
      ${count > unusual.length ? html`<p class="muted">${unusual.length} of ${formatInteger(count)} listed</p>` : null}`}
  <//>`;
}

/** @param {{ query: Query, version: string }} props */
function SimilarList({ query, version }) {
  const neuron = selection.value.neurons[0];
  const asked = { ...query, neuron, limit: LISTED };
  const resource = useResource(neuron === undefined ? null : JSON.stringify(asked), version, () => getArrays("similar", asked, version));
  if (neuron === undefined) return html`<${Note}>Click a line first: then this lists the neurons whose histories resemble it.<//>`;
  return html`<${Loaded} resource=${resource}>
    ${(/** @type {import("../types.d.ts").Message} */ { arrays: { neurons, distance } }) => html`
      <button class="button" onClick=${() => select({ neurons: [neuron, ...neurons.values] })}>select all ${neurons.values.length}</button>
      <ol>${[...neurons.values].map((other, i) => html`<li key=${other}>
        <button onClick=${() => select({ neurons: [neuron, ...selection.peek().neurons.filter((one) => one !== neuron && one !== other), other] })}>
          <b>#${other}</b> ${formatValue(distance.values[i])} <span class="muted">away</span></button></li>`)}</ol>`}
  <//>`;
}

/** The neurons selected: how many, which, and what to do with them. @param {{ neurons: number[], all: number }} props */
function Selected({ neurons, all }) {
  const [isCopied, setCopied] = useState(false);
  const text = neurons.join(", ");
  const copy = async () => {
    await copyText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return html`<div class="selected" role="status">
    <span>${neurons.length === 1 ? "neuron" : `${formatInteger(neurons.length)} of ${formatInteger(all)} neurons`}</span>
    <code title=${text.slice(0, 2000)}>${neurons.slice(0, 40).map((neuron) => `#${neuron}`).join(" ")}${neurons.length > 40 ? " …" : ""}</code>
    <button class="button" onClick=${copy}>${isCopied ? "copied" : "copy"}</button>
    <button class="button" onClick=${() => select({ neurons: [] })}>clear</button>
  </div>`;
}

/** Also where the page is not served securely, and has no clipboard. @param {string} text */
async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  return undefined;
}
