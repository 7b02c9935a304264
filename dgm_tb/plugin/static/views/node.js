// One box of the model: an outline that tells its kind, its name, and for layers a mini chart around the focus snapshot.

import { html } from "../vendor/vendor.js";
import { formatShape, shorten } from "../format.js";
import { findingMark } from "./findings.js";

/** @typedef {import("../types.d.ts").Box} Box */
/** @typedef {import("../types.d.ts").Placed} Placed */
/** @typedef {{ from: number, to: number, line: string, bad: number[] }} Mini path in a 1 x 1 box, NaN marks by x */

const LAYER = { width: 152, height: 46 };
const PILL_HEIGHT = 20;
const MINI = { left: 8, top: 20, height: 20 };

/** Width and height of a box; of an open group, its heading. @param {Box} box */
export function boxSize(box) {
  if (box.group || box.node?.layer) return LAYER;
  return { width: Math.min(LAYER.width, Math.max(52, (box.node?.kind === "input" || box.node?.kind === "loss" ? 40 : 28) + pillText(box).length * 6.6)), height: PILL_HEIGHT };
}

/** @param {Box} box */
function pillText(box) {
  return shorten(box.label, 18) + turns(box);
}

/** How often a loop, or a recurrent layer, ran it: a cycle is one node. @param {Box} box */
function turns(box) {
  const n = box.node?.repeats ?? 1;
  return n > 1 ? ` ↻${n}` : "";
}

/** Outline by kind, so that kinds differ in shape and not only in colour. @param {Box} box @param {number} w @param {number} h */
function outline(box, w, h) {
  const round = (/** @type {number} */ r) => `M${r} 0H${w - r}A${r} ${r} 0 0 1 ${w} ${r}V${h - r}A${r} ${r} 0 0 1 ${w - r} ${h}H${r}A${r} ${r} 0 0 1 0 ${h - r}V${r}A${r} ${r} 0 0 1 ${r} 0Z`;
  const kind = box.node?.kind;
  if (kind === "loss") return `M8 0H${w - 8}L${w} ${h / 2}L${w - 8} ${h}H8L0 ${h / 2}Z`;
  if (kind === "input") return `M8 0H${w}L${w - 8} ${h}H0Z`;
  if (kind === "parameter") return `M0 0H${w - 6}L${w} 6V${h}H0Z`;
  return round(kind === "module" || box.group ? 4 : h / 2);
}

const SYMBOLS = /** @type {Record<string, string>} */ ({
  conv: "M1 1h4v4h-4zM7 1h4v4h-4zM1 7h4v4h-4zM7 7h4v4h-4z",
  linear: "M2 2L10 4M2 2L10 9M2 6L10 4M2 6L10 9M2 10L10 4M2 10L10 9",
  norm: "M1 10C4 10 4 2 6 2S8 10 11 10",
  activation: "M1 9H6L11 2",
  pool: "M1 2H11L8 10H4Z",
  recurrent: "M9 3A4 4 0 1 0 10 7M9 0V3.4H5.6",
  attention: "M6 1L11 6L6 11L1 6ZM6 4V8M4 6H8",
  module: "M2 2H10V10H2Z",
  random: "M1 8C2.5 8 3.5 3 4.5 3S6.5 9 7.5 9 9.5 4 11 4",
  loss: "M2 2V10H11M4 4C5 8 7 9 10 9",
  input: "M1 6H9M6 3L9 6L6 9",
  detach: "M2 3L10 9M2 9L10 3",
  parameter: "M6 1A3 5 0 1 0 6.01 1M3 6H9",
  op: "M4 1C2 1 6 11 4 11M6 4L10 9M10 4L6 9",
  group: "M1 3H8V10H1ZM4 3V1H11V8H8",
});

/** @param {Box} box */
function symbol(box) {
  if (!box.node) return SYMBOLS.group;
  if (box.node.kind !== "module") return SYMBOLS[box.node.kind];
  const op = box.node.op;
  if (/conv/i.test(op)) return SYMBOLS.conv;
  if (/norm/i.test(op)) return SYMBOLS.norm;
  if (/linear|embedding/i.test(op)) return SYMBOLS.linear;
  if (/pool|upsample|shuffle/i.test(op)) return SYMBOLS.pool;
  if (/lstm|gru|rnn/i.test(op)) return SYMBOLS.recurrent;
  if (/attention/i.test(op)) return SYMBOLS.attention;
  if (/lu$|sigmoid|tanh|softmax|softplus|mish|swish|drop/i.test(op)) return SYMBOLS.activation;
  return SYMBOLS.module;
}

/**
 * @param {{ box: Box, place: Placed, isOpen: boolean, minis: Mini[], state: string, focusable: boolean, worst:
 *           import("../types.d.ts").Finding | null, reason: string, onAct: (box: Box) => void, onKey: (event: KeyboardEvent, box: Box) => void }} props
 */
export function ModelNode({ box, place, isOpen, minis, state, focusable, worst, reason, onAct, onKey }) {
  const { x, y, width, height } = place;
  const kind = box.group ? "group" : box.node?.layer ? "layer" : box.node?.kind ?? "op";
  const isCard = kind === "layer" || kind === "group";
  return html`<g
    class="node ${kind} kind-${box.node?.kind ?? "group"} ${isOpen ? "open" : ""} ${state}"
    transform="translate(${x} ${y})" data-box=${box.id} role="button" tabindex=${focusable ? 0 : -1}
    aria-label=${describe(box, isOpen, worst)}
    onClick=${() => onAct(box)} onKeyDown=${(/** @type {KeyboardEvent} */ event) => onKey(event, box)}
  >
    <title>${tooltip(box, worst, reason)}</title>
    ${kind === "group" && !isOpen ? html`<path class="behind" d=${outline(box, width, height)} transform="translate(4 4)" />` : null}
    <path class="shape" d=${outline(box, width, height)} />
    ${isOpen ? null : html`<path class="symbol" d=${symbol(box)} transform="translate(${isCard ? 7 : 9} 4)" /><text aria-hidden="true" class="label" x=${isCard ? 24 : 25} y="14">${isCard ? shorten(box.label, 15) : pillText(box)}</text>`}
    ${kind === "layer" ? html`<text aria-hidden="true" class="type" x=${width - 8} y="14" text-anchor="end">${layerType(box)}</text>` : null}
    ${kind === "group" ? html`<text aria-hidden="true" class="type" x=${width - 8} y="14" text-anchor="end">${isOpen ? "–" : `${box.size} +`}</text>` : null}
    ${isCard && !isOpen ? html`<${MiniChart} minis=${minis} width=${width - 2 * MINI.left} />` : null}
    ${worst && !isOpen ? html`<text aria-hidden="true" class="badge ${worst.severity}" x=${width - 1} y="4" text-anchor="middle">${findingMark(worst)}</text>` : null}
  </g>`;
}

/** An open group's name: apart from its box, so that edges run between the two. @param {{ box: Box, place: Placed }} props */
export function Heading({ box, place }) {
  return html`<g class="node" transform="translate(${place.x} ${place.y})" aria-hidden="true" pointer-events="none">
    <rect class="heading-plate" x="5" y="2" width="16" height="15" />
    <path class="symbol" d=${symbol(box)} transform="translate(7 4)" />
    <text class="heading" x="24" y="14">${shorten(box.label, Math.floor((place.width - 40) / 6.5))}</text>
  </g>`;
}

/** A layer's type, left out where the name fills the row. @param {Box} box */
function layerType(box) {
  const room = 19 - Math.min(box.label.length, 15);
  const type = box.node?.op.replace("Transpose", "ᵀ").replace("BatchNorm", "BN") ?? "";
  const marked = type + turns(box);
  return (marked.length <= room ? marked : turns(box)).trim();
}

/** @param {{ minis: Mini[], width: number }} props */
function MiniChart({ minis, width }) {
  if (!minis.length) return null;
  const { left, top, height } = MINI;
  const { from, to } = minis[0];
  return html`<g class="mini" transform="translate(${left} ${top})">
    <svg width=${width} height=${height} viewBox="${from} 0 ${to - from} 1" preserveAspectRatio="none">
      ${minis.map((mini, i) => html`<path key=${i} d=${mini.line} style=${{ opacity: minis.length > 1 ? 0.6 : 1 }} />`)}
    </svg>
    <line class="center" x1=${width / 2} x2=${width / 2} y2=${height} />
    ${[...new Set(minis.flatMap((mini) => mini.bad.map((at) => Math.round((((at - from) / (to - from)) * width) / 12))))]
      .filter((slot) => slot >= 0 && slot * 12 <= width)
      .map((slot) => html`<path key=${slot} class="bad" d="M${slot * 12} ${height - 6}l3 5h-6z" />`)}
  </g>`;
}

/** @param {Box} box @param {boolean} isOpen @param {import("../types.d.ts").Finding | null} worst */
function describe(box, isOpen, worst) {
  const what = box.group ? `${box.label}, group of ${box.size} nodes, ${isOpen ? "open" : "closed"}` : `${box.id} ${box.node?.op}${turns(box)}`;
  return worst ? `${what}, ${worst.severity}: ${worst.kind}` : what;
}

/** @param {Box} box @param {import("../types.d.ts").Finding | null} worst @param {string} reason */
function tooltip(box, worst, reason) {
  const { node } = box;
  const lines = node
    ? [node.id, `${node.op}${node.kind === "module" ? "" : ` (${node.kind})`} · ${formatShape(node.shape)}`]
    : [box.id.slice("group:".length), `${box.size} nodes, ${box.layers.length} layers`];
  if (turns(box)) lines.push(`runs ${node?.repeats} times, each time on its own last output`);
  if (reason) lines.push(reason);
  if (worst) lines.push(worst.summary);
  return lines.join("\n");
}

/**
 * One layer's line of a `minis` answer, as a path over steps with values scaled to 0 ... 1 from below.
 *
 * @param {import("../types.d.ts").Numbers} steps
 * @param {import("../types.d.ts").Numbers} values
 * @param {import("../types.d.ts").Numbers} codes
 */
export function miniLine(steps, values, codes) {
  const finite = [...values].filter(Number.isFinite);
  const sizes = finite.map(Math.abs).filter((v) => v > 0).sort((a, b) => a - b);
  const typical = sizes[sizes.length >> 1] || 1;
  const bend = (/** @type {number} */ v) => Math.asinh(v / typical);
  const low = bend(Math.min(...finite));
  const high = bend(Math.max(...finite));
  const span = high - low || 1;
  let line = "";
  let isDrawing = false;
  /** @type {number[]} */
  const bad = [];
  for (let i = 0; i < steps.length; i++) {
    if (codes[i]) bad.push(steps[i]);
    if (!Number.isFinite(values[i])) {
      isDrawing = false;
      continue;
    }
    const y = high === low ? 0.5 : 0.95 - ((bend(values[i]) - low) / span) * 0.9;
    line += `${isDrawing ? "L" : "M"}${steps[i]} ${y.toFixed(3)}`;
    isDrawing = true;
  }
  return { line, bad };
}
