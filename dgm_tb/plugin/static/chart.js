// The frame of every time chart: uPlot for axes, grid and drag-zoom; our own canvases for the marks, so that dimming,
// hovering and the focus snapshot never redraw the axes.

import { uPlot } from "./vendor/vendor.js";
import { linearTicks, ticks } from "./scales.js";
import { formatStep, formatValue } from "./format.js";

/** @typedef {import("./scales.js").Scale} Scale */
/** @typedef {import("./color.js").Theme} Theme */

/**
 * What a drawing function gets: the plot's size in device pixels, and where a step and a value lie in it.
 *
 * @typedef {{ width: number, height: number, ratio: number, theme: Theme,
 *             x: (step: number) => number, y: (value: number) => number }} View
 */

/** @typedef {(context: CanvasRenderingContext2D, view: View) => void} Draw */

/**
 * @typedef {object} ChartState
 * @property {[number, number]} xRange steps
 * @property {Scale} scale
 * @property {[number, number]} yRange in scaled units
 * @property {Theme} theme
 * @property {Draw} draw
 * @property {Drag} [drag] what dragging does; `time` by default
 */

/** Zoom in time, in time and value, or a stroke that the view asks a question with. @typedef {"time" | "zoom" | "box" | "line"} Drag */

/**
 * A stroke from one point to another; values in scaled units.
 *
 * @typedef {{ kind: "box" | "line", step1: number, value1: number, step2: number, value2: number, add: boolean, remove: boolean }} Stroke
 */

/**
 * @typedef {object} ChartEvents
 * @property {(step: number, event: MouseEvent) => void} onPick click: a step
 * @property {(range: [number, number] | null, values: [number, number] | null) => void} onZoom drag, Alt + wheel: steps, and values
 *   in scaled units where these were chosen, too; nulls on double-click
 * @property {(stroke: Stroke) => void} [onStroke]
 * @property {(step: number | null, value: number, distance: (step: number, value: number) => number) => void} onHover
 */

export const Y_AXIS_WIDTH = 56;
export const RIGHT_MARGIN = 14;

export class Chart {
  /** @param {HTMLElement} host @param {ChartState} state @param {ChartEvents} events */
  constructor(host, state, events) {
    this.host = host;
    this.state = state;
    this.events = events;
    this.plot = new uPlot(this.#options(), [[0, 1], [null, null]], host);
    this.base = addCanvas(this.plot.under, "chart-base");
    this.top = addCanvas(this.plot.over, "chart-top");
    this.focusLine = addLine(this.plot.over, "focus-line");
    this.hoverLine = addLine(this.plot.over, "hover-line");
    /** @type {{ focus: number | null, hover: number | null }} */
    this.lines = { focus: null, hover: null };
    /** @type {Draw | null} */
    this.overlay = null;
    this.observer = new ResizeObserver(() => this.#resize());
    this.observer.observe(host);
    this.#listen();
    this.#setDrag();
    this.#paint();
  }

  /** @param {ChartState} state */
  update(state) {
    const isNewTheme = state.theme !== this.state.theme;
    this.state = state;
    if (isNewTheme) this.plot.axes.forEach((axis) => Object.assign(axis, { stroke: () => this.state.theme.muted }));
    this.#setDrag();
    this.plot.setScale("x", { min: 0, max: 1 }); // the range functions below decide; this only makes uPlot ask
    this.plot.redraw();
  }

  /** The focus snapshot and the step under the pointer. @param {number | null} focus @param {number | null} hover */
  setLines(focus, hover) {
    this.lines = { focus, hover };
    const width = this.plot.bbox.width / devicePixelRatio;
    placeLine(this.focusLine, focus === null ? null : this.#left(focus), width);
    placeLine(this.hoverLine, hover === null ? null : this.#left(hover), width);
  }

  /** Draws above the marks, dimming them to `opacity`. @param {Draw | null} draw @param {number} opacity */
  setOverlay(draw, opacity = 1) {
    this.overlay = draw;
    this.base.style.opacity = String(opacity);
    this.#drawOn(this.top, draw);
  }

  destroy() {
    this.observer.disconnect();
    this.plot.destroy();
  }

  /** The plot's size in CSS pixels. @returns {[number, number]} */
  get size() {
    return [this.plot.bbox.width / devicePixelRatio, this.plot.bbox.height / devicePixelRatio];
  }

  /** The chart as it is on screen, axes and all. */
  toCanvas() {
    const axes = this.plot.ctx.canvas;
    const canvas = Object.assign(document.createElement("canvas"), { width: axes.width, height: axes.height });
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const { left, top } = this.plot.bbox;
    context.fillStyle = this.state.theme.surface;
    context.fillRect(0, 0, axes.width, axes.height);
    for (const [layer, x, y] of /** @type {const} */ ([[axes, 0, 0], [this.base, left, top], [this.top, left, top]])) context.drawImage(layer, x, y);
    return canvas;
  }

  /** The same by any other pen. @param {CanvasRenderingContext2D} pen @returns {{ width: number, height: number }} device pixels */
  paint(pen) {
    const { width, height } = this.plot.ctx.canvas;
    const { left, top, width: inner, height: tall } = this.plot.bbox;
    const { scale, xRange, yRange, theme } = this.state;
    pen.fillStyle = theme.surface;
    pen.fillRect(0, 0, width, height);
    Object.assign(pen, { font: `${11 * devicePixelRatio}px Roboto, system-ui, sans-serif`, fillStyle: theme.muted, strokeStyle: theme.line, lineWidth: 1 });
    const view = this.#view();
    const rule = (/** @type {[number, number]} */ from, /** @type {[number, number]} */ to) => { pen.beginPath(); pen.moveTo(...from); pen.lineTo(...to); pen.stroke(); };
    for (const at of linearTicks(...xRange, Math.max(2, inner / devicePixelRatio / 90)).filter(Number.isInteger)) {
      rule([left + view.x(at), top], [left + view.x(at), top + tall]);
      pen.textAlign = "center";
      pen.fillText(formatStep(at), left + view.x(at), top + tall + 15 * devicePixelRatio);
    }
    for (const at of ticks(scale, ...yRange, Math.max(2, tall / devicePixelRatio / 26))) {
      rule([left, top + view.y(at)], [left + inner, top + view.y(at)]);
      pen.textAlign = "right";
      pen.fillText(formatValue(tidy(at)), left - 6 * devicePixelRatio, top + view.y(at) + 4 * devicePixelRatio);
    }
    pen.textAlign = "left";
    pen.translate(left, top);
    this.state.draw(pen, view);
    this.overlay?.(pen, view);
    pen.restore();
    return { width, height };
  }

  /** @returns {View} */
  #view() {
    const { width, height } = this.plot.bbox;
    const { scale, xRange, yRange, theme } = this.state;
    const xUnit = width / (xRange[1] - xRange[0]);
    const yUnit = height / (yRange[1] - yRange[0]);
    return {
      width, height, theme, ratio: devicePixelRatio,
      x: (step) => (step - xRange[0]) * xUnit,
      y: (value) => height - (scale.apply(value) - yRange[0]) * yUnit,
    };
  }

  #setDrag() {
    const drag = this.state.drag ?? "time";
    Object.assign(/** @type {any} */ (this.plot.cursor.drag), { x: drag === "time" || drag === "zoom", y: drag === "zoom", uni: drag === "zoom" ? 24 : undefined });
    this.plot.over.classList.toggle("asks", drag === "box" || drag === "line");
  }

  /** CSS pixels from the plot's left edge; from our own range, since uPlot takes over a new one later. @param {number} step */
  #left(step) {
    const [first, last] = this.state.xRange;
    return ((step - first) / (last - first)) * (this.plot.bbox.width / devicePixelRatio);
  }

  #resize() {
    const { clientWidth: width, clientHeight: height } = this.host;
    if (width > 60 && height > 40 && (width !== this.plot.width || height !== this.plot.height)) this.plot.setSize({ width, height });
  }

  #paint() {
    if (!this.base) return;
    this.#drawOn(this.base, this.state.draw);
    this.#drawOn(this.top, this.overlay);
    this.setLines(this.lines.focus, this.lines.hover);
  }

  /** @param {HTMLCanvasElement} canvas @param {Draw | null} draw */
  #drawOn(canvas, draw) {
    const { width, height } = this.plot.bbox;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.clearRect(0, 0, width, height);
    if (!draw || !width || !height) return;
    context.save();
    draw(context, this.#view());
    context.restore();
  }

  #listen() {
    const over = this.plot.over;
    let pressed = /** @type {[number, number] | null} */ (null);
    const hasMoved = (/** @type {MouseEvent} */ event) => pressed !== null && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) > 4;
    over.addEventListener("mousedown", (event) => {
      pressed = [event.clientX, event.clientY];
      if (over.classList.contains("asks") && event.button === 0) this.#stroke(event);
    });
    over.addEventListener("click", (event) => {
      if (!hasMoved(event)) this.events.onPick(this.#stepAt(event), event);
    });
    over.addEventListener("mousemove", (event) => this.events.onHover(this.#stepAt(event), this.#valueAt(event), this.#distanceTo(event)));
    over.addEventListener("mouseleave", () => this.events.onHover(null, NaN, () => Infinity));
    over.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
  }

  /** Follows the pointer until it is released. @param {MouseEvent} down */
  #stroke(down) {
    const kind = this.state.drag === "line" ? "line" : "box";
    const box = this.plot.over.getBoundingClientRect();
    const place = (/** @type {MouseEvent} */ event) => /** @type {[number, number]} */ ([
      Math.max(0, Math.min(box.width, event.clientX - box.left)), Math.max(0, Math.min(box.height, event.clientY - box.top)),
    ]);
    const [left, top] = place(down);
    const mark = document.createElement("i");
    mark.className = `stroke ${kind}`;
    this.plot.over.append(mark);
    const move = (/** @type {MouseEvent} */ event) => {
      const [x, y] = place(event);
      Object.assign(mark.style, kind === "box"
        ? { left: `${Math.min(left, x)}px`, top: `${Math.min(top, y)}px`, width: `${Math.abs(x - left)}px`, height: `${Math.abs(y - top)}px` }
        : { left: `${left}px`, top: `${top}px`, width: `${Math.hypot(x - left, y - top)}px`, transform: `rotate(${Math.atan2(y - top, x - left)}rad)` });
    };
    const up = (/** @type {MouseEvent} */ event) => {
      removeEventListener("mousemove", move);
      mark.remove();
      const [x, y] = place(event);
      if (Math.hypot(x - left, y - top) <= 4) return;
      const at = (/** @type {number} */ place) => this.plot.posToVal(place, "x");
      const value = (/** @type {number} */ place) => this.plot.posToVal(place, "y");
      this.events.onStroke?.({ kind, step1: at(left), value1: value(top), step2: at(x), value2: value(y), add: event.shiftKey, remove: event.altKey });
    };
    addEventListener("mousemove", move);
    addEventListener("mouseup", up, { once: true });
  }

  /** @param {MouseEvent} event */
  #stepAt(event) {
    const [first, last] = this.state.xRange;
    const step = this.plot.posToVal(event.clientX - this.plot.over.getBoundingClientRect().left, "x");
    return Math.round(Math.max(first, Math.min(last, step)));
  }

  /** @param {MouseEvent} event */
  #valueAt(event) {
    return this.state.scale.invert(this.plot.posToVal(event.clientY - this.plot.over.getBoundingClientRect().top, "y"));
  }

  /** Distance in CSS pixels from the pointer to a point. @param {MouseEvent} event */
  #distanceTo(event) {
    const box = this.plot.over.getBoundingClientRect();
    return (/** @type {number} */ step, /** @type {number} */ value) =>
      Math.hypot(
        this.#left(step) - (event.clientX - box.left),
        this.plot.valToPos(this.state.scale.apply(value), "y") - (event.clientY - box.top),
      );
  }

  /** @param {WheelEvent} event */
  #wheel(event) {
    if (!event.altKey) return;
    event.preventDefault();
    const [first, last] = this.state.xRange;
    const at = this.#stepAt(event);
    const factor = event.deltaY > 0 ? 1.25 : 0.8;
    this.events.onZoom([Math.floor(at - (at - first) * factor), Math.ceil(at + (last - at) * factor)], null);
  }

  /** @returns {import("./vendor/vendor.js").uPlot.Options} */
  #options() {
    const stroke = () => this.state.theme.muted;
    const grid = { stroke: () => this.state.theme.line, width: 1 };
    const axis = { stroke, grid, ticks: { show: false }, font: "11px Roboto, system-ui, sans-serif" };
    return {
      width: Math.max(this.host.clientWidth, 80),
      height: Math.max(this.host.clientHeight, 60),
      padding: [8, RIGHT_MARGIN, 0, 0],
      legend: { show: false },
      scales: {
        x: { time: false, range: () => this.state.xRange },
        y: { range: () => this.state.yRange },
      },
      series: [{}, { show: false }],
      axes: [
        {
          ...axis, size: 22, gap: 4,
          splits: (plot) => linearTicks(...this.state.xRange, Math.max(2, plot.bbox.width / devicePixelRatio / 90)).filter(Number.isInteger),
          values: (_, splits) => splits.map(formatStep),
        },
        {
          ...axis, size: Y_AXIS_WIDTH, gap: 6,
          splits: (plot) => ticks(this.state.scale, ...this.state.yRange, Math.max(2, plot.bbox.height / devicePixelRatio / 26)).map(this.state.scale.apply),
          values: (_, splits) => splits.map((value) => formatValue(tidy(this.state.scale.invert(value)))),
        },
      ],
      cursor: { x: false, y: false, points: { show: false }, drag: { x: true, y: false, setScale: false, dist: 5 },
        bind: { dblclick: () => () => (this.events.onZoom(null, null), null) } },
      hooks: {
        setSelect: [(plot) => this.#zoomTo(plot)],
        draw: [() => this.#paint()],
      },
    };
  }

  /** @param {import("./vendor/vendor.js").uPlot} plot */
  #zoomTo(plot) {
    const { left, width, top, height } = plot.select;
    const [fullWidth, fullHeight] = this.size;
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    /** @type {[number, number]} */
    const range = width < fullWidth - 1 ? [Math.floor(plot.posToVal(left, "x")), Math.ceil(plot.posToVal(left + width, "x"))] : this.state.xRange;
    const isPart = this.state.drag === "zoom" && height > 5 && height < fullHeight - 1;
    /** @type {[number, number] | null} */
    const values = isPart ? [plot.posToVal(top + height, "y"), plot.posToVal(top, "y")] : null;
    if (width >= 5 && range[1] - range[0] >= 2) this.events.onZoom(range, values);
  }
}

/** A value that went through a scale and back, without its rounding error. @param {number} value */
function tidy(value) {
  return Number(value.toPrecision(6));
}

/** @param {HTMLElement} parent @param {string} className */
function addCanvas(parent, className) {
  const canvas = document.createElement("canvas");
  canvas.className = className;
  parent.append(canvas);
  return canvas;
}

/** @param {HTMLElement} parent @param {string} className */
function addLine(parent, className) {
  const line = document.createElement("div");
  line.className = className;
  line.hidden = true;
  parent.append(line);
  return line;
}

/** @param {HTMLElement} line @param {number | null} left @param {number} width */
function placeLine(line, left, width) {
  line.hidden = left === null || !(left >= -1 && left <= width + 1);
  if (left !== null && !line.hidden) line.style.transform = `translateX(${Math.round(left)}px)`;
}
