// Small parts that every view shares: the panel, what it fetches and its states, selects and switches.

import { html, useEffect, useRef, useState } from "./vendor/vendor.js";

/**
 * A landmark region. `title` continues the panel's name with what it shows now.
 *
 * @param {{ name: string, title?: unknown, tools?: unknown, footer?: unknown, className?: string, children?: unknown }} props
 */
export function Panel({ name, title, tools, footer, className = "", children }) {
  return html`<section class="panel ${className}" role="region" aria-label=${name}>
    <header>
      <h2>${name}</h2>
      <div class="panel-title">${title}</div>
      <div class="panel-tools">${tools}</div>
    </header>
    <div class="panel-body">${children}</div>
    ${footer ? html`<footer>${footer}</footer>` : null}
  </section>`;
}

/** @param {{ error: Error, retry: () => void }} props */
export function ErrorNote({ error, retry }) {
  const isMissing = /** @type {any} */ (error).status === 404;
  return html`<div class="note" role=${isMissing ? "note" : "alert"}>
    <p>${error.message}</p>
    ${isMissing ? null : html`<button class="button" onClick=${retry}>Retry</button>`}
  </div>`;
}

/** A layer's name; where room is short its beginning goes, for the leaf tells most. @param {{ name: string }} props */
export function Name({ name }) {
  return html`<code class="name" title=${name}><bdi>${name}</bdi></code>`;
}

/** A sentence in place of a view that has nothing to show. @param {{ children?: unknown }} props */
export function Note({ children }) {
  return html`<div class="note"><p>${children}</p></div>`;
}

/** The final geometry, grey. @param {{ rows?: number }} props */
export function Skeleton({ rows = 3 }) {
  return html`<div class="skeleton" aria-hidden="true">${Array.from({ length: rows }, (_, i) => html`<i key=${i}></i>`)}</div>`;
}

/**
 * What a resource shows: its value, its error, or a skeleton.
 *
 * @param {{ resource: Resource<any>, rows?: number, children: (value: any) => unknown }} props
 */
export function Loaded({ resource, rows, children }) {
  if (resource.error) return html`<${ErrorNote} error=${resource.error} retry=${resource.retry} />`;
  if (!resource.value) return html`<${Skeleton} rows=${rows} />`;
  return html`<div class="loaded ${resource.isStale ? "stale" : ""}">${children(resource.value)}</div>`;
}

/**
 * @param {{ label: string, value: string, options: (string | { value: string, label: string })[],
 *           onChange: (value: string) => void, hideLabel?: boolean }} props
 */
export function Select({ label, value, options, onChange, hideLabel = false }) {
  return html`<label class="select">
    <span class=${hideLabel ? "hidden" : ""}>${label}</span>
    <select aria-label=${label} value=${value} onChange=${(/** @type {any} */ event) => onChange(event.currentTarget.value)}>
      ${options.map((option) => {
        const { value: key, label: text } = typeof option === "string" ? { value: option, label: option.replaceAll("_", " ") } : option;
        return html`<option key=${key} value=${key} selected=${key === value}>${text}</option>`;
      })}
    </select>
  </label>`;
}

/**
 * A row of buttons of which one is pressed.
 *
 * @param {{ label: string, value: string, options: { value: string, label: string, hint?: string, disabled?: boolean }[],
 *           onChange: (value: string) => void }} props
 */
export function Switch({ label, value, options, onChange }) {
  return html`<div class="switch" role="group" aria-label=${label}>
    ${options.map(
      (option) => html`<button
        key=${option.value}
        aria-pressed=${option.value === value}
        disabled=${option.disabled}
        title=${option.hint}
        onClick=${() => onChange(option.value)}
      >${option.label}</button>`,
    )}
  </div>`;
}

/**
 * @template T
 * @typedef {{ value: T | null, error: Error | null, isStale: boolean, retry: () => void }} Resource
 */

/**
 * Fetches what a view shows, and keeps the old answer on screen until the new one is there.
 *
 * @template T
 * @param {string | null} key what is asked for; null asks for nothing
 * @param {string} version asks again when it changes, without the old answer counting as stale: a live run grows
 * @param {() => Promise<T>} load
 * @param {number} [delay] milliseconds to wait, so that dragging a slider asks once
 * @returns {Resource<T>}
 */
export function useResource(key, version, load, delay = 0) {
  const [state, setState] = useState(/** @type {{ key: string | null, value: T | null, error: Error | null }} */ ({ key: null, value: null, error: null }));
  const [attempt, setAttempt] = useState(0);
  const isFirst = useRef(true);
  useEffect(() => {
    if (key === null) {
      setState({ key, value: null, error: null });
      return undefined;
    }
    let isCurrent = true;
    const wait = isFirst.current ? 0 : delay;
    isFirst.current = false;
    const timer = setTimeout(async () => {
      try {
        const value = await load();
        if (isCurrent) setState({ key, value, error: null });
      } catch (error) {
        if (isCurrent) setState({ key, value: null, error: /** @type {Error} */ (error) });
      }
    }, wait);
    return () => {
      isCurrent = false;
      clearTimeout(timer);
    };
  }, [key, version, attempt]);
  return {
    value: key === null ? null : state.value,
    error: state.key === key ? state.error : null,
    isStale: state.key !== key,
    retry: () => setAttempt(attempt + 1),
  };
}

/** Width and height of an element's content box, as it changes. @param {{ current: HTMLElement | null }} ref @returns {[number, number]} */
export function useSize(ref) {
  const [size, setSize] = useState(/** @type {[number, number]} */ ([0, 0]));
  useEffect(() => {
    const element = /** @type {HTMLElement} */ (ref.current);
    const observer = new ResizeObserver(() => setSize([element.clientWidth, element.clientHeight]));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  return size;
}
