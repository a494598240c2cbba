// @ts-check
/** How questions are asked: passages, verbatim, filters. */

import { announce, by, condition, counted, h } from "./dom.js";

/** @type {string[]} */
let filters = [];
/** @type {Set<string>} */
const known = new Set();
/** @type {() => void} */
let changed = () => {};

/** The fields of a request that the settings give. */
export function settings() {
  const expand = by("expand").value;
  return {
    top_k: topK(),
    expand: /^\d+$/.test(expand) ? Number(expand) : expand,
    context: by("context").value,
    filters: filters.length ? [...filters] : null,
  };
}

const topK = () => Math.max(1, Math.round(Number(by("top-k").value)) || 8);

/** The filters, as a request has them. */
export const currentFilters = () => [...filters];

/** @param {string} text A condition, such as `lang=en`. */
export function addFilter(text) {
  if (!filters.includes(text)) filters = [...filters, text];
  announce(`Filter ${text} added.`);
  show();
  changed();
}

/** Offer what documents have as filters. @param {Record<string, unknown>} metadata */
export function suggest(metadata) {
  for (const [field, value] of Object.entries(metadata)) {
    const text = condition(field, value);
    if (text === null || known.has(text) || known.size >= 200) continue;
    known.add(text);
    by("filter-known").append(h("option", { value: text }));
  }
}

function show() {
  const chip = (/** @type {string} */ text) =>
    h("li", { class: "chip" }, text,
      h("button", { type: "button", "aria-label": `Remove the filter ${text}`, onclick: () => {
        filters = filters.filter((other) => other !== text);
        announce(`Filter ${text} removed.`);
        show();
        changed();
        /** @type {HTMLElement | null} */ (document.querySelector(".view:not([hidden]) :is(#question, #search)"))?.focus();
      } }, "×"));
  // Both views have the list: filters hold for questions and for the list of documents.
  for (const list of document.querySelectorAll(".chips")) list.replaceChildren(...filters.map(chip));
  summarize();
}

function summarize() {
  const parts = [counted(topK(), "passage")];
  if (by("context").value !== "latents") parts.push(`as ${by("context").value}`.replace("as none", "none read"));
  const { value, selectedOptions } = by("expand");
  if (value !== "auto") parts.push(`verbatim: ${selectedOptions[0].textContent.toLowerCase()}`);
  if (filters.length) parts.push(counted(filters.length, "filter"));
  by("settings-summary").textContent = parts.join(", ");
}

/** @param {() => void} onFilters Called when filters have changed. */
export function startSettings(onFilters) {
  changed = onFilters;
  const input = by("filter");
  function add() {
    const text = input.value.trim();
    if (!text) return;
    const readable = /[=<>]/.test(text);
    input.setCustomValidity(readable ? "" : "Write a field, a comparison and a value, such as lang=en.");
    if (!readable) {
      input.reportValidity();
      return;
    }
    addFilter(text);
    input.value = "";
  }
  by("filter-add").addEventListener("click", add);
  input.addEventListener("input", () => input.setCustomValidity(""));
  input.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    add();
  });
  for (const id of ["top-k", "expand", "context"]) by(id).addEventListener("change", summarize);
  show();
}
