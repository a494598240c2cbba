// @ts-check
/** The passages that an answer rests on: cards, and a sheet that shows one in its document. */

import { passages } from "./api.js";
import { occurrences } from "./answer.js";
import { by, condition, count, h, problem } from "./dom.js";
import { addFilter } from "./settings.js";

/** @typedef {import("./api.js").Citation} Citation */

const SHOWN = 3;
const STEP = 3;
const MOST_AROUND = 20;

/**
 * @param {Citation[]} citations
 * @param {(citation: Citation) => void} open
 * @param {((citation: Citation) => void) | null} readVerbatim Null while that cannot be asked for.
 * @returns {HTMLElement}
 */
export function cards(citations, open, readVerbatim) {
  const all = citations.map((citation) => card(citation, open, readVerbatim));
  const first = h("ol", { class: "sources" }, ...all.slice(0, SHOWN));
  const rest = all.slice(SHOWN);
  if (!rest.length) return first;
  const more = h("ol", { class: "sources", start: String(SHOWN + 1) }, ...rest);
  return h("div", {}, first,
    h("details", { class: "more-sources" }, h("summary", {}, `${count(rest.length)} more`), more));
}

/** @param {Citation} citation @param {(citation: Citation) => void} open @param {((citation: Citation) => void) | null} readVerbatim */
function card(citation, open, readVerbatim) {
  const verbatim = citation.verbatim ? h("span", { class: "badge" }, "verbatim") : null;
  const button = readVerbatim && !citation.verbatim
    ? h("button", { type: "button", class: "small", "aria-label": `Read ${place(citation)} verbatim and ask again`,
        onclick: () => readVerbatim(citation) }, "Read verbatim")
    : null;
  return h("li", { class: "card" },
    h("h3", {}, h("button", { type: "button", class: "open", onclick: () => open(citation) }, name(citation)), verbatim),
    h("p", { class: "dim" },
      `Passage ${citation.passage + 1}, characters ${count(citation.span[0])}–${count(citation.span[1])}, ` +
      `score ${citation.score.toPrecision(3)}`),
    h("p", { class: "excerpt" }, citation.text),
    h("div", { class: "card-end" }, tags(citation.metadata), button));
}

/** @param {{document: string, metadata: Record<string, unknown>}} citation */
const name = ({ document, metadata }) => (typeof metadata.title === "string" && metadata.title) || document;

/** @param {Citation} citation */
const place = (citation) => `passage ${citation.passage + 1} of ${name(citation)}`;

/**
 * Metadata as buttons that make them filters.
 * @param {Record<string, unknown>} metadata
 * @returns {HTMLElement}
 */
export function tags(metadata) {
  const list = h("ul", { class: "tags", "aria-label": "Metadata" });
  for (const [field, value] of Object.entries(metadata)) {
    const words = `${field}: ${typeof value === "string" ? value : JSON.stringify(value)}`;
    const filter = condition(field, value);
    list.append(h("li", {}, filter === null ? h("span", { class: "tag" }, words)
      : h("button", { type: "button", class: "tag", title: "Search only documents with this",
          onclick: () => addFilter(filter) }, words)));
  }
  return list;
}

/**
 * Show a passage in its document.
 * @param {string} base
 * @param {{document: string, passage: number, metadata: Record<string, unknown>, text?: string}} citation
 * @param {{string?: string, readVerbatim?: (() => void) | null}} [options] A string to mark in it.
 */
export async function openPassage(base, citation, { string, readVerbatim } = {}) {
  const sheet = by("passage");
  const text = h("div", { class: "passage-text", tabindex: "0", role: "region", "aria-label": "Text", "aria-busy": "true" });
  const close = h("button", { type: "button", class: "quiet", onclick: () => sheet.close(), "aria-label": "Close" }, "Close");
  const wider = h("button", { type: "button", onclick: () => load(around + STEP) }, "Show more around it");
  const expand = readVerbatim
    ? h("button", { type: "button", class: "primary", onclick: () => { sheet.close(); readVerbatim(); } },
        "Read verbatim and ask again")
    : null;
  const where = h("p", { class: "dim" });
  let around = 0;

  /** @param {number} wanted */
  async function load(wanted) {
    try {
      around = Math.min(MOST_AROUND, wanted);
      const found = await passages(base, citation.document, citation.passage, around);
      text.replaceChildren(...inDocument(found, string));
      const titled = citation.document !== name(citation);
      where.textContent = `${titled ? `${citation.document}, p` : "P"}assage ${citation.passage + 1}` +
        (found.data.length > 1 ? "; its neighbours are in grey" : "");
      const first = found.data[0].passage;
      const last = found.data[found.data.length - 1].passage;
      const all = (around === MOST_AROUND || first === 0) && last < citation.passage + around;
      wider.hidden = all || around === MOST_AROUND;
    } catch (error) {
      text.replaceChildren(...(citation.text ? [h("mark", { class: "span" }, citation.text)] : []), problem(error));
      wider.hidden = true;
    }
    text.setAttribute("aria-busy", "false");
    const hit = text.querySelector(".hit");
    if (hit) hit.scrollIntoView({ block: "center" });
    else text.querySelector(".span")?.scrollIntoView({ block: "start" });
  }

  sheet.replaceChildren(
    h("div", { class: "sheet-top" }, h("h2", { id: "passage-title" }, name(citation)), close),
    where,
    tags(citation.metadata),
    text,
    h("div", { class: "row sheet-end" }, wider, expand));
  sheet.onclick = (/** @type {MouseEvent} */ event) => {
    if (event.target === sheet) sheet.close();
  };
  if (!sheet.open) sheet.showModal();
  close.focus();
  await load(1);
}

/**
 * @param {{passage: number, data: {passage: number, span: [number, number], text: string}[]}} found
 * @param {string} [string]
 * @returns {Node[]}
 */
function inDocument({ passage, data }, string) {
  const nodes = [];
  const cited = data.find((each) => each.passage === passage);
  let end = data[0].span[0];
  for (const each of data) {
    // Passages may overlap. Spans count characters, which JavaScript's indexes do not.
    const [from, to] = each === cited || !cited ? each.span
      : each.passage < passage ? [each.span[0], Math.min(each.span[1], cited.span[0])]
      : [Math.max(each.span[0], cited.span[1]), each.span[1]];
    const start = each === cited ? from : Math.max(from, end);
    if (start > end) nodes.push(document.createTextNode("\n"));
    if (to <= start) continue;
    const words = Array.from(each.text).slice(start - each.span[0], to - each.span[0]).join("");
    nodes.push(each === cited ? h("mark", { class: "span" }, ...marked(words, string)) : h("span", { class: "around" }, words));
    end = to;
  }
  return nodes;
}

/** @param {string} text @param {string} [string] */
function marked(text, string) {
  if (!string) return [text];
  const parts = [];
  let end = 0;
  for (const place of occurrences(text, [string])) {
    parts.push(text.slice(end, place.start), h("mark", { class: "hit" }, string));
    end = place.end;
  }
  return [...parts, text.slice(end)];
}
