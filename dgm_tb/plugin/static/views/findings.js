// The findings strip: worst first; a click looks at snapshot, layer, neurons and example at once.

import { html, useEffect, useRef } from "../vendor/vendor.js";
import { formatCount, formatEvidence, formatStep, leafName, words } from "../format.js";
import { bounds, detail, findings, focusFinding, selection } from "../store.js";
import { Panel, Skeleton } from "../ui.js";

/** @typedef {import("../types.d.ts").Finding} Finding */

/** Shape first, colour second. @param {Finding} finding */
export function findingMark(finding) {
  if (finding.severity === "info") return "○";
  return finding.kind === "nonfinite" ? "▲" : finding.severity === "error" ? "◆" : "●";
}

export function Findings() {
  const list = findings.value;
  const chosen = list?.find((finding) => finding.id === selection.value.finding) ?? null;
  return html`<${Panel} name="Findings" title=${list ? counts(list) : ""} className="area-findings ${chosen ? "has-chosen" : ""}">
    ${list === null ? html`<${Skeleton} rows=${1} />` : list.length ? html`<${Strip} list=${list} chosen=${chosen} />` : html`<${Quiet} />`}
    ${chosen ? html`<${Evidence} finding=${chosen} />` : null}
    <div class="hidden" aria-live="polite">${list?.length ? `${list.length} findings, worst: ${list[0].summary}` : ""}</div>
  <//>`;
}

/** How many of each severity, one per line. @param {Finding[]} list */
function counts(list) {
  const nouns = { error: "error", warning: "warning", info: "hint" };
  return Object.entries(nouns).map(([severity, noun]) => {
    const number = list.filter((finding) => finding.severity === severity).length;
    return number ? html`<span key=${severity}>${formatCount(number, noun)}</span>` : null;
  });
}

/** @param {{ list: Finding[], chosen: Finding | null }} props */
function Strip({ list, chosen }) {
  const strip = useRef(/** @type {HTMLElement | null} */ (null));
  useEffect(() => {
    const card = strip.current?.querySelector("[aria-current=true]");
    card?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [chosen?.id]);
  return html`<ol class="strip" ref=${strip}>
    ${list.map((finding) => html`<li key=${finding.id}><${Card} finding=${finding} isChosen=${finding === chosen} /></li>`)}
  </ol>`;
}

/** @param {{ finding: Finding, isChosen: boolean }} props */
function Card({ finding, isChosen }) {
  const { kind, severity, step, module, neurons, summary } = finding;
  return html`<button class="finding ${severity}" aria-current=${isChosen} title=${summary} onClick=${() => focusFinding(finding)}>
    <span class="finding-head">
      <b class="mark" aria-hidden="true">${findingMark(finding)}</b>
      <strong>${words(kind)}</strong>
      <span class="step">step ${formatStep(step)}</span>
      ${module ? html`<code title=${module}>${leafName(module)}</code>` : null}
      ${neurons.length ? html`<span>#${neurons.slice(0, 3).join(" #")}${neurons.length > 3 ? ` +${neurons.length - 3}` : ""}</span>` : null}
    </span>
    <span class="finding-summary">${summary}</span>
  </button>`;
}

/** @param {{ finding: Finding }} props */
function Evidence({ finding }) {
  const facts = Object.entries(finding.evidence).filter(([, value]) => value !== null && value !== "").slice(0, 6);
  const line = facts.map(([key, value]) => `${words(key)} ${formatEvidence(value)}`).join(" · ");
  return html`<p class="evidence">
    ${finding.advice ? html`<span class="advice" title=${finding.advice}><b>Advice</b> ${finding.advice}</span>` : null}
    ${line ? html`<span class="facts" title=${line}><b>Evidence</b> ${line}</span>` : null}
  </p>`;
}

function Quiet() {
  const [first, last] = bounds.value;
  const steps = (detail.value?.last_step ?? -1) < 0 ? 0 : last - first + 1;
  return html`<p class="quiet">Nothing unusual in ${formatStep(steps)} steps.</p>`;
}
