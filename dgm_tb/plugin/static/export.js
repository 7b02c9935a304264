// What a chart shows, as a file: its numbers as CSV, the picture as PNG or SVG.

/** @typedef {import("./views/swarm.js").Swarm} Swarm */
/** @typedef {import("./chart.js").Chart} Chart */

export const EXPORTS = [{ value: "csv", label: "CSV" }, { value: "png", label: "PNG" }, { value: "svg", label: "SVG" }];

/** @param {string} format @param {string} name @param {Chart | null} chart @param {Swarm | null} swarm */
export async function saveChart(format, name, chart, swarm) {
  const file = `${name.replace(/[^\w.@-]+/g, "_")}.${format}`;
  if (format === "csv" && swarm) save(file, new Blob([toCsv(swarm)], { type: "text/csv" }));
  if (format === "svg" && chart) save(file, new Blob([toSvg(chart)], { type: "image/svg+xml" }));
  if (format === "png" && chart) chart.toCanvas().toBlob((blob) => blob && save(file, blob), "image/png");
}

/** @param {string} file @param {Blob} blob */
function save(file, blob) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: file });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** One line per step drawn, one column per neuron. @param {Swarm} swarm */
export function toCsv({ steps, lines }) {
  const head = ["step", ...lines.map((line) => `neuron_${line.neuron}`)].join(",");
  const cell = (/** @type {import("./views/swarm.js").Line} */ line, /** @type {number} */ i) =>
    line.codes[i] === 0 ? (Number.isNaN(line.values[i]) ? "" : String(line.values[i])) : ["", "NaN", "Infinity", "-Infinity"][line.codes[i]];
  const rows = Array.from(steps, (step, i) => [step, ...lines.map((line) => cell(line, i))].join(","));
  return `${[head, ...rows].join("\n")}\n`;
}

/** @param {Chart} chart */
function toSvg(chart) {
  const pen = new SvgPen();
  const { width, height } = chart.paint(/** @type {any} */ (pen));
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">${pen.parts.join("")}</svg>`;
}

/** As much of a canvas' context as our marks use; writes SVG. */
export class SvgPen {
  constructor() {
    /** @type {string[]} */
    this.parts = [];
    this.path = "";
    this.origin = [0, 0];
    /** @type {number[]} */
    this.dash = [];
    Object.assign(this, { strokeStyle: "#000", fillStyle: "#000", lineWidth: 1, globalAlpha: 1, font: "11px sans-serif", textAlign: "left" });
    this.ruler = /** @type {CanvasRenderingContext2D} */ (document.createElement("canvas").getContext("2d"));
  }

  save() {}
  restore() {
    this.origin = [0, 0];
  }
  /** @param {number} x @param {number} y */
  translate(x, y) {
    this.origin = [x, y];
  }
  beginPath() {
    this.path = "";
  }
  /** @param {number} x @param {number} y */
  moveTo(x, y) {
    this.path += `M${this.#at(x, y)}`;
  }
  /** @param {number} x @param {number} y */
  lineTo(x, y) {
    this.path += `${this.path ? "L" : "M"}${this.#at(x, y)}`;
  }
  /** @param {number} x @param {number} y @param {number} radius */
  arc(x, y, radius) {
    this.path += `M${this.#at(x - radius, y)}a${radius},${radius} 0 1,0 ${2 * radius},0a${radius},${radius} 0 1,0 ${-2 * radius},0`;
  }
  /** @param {number[]} dash */
  setLineDash(dash) {
    this.dash = dash;
  }
  stroke() {
    const own = /** @type {any} */ (this);
    const dash = this.dash.length ? ` stroke-dasharray="${this.dash.join(" ")}"` : "";
    if (this.path) this.parts.push(`<path d="${this.path}" fill="none" stroke="${own.strokeStyle}" stroke-width="${own.lineWidth}" opacity="${own.globalAlpha}"${dash}/>`);
  }
  fill() {
    const own = /** @type {any} */ (this);
    if (this.path) this.parts.push(`<path d="${this.path}Z" fill="${own.fillStyle}" opacity="${own.globalAlpha}"/>`);
  }
  /** @param {number} x @param {number} y @param {number} width @param {number} height */
  fillRect(x, y, width, height) {
    const own = /** @type {any} */ (this);
    const [left, top] = [x + this.origin[0], y + this.origin[1]];
    this.parts.push(`<rect x="${left}" y="${top}" width="${width}" height="${height}" fill="${own.fillStyle}" opacity="${own.globalAlpha}"/>`);
  }
  /** @param {string} text @param {number} x @param {number} y */
  fillText(text, x, y) {
    const own = /** @type {any} */ (this);
    const anchor = own.textAlign === "right" ? "end" : own.textAlign === "center" ? "middle" : "start";
    const escaped = text.replace(/[&<>]/g, (letter) => `&#${letter.charCodeAt(0)};`);
    this.parts.push(`<text x="${x + this.origin[0]}" y="${y + this.origin[1]}" style="font:${own.font}" fill="${own.fillStyle}" text-anchor="${anchor}">${escaped}</text>`);
  }
  /** @param {HTMLCanvasElement} image @param {number} x @param {number} y @param {number} width @param {number} height */
  drawImage(image, x, y, width, height) {
    const [left, top] = [x + this.origin[0], y + this.origin[1]];
    this.parts.push(`<image href="${image.toDataURL()}" x="${left}" y="${top}" width="${width}" height="${height}" preserveAspectRatio="none"/>`);
  }
  /** @param {string} text */
  measureText(text) {
    this.ruler.font = /** @type {any} */ (this).font;
    return this.ruler.measureText(text);
  }

  /** @param {number} x @param {number} y */
  #at(x, y) {
    return `${(x + this.origin[0]).toFixed(1)},${(y + this.origin[1]).toFixed(1)}`;
  }
}
