// What the tab takes from other projects; `npm run vendor` bundles it into static/vendor/vendor.js.
import { h } from "preact";
import htm from "htm";

export { render, Fragment, h } from "preact";
export { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
export { batch, computed, effect, signal, untracked, useComputed, useSignal, useSignalEffect } from "@preact/signals";
export { default as uPlot } from "uplot";
export { format, formatPrefix } from "d3-format";
export { interpolateLab } from "d3-interpolate";
export { scaleLinear, scaleLog, scaleSymlog } from "d3-scale";

export const html = htm.bind(h);
