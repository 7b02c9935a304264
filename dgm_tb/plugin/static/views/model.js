// The model as it ran: its DAG in nested groups, a mini chart per layer, findings marked, the focus layer's flow lit.

import { html, useEffect, useMemo, useRef, useState } from "../vendor/vendor.js";
import { getArrays } from "../api.js";
import { formatInteger, formatStep, words } from "../format.js";
import { MAX_VISIBLE, ROOT, autoOpen, buildTree, lineage, reveal, visiblePart } from "../graph/tree.js";
import { bounds, detail, filter, filtered, findings, findingsByLayer, graph, quantity, revision, select, selection, span, step } from "../store.js";
import { ErrorNote, Note, Panel, Select, Skeleton, useResource } from "../ui.js";
import { Heading, ModelNode, boxSize, miniLine } from "./node.js";

/** @typedef {import("../types.d.ts").Box} Box */
/** @typedef {import("../types.d.ts").Layout} Layout */
/** @typedef {import("../types.d.ts").ModelGraph} ModelGraph */

const SPANS = [16, 64, 256, 1024, 4096, 16384].map((span) => ({ value: String(span), label: `${formatInteger(span)} steps` }));
const READABLE = 0.72;

let worker = /** @type {Worker | null} */ (null);
let requests = 0;
/** @type {Map<number, { resolve: (layout: Layout) => void, reject: (error: Error) => void }>} */
const waiting = new Map();

/** A layout from the worker. @param {object} question @returns {Promise<Layout>} */
function requestLayout(question) {
  if (!worker) {
    worker = new Worker(new URL("../graph/worker.js", import.meta.url), { type: "module" });
    worker.onmessage = ({ data }) => {
      const asked = waiting.get(data.id);
      waiting.delete(data.id);
      if (data.error) asked?.reject(new Error(data.error));
      else asked?.resolve(data.layout);
    };
    worker.onerror = () => {
      for (const { reject } of waiting.values()) reject(new Error("the layout worker did not start"));
      waiting.clear();
      worker = null;
    };
  }
  const id = ++requests;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker?.postMessage({ id, ...question });
  });
}

export function Model() {
  const model = graph.value;
  const viewport = useRef(/** @type {Viewport | null} */ (null));
  const tools = html`
    <label class="search"><span class="hidden">filter layers</span>
      <input id="layer-filter" type="search" placeholder="filter layers  /" spellcheck=${false} value=${filter.value}
        onInput=${(/** @type {any} */ event) => (filter.value = event.currentTarget.value)} /></label>
    <button class="button icon" title="Zoom out" aria-label="Zoom out" onClick=${() => viewport.current?.zoom(0.8)}>−</button>
    <button class="button icon" title="Zoom in" aria-label="Zoom in" onClick=${() => viewport.current?.zoom(1.25)}>+</button>
    <button class="button" title="Show the whole model" onClick=${() => viewport.current?.fit()}>Fit</button>`;
  const title = detail.value?.model ? html`<code>${detail.value.model}</code>` : "";
  return html`<${Panel} name="Model" className="area-model" title=${title} tools=${model ? tools : null}
    footer=${model && miniStatistic() ? html`<span class="disclosure">mini charts: ${miniTitle()}</span>
      <${Select} label="window around the focus snapshot" hideLabel value=${String(span.value)} options=${SPANS} onChange=${(/** @type {string} */ value) => (span.value = Number(value))} />` : null}>
    ${model
      ? html`<${Diagram} key=${detail.value?.run} model=${model} viewport=${viewport} />`
      : detail.value ? html`<${Note}>The model's graph appears with the first training batch.<//>` : html`<${Skeleton} rows=${8} />`}
  <//>`;
}

function miniTitle() {
  const [first, last] = bounds.value;
  const low = Math.max(first, step.value - span.value / 2);
  return `${quantity.value} ${words(miniStatistic())}, steps ${formatStep(low)} to ${formatStep(Math.min(last, step.value + span.value / 2))}`;
}

/** The statistic of the mini charts: layers have others than neurons. */
function miniStatistic() {
  const recorded = detail.value?.layer_statistics[quantity.value] ?? [];
  return recorded.includes(selection.value.statistic) ? selection.value.statistic : recorded[0] ?? "";
}

/** Layer name -> its line around the focus snapshot. */
function useMinis() {
  const center = Math.round(step.value / (span.value / 4)) * (span.value / 4); // asked for once per quarter of the window
  const query = { run: detail.value?.run, quantity: quantity.value, statistic: miniStatistic(), center, span: 2 * span.value, columns: 96 };
  const key = detail.value && query.statistic ? JSON.stringify(query) : null;
  const resource = useResource(key, revision.value, () => getArrays("minis", query, revision.value), 60);
  return useMemo(() => {
    const { header, arrays } = resource.value ?? { header: { layers: [] }, arrays: {} };
    const width = arrays.steps?.shape[0] ?? 0;
    const row = (/** @type {string} */ name, /** @type {number} */ i) => arrays[name].values.subarray(i * width, (i + 1) * width);
    /** @type {Map<string, ReturnType<typeof miniLine>>} */
    const lines = new Map();
    header.layers.forEach((/** @type {string} */ name, /** @type {number} */ i) => {
      if (header.recorded[i]) lines.set(name, miniLine(arrays.steps.values, row("values", i), row("nonfinite", i)));
    });
    return lines;
  }, [resource.value]);
}

/** Pan and zoom of the drawing, kept out of the state: moving redraws nothing. */
class Viewport {
  scale = 1;
  x = 0;
  y = 0;

  /** @param {SVGSVGElement} svg @param {SVGGElement} content */
  constructor(svg, content) {
    this.svg = svg;
    this.content = content;
    /** @type {Layout | null} */
    this.layout = null;
    /** @type {import("../types.d.ts").Placed | null} */
    this.target = null;
    this.hasMoved = false;
    this.isTouched = false; // panned or zoomed by hand: from then on only a reveal moves it
    this.#listen();
  }

  /** @param {number} scale */
  #center(scale) {
    const { clientWidth: width, clientHeight: height } = this.svg;
    if (!this.layout || !width) return;
    this.scale = scale;
    this.x = (width - this.layout.width * scale) / 2;
    this.y = Math.max(10, (height - this.layout.height * scale) / 2);
    this.#apply();
  }

  fit() {
    const { clientWidth: width, clientHeight: height } = this.svg;
    if (this.layout) this.#center(Math.min(1, (width - 20) / this.layout.width, (height - 20) / this.layout.height));
  }

  /** The whole model if that is readable, else its top at a readable size. */
  start() {
    this.fit();
    if (this.scale >= READABLE || !this.layout) return;
    this.#center(Math.max(READABLE, Math.min(1, (this.svg.clientWidth - 20) / this.layout.width)));
    this.y = 10;
    this.#apply();
  }

  /** @param {number} factor @param {number} [x] @param {number} [y] */
  zoom(factor, x = this.svg.clientWidth / 2, y = this.svg.clientHeight / 2) {
    this.isTouched = true;
    const scale = Math.max(0.05, Math.min(3, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.#apply();
  }

  /** Moves a box into view, as little as needed. @param {import("../types.d.ts").Placed} box */
  reveal(box) {
    this.target = box;
    const { clientWidth: width, clientHeight: height } = this.svg;
    const into = (/** @type {number} */ at, /** @type {number} */ size, /** @type {number} */ room) =>
      at < 24 ? 24 - at : at + size > room - 24 ? room - 24 - at - size : 0;
    this.x += into(this.x + box.x * this.scale, box.width * this.scale, width);
    this.y += into(this.y + box.y * this.scale, box.height * this.scale, height);
    this.#apply();
  }

  #apply() {
    this.content.setAttribute("transform", `translate(${this.x.toFixed(1)} ${this.y.toFixed(1)}) scale(${this.scale.toFixed(4)})`);
    this.svg.classList.toggle("small", this.scale < 0.5);
  }

  #listen() {
    let last = /** @type {[number, number] | null} */ (null);
    this.svg.addEventListener("pointerdown", (event) => {
      last = [event.clientX, event.clientY];
      this.hasMoved = false;
    });
    this.svg.addEventListener("pointermove", (event) => {
      if (!last || !(event.buttons & 1)) return;
      const [dx, dy] = [event.clientX - last[0], event.clientY - last[1]];
      if (!this.hasMoved && Math.hypot(dx, dy) < 4) return;
      if (!this.hasMoved) this.svg.setPointerCapture(event.pointerId);
      this.hasMoved = this.isTouched = true;
      last = [event.clientX, event.clientY];
      this.x += dx;
      this.y += dy;
      this.#apply();
    });
    this.svg.addEventListener("pointerup", () => (last = null));
    this.svg.addEventListener("click", (event) => this.hasMoved && event.stopPropagation(), true);
    this.svg.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = this.svg.getBoundingClientRect();
      if (event.ctrlKey || event.metaKey || event.altKey) return this.zoom(event.deltaY > 0 ? 0.88 : 1.14, event.clientX - box.left, event.clientY - box.top);
      this.isTouched = true;
      this.x -= event.deltaX;
      this.y -= event.deltaY;
      return this.#apply();
    }, { passive: false });
    new ResizeObserver(() => {
      if (!this.isTouched && this.svg.clientWidth) this.start();
      if (!this.isTouched && this.svg.clientWidth && this.target) this.reveal(this.target);
    }).observe(this.svg);
  }
}

/** @param {{ model: ModelGraph, viewport: { current: Viewport | null } }} props */
function Diagram({ model, viewport }) {
  const boxes = useMemo(() => buildTree(model), [model]);
  const [opened, setOpened] = useState(/** @type {Set<string> | null} */ (null));
  const suspects = useMemo(() => new Set((findings.value ?? []).map((finding) => finding.layer)), [findings.value]);
  const automatic = useMemo(() => autoOpen(boxes, suspects), [boxes]);
  const open = opened ?? automatic;
  const chosen = selection.value.layer;
  const part = useMemo(() => visiblePart(boxes, open, model.edges), [boxes, open]);
  const items = part.visible.map((box) => ({ id: box.id, parent: box.parent, isOpen: box.group && open.has(box.id), ...boxSize(box) }));
  const question = { root: ROOT, items, edges: part.edges };
  const resource = useResource(JSON.stringify([items, part.edges]), "", () => requestLayout(question));
  const layout = /** @type {Layout | null} */ (resource.value);
  const svg = useRef(/** @type {SVGSVGElement | null} */ (null));
  const content = useRef(/** @type {SVGGElement | null} */ (null));
  const here = part.visible.find((box) => box.layers.includes(chosen) && !(box.group && open.has(box.id)));

  useEffect(() => {
    if (chosen) setOpened((before) => revealWithin(boxes, before ?? automatic, chosen, before));
  }, [chosen, boxes]);
  useEffect(() => {
    if (!layout || !svg.current || !content.current) return;
    const isFirst = !viewport.current || viewport.current.svg !== svg.current;
    if (isFirst) viewport.current = new Viewport(svg.current, content.current);
    const view = /** @type {Viewport} */ (viewport.current);
    view.layout = layout;
    if (isFirst) view.start();
    if (here && layout.boxes[here.id]) view.reveal(layout.boxes[here.id]);
  }, [layout, here?.id]);

  if (resource.error) return html`<${ErrorNote} error=${resource.error} retry=${resource.retry} />`;
  const toggle = (/** @type {Box} */ box) => {
    const next = new Set(open);
    if (!next.delete(box.id)) next.add(box.id);
    if (part.visible.length + box.children.length <= MAX_VISIBLE || !next.has(box.id)) setOpened(next);
  };
  const act = (/** @type {Box} */ box) => (box.group ? toggle(box) : box.node?.layer ? select({ layer: box.node.layer, finding: "" }) : undefined);
  return html`<svg class="diagram" ref=${svg} aria-label="Data flow of the model">
    <g ref=${content}>
      ${layout && html`<${Scene} part=${part} layout=${layout} open=${open} model=${model} here=${here} act=${act} />`}
    </g>
  </svg>`;
}

/** The open groups with the chosen layer's ancestors opened; unchanged when that would show too much. */
function revealWithin(/** @type {Map<string, Box>} */ boxes, /** @type {Set<string>} */ open, /** @type {string} */ layer, /** @type {Set<string> | null} */ before) {
  const next = reveal(boxes, open, layer);
  const visible = [...next].reduce((sum, id) => sum + (boxes.get(id)?.children.length ?? 0), 0);
  return next === open || visible > MAX_VISIBLE ? before : next;
}

/**
 * All that is drawn: open groups under the edges, everything else above them.
 *
 * @param {{ part: ReturnType<typeof visiblePart>, layout: Layout, open: Set<string>, model: ModelGraph, here: Box | undefined,
 *           act: (box: Box) => void }} props
 */
function Scene({ part, layout, open, model, here, act }) {
  const lines = useMinis();
  const edges = useMemo(() => {
    const lit = here ? lineage(part.edges, here.id) : new Set();
    return layout.edges.map(({ source, target, points }) => {
      const key = `${source}\n${target}`;
      return html`<${Flow} key=${key} points=${points} isLit=${lit.has(key)} />`;
    });
  }, [layout, here?.id]);
  const visibleNames = filtered.value;
  const isOpen = (/** @type {Box} */ box) => box.group && open.has(box.id);
  const onKey = (/** @type {KeyboardEvent} */ event, /** @type {Box} */ box) => {
    const next = neighbour(event.key, box, part.edges, layout);
    if (event.key === "Enter" || event.key === " ") act(box);
    else if (next) /** @type {any} */ (event.currentTarget)?.ownerSVGElement.querySelector(`[data-box="${CSS.escape(next)}"]`)?.focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const nodes = (/** @type {boolean} */ groups) =>
    part.visible.filter((box) => layout.boxes[box.id] && isOpen(box) === groups).map((box) => {
      const worst = box.layers.flatMap((name) => findingsByLayer.value.get(name) ?? [])[0] ?? null;
      const isDimmed = visibleNames && !box.layers.some((name) => visibleNames.has(name));
      const minis = box.layers.slice(0, 12).flatMap((name) => {
        const line = lines.get(name);
        return line ? [{ from: step.value - span.value / 2, to: step.value + span.value / 2, ...line }] : [];
      });
      return html`<${ModelNode} key=${box.id} box=${box} place=${layout.boxes[box.id]} isOpen=${isOpen(box)} minis=${minis} worst=${worst}
        state="${box === here ? "chosen" : ""} ${isDimmed ? "dimmed" : ""}" focusable=${here ? box === here : box === part.visible[0]}
        reason=${model.unrecorded[box.id] ?? ""} onAct=${act} onKey=${onKey} />`;
    });
  const headings = part.visible.filter((box) => isOpen(box) && layout.boxes[box.id]).map((box) => html`<${Heading} key=${box.id} box=${box} place=${layout.boxes[box.id]} />`);
  return html`${nodes(true)}<g class="edges">${edges}</g>${headings}${nodes(false)}`;
}

/** The box that an arrow key leads to: along an edge, or beside. @param {string} key @param {Box} box @param {[string, string][]} edges @param {Layout} layout */
function neighbour(key, box, edges, layout) {
  if (key === "ArrowDown") return edges.find(([source]) => source === box.id)?.[1];
  if (key === "ArrowUp") return edges.find(([, target]) => target === box.id)?.[0];
  if (key !== "ArrowLeft" && key !== "ArrowRight") return undefined;
  const own = layout.boxes[box.id];
  const side = key === "ArrowRight" ? 1 : -1;
  return Object.entries(layout.boxes)
    .filter(([id, other]) => id !== box.id && (other.x - own.x) * side > 4 && Math.abs(other.y - own.y) < 40)
    .sort(([, a], [, b]) => Math.abs(a.x - own.x) - Math.abs(b.x - own.x))[0]?.[0];
}

/** One edge with its arrowhead, drawn by hand: markers need url(#id), which the page's base address breaks. @param {{ points: [number, number][], isLit: boolean }} props */
function Flow({ points, isLit }) {
  if (points.length < 2) return null;
  let path = `M${points[0]}`;
  for (let i = 1; i < points.length; i++) {
    const [[x0, y0], [x1, y1]] = [points[i - 1], points[i]];
    const middle = (y0 + y1) / 2;
    path += y1 - y0 < 1 ? `L${x1} ${y1}` : `C${x0} ${middle} ${x1} ${middle} ${x1} ${y1}`;
  }
  const [x, y] = points[points.length - 1];
  return html`<g class=${isLit ? "lit" : ""}><path class="wire" d=${path} /><path class="tip" d="M${x - 3} ${y - 5}L${x} ${y}L${x + 3} ${y - 5}Z" /></g>`;
}
