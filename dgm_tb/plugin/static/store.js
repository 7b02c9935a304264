// The one state that every view draws: what was read of the run, and what the reader of the tab looks at.

import { batch, computed, signal } from "./vendor/vendor.js";

/** @typedef {import("./types.d.ts").Selection} Selection */
/** @typedef {import("./types.d.ts").Finding} Finding */

/** @type {Selection} */
const NOTHING = { run: "", step: null, layer: "", neurons: [], sample: null, finding: "", quantity: "activation", statistic: "" };

export const selection = signal(NOTHING);

/** Every run under the log folder, null until the first answer. */
export const runs = signal(/** @type {import("./types.d.ts").RunEntry[] | null} */ (null));
export const detail = signal(/** @type {import("./types.d.ts").RunDetail | null} */ (null));
export const graph = signal(/** @type {import("./types.d.ts").ModelGraph | null} */ (null));
export const findings = signal(/** @type {Finding[] | null} */ (null));
/** Why the run could not be read, or null. */
export const failure = signal(/** @type {Error | null} */ (null));

/** First and last step that the time charts show; null is all. */
export const range = signal(/** @type {[number, number] | null} */ (null));
/** Steps around the focus snapshot that the mini charts show. */
export const span = signal(64);
/** Step under the pointer in any time chart. */
export const hoverStep = signal(/** @type {number | null} */ (null));
/** Layer filter: a regular expression as typed. */
export const filter = signal("");

export const revision = computed(() => detail.value?.revision ?? "");

/** First and last recorded step. */
export const bounds = computed(() => /** @type {[number, number]} */ ([detail.value?.first_step ?? 0, detail.value?.last_step ?? 0]));

/** The focus snapshot, inside what is recorded. */
export const step = computed(() => {
  const [first, last] = bounds.value;
  return Math.max(first, Math.min(last, selection.value.step ?? last));
});

export const layer = computed(() => detail.value?.layers.find((entry) => entry.name === selection.value.layer) ?? null);

/** The quantity and statistic on screen, as far as they are recorded. */
export const quantity = computed(() => {
  const recorded = detail.value?.statistics ?? {};
  const wanted = selection.value.quantity;
  return !detail.value || recorded[wanted] ? wanted : Object.keys(recorded)[0] ?? wanted;
});
export const statistic = computed(() => {
  const recorded = detail.value?.statistics[quantity.value] ?? [];
  return recorded.includes(selection.value.statistic) ? selection.value.statistic : recorded[0] ?? "";
});

/** Layer names that the filter lets through, or null when it is empty or no regular expression yet. */
export const filtered = computed(() => {
  if (!filter.value || !detail.value) return null;
  try {
    const pattern = new RegExp(filter.value, "i");
    return new Set(detail.value.layers.map((entry) => entry.name).filter((name) => pattern.test(name)));
  } catch {
    return null;
  }
});

/** Layer name -> its findings, worst first. */
export const findingsByLayer = computed(() => {
  /** @type {Map<string, Finding[]>} */
  const map = new Map();
  for (const finding of findings.value ?? []) {
    if (finding.layer) map.set(finding.layer, [...(map.get(finding.layer) ?? []), finding]);
  }
  return map;
});

/** The finding whose samples are shown: the chosen one, else one of this step or layer, else the first with samples. */
export const sampleFinding = computed(() => {
  const all = findings.value ?? [];
  const withSamples = all.filter((finding) => finding.has_samples);
  const { finding: chosen, layer: at } = selection.value;
  return (
    withSamples.find((finding) => finding.id === chosen) ??
    withSamples.find((finding) => finding.step === step.value) ??
    withSamples.find((finding) => finding.layer === at) ??
    withSamples[0] ??
    null
  );
});

/** @param {Partial<Selection>} patch */
export function select(patch) {
  const next = { ...selection.peek(), ...patch };
  if (patch.layer !== undefined && patch.layer !== selection.peek().layer && patch.neurons === undefined) next.neurons = [];
  selection.value = next;
}

const QUANTITY_OF_KIND = /** @type {Record<string, string>} */ ({
  exploding_gradient: "gradient", vanishing_gradient: "gradient", not_training: "update", lr_too_high: "update",
  lr_too_low: "update", corrupt_weight: "weight", bad_init: "weight",
});

/** Looks at a finding: its snapshot, layer, neurons and example at once. @param {Finding} finding */
export function focusFinding(finding) {
  const [first, last] = range.peek() ?? [-Infinity, Infinity];
  batch(() => {
    if (finding.step < first || finding.step > last) range.value = null;
    select({
      finding: finding.id,
      step: finding.step,
      layer: finding.layer || selection.peek().layer,
      neurons: finding.layer ? finding.neurons.slice(0, 64) : [],
      sample: finding.samples[0] ?? null,
      quantity: QUANTITY_OF_KIND[finding.kind] ?? "activation",
      statistic: "",
    });
  });
}

/** Goes to the next or previous finding in the strip's order. @param {1 | -1} direction */
export function stepFinding(direction) {
  const all = findings.peek() ?? [];
  if (!all.length) return;
  const at = all.findIndex((finding) => finding.id === selection.peek().finding);
  focusFinding(all[at < 0 ? (direction > 0 ? 0 : all.length - 1) : (at + direction + all.length) % all.length]);
}

/** One step back: first the finding and neurons, then the zoom, then the filter. */
export function stepBack() {
  const { neurons, finding } = selection.peek();
  if (neurons.length || finding) select({ neurons: [], finding: "", sample: null });
  else if (range.peek()) range.value = null;
  else filter.value = "";
}

/** Chooses another run; what belongs to the old one is forgotten. @param {string} run */
export function chooseRun(run) {
  if (run === selection.peek().run) return;
  batch(() => {
    const { quantity, statistic } = selection.peek();
    selection.value = { ...NOTHING, run, quantity, statistic };
    range.value = null;
    detail.value = graph.value = findings.value = null;
  });
}
