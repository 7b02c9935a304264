// What the tab takes from other projects; `npm run vendor` bundles it into static/vendor/vendor.js.
import { h } from "preact";
import htm from "htm";

export { render } from "preact";
export { useEffect, useMemo, useRef, useState } from "preact/hooks";
export { batch, computed, effect, signal } from "@preact/signals";
export { default as uPlot } from "uplot";

export const html = htm.bind(h);
