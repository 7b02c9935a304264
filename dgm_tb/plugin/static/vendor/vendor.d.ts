// Types of the bundle, for `npm run check` only.
export { render, Fragment, h } from "preact";
export type { ComponentChildren, VNode } from "preact";
export { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
export { batch, computed, effect, signal, untracked, useComputed, useSignal, useSignalEffect } from "@preact/signals";
export type { ReadonlySignal, Signal } from "@preact/signals";
export { default as uPlot } from "uplot";
export { format, formatPrefix } from "d3-format";
export { interpolateLab } from "d3-interpolate";
export { scaleLinear, scaleLog, scaleSymlog } from "d3-scale";
import type { VNode } from "preact";
export function html(strings: TemplateStringsArray, ...values: unknown[]): VNode;
