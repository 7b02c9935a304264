// Types of the bundle, for `npm run check` only.
export { render } from "preact";
export type { ComponentChildren, VNode } from "preact";
export { useEffect, useMemo, useRef, useState } from "preact/hooks";
export { batch, computed, effect, signal } from "@preact/signals";
export type { ReadonlySignal, Signal } from "@preact/signals";
export { default as uPlot } from "uplot";
import type { VNode } from "preact";
export function html(strings: TemplateStringsArray, ...values: unknown[]): VNode;
