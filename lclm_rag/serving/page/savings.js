// @ts-check
/** What compression saved: the prompt's positions as a bar, times, the cache. */

import { count, counted, duration, h } from "./dom.js";

/**
 * @typedef {import("./api.js").Evidence} Evidence
 * @typedef {{text: number, latents: number, standFor: number, pasted: number, total: number}} Positions
 */

/**
 * @param {Evidence} evidence
 * @returns {Positions} Positions of the prompt by kind, and about how many it would have as text.
 */
export function positions({ usage }) {
  const { prompt_tokens: total, latents, source_tokens: standFor } = usage;
  return { total, latents, standFor, text: total - latents, pasted: total - latents + standFor };
}

/**
 * @param {Evidence} evidence
 * @returns {HTMLElement | null} Null if nothing was decoded.
 */
export function savings(evidence) {
  const { total, latents, standFor, text, pasted } = positions(evidence);
  if (!total) return null;
  const verbatim = evidence.citations.filter((citation) => citation.verbatim).length;
  const saved = Math.max(0, pasted - total);
  const headline = saved
    ? [h("strong", {}, count(total)), ` prompt positions instead of about ${count(pasted)} `,
       h("span", { class: "times" }, `${(pasted / total).toFixed(1)}× shorter`)]
    : [h("strong", {}, count(total)), " prompt positions, nothing compressed"];
  const words = verbatim ? `text, ${counted(verbatim, "passage")} verbatim` : "question and frame";
  return h("figure", { class: "savings" },
    h("figcaption", {}, ...headline),
    bar([["text", text], ["latents", latents], ["saved", saved]]),
    h("ul", { class: "legend" },
      legend("text", `${count(text)} ${words}`),
      latents ? legend("latents", `${count(latents)} latents for ${count(standFor)} tokens`) : null,
      saved ? legend("saved", `${count(saved)} saved`) : null),
    h("p", { class: "dim facts" }, facts(evidence)));
}

/** @param {[string, number][]} parts */
function bar(parts) {
  // The figure's caption and legend say the same in words.
  const shown = h("div", { class: "bar", "aria-hidden": "true" });
  for (const [kind, size] of parts) {
    if (!size) continue;
    const part = h("span", { class: `part ${kind}` });
    part.style.flexGrow = String(size);
    shown.append(part);
  }
  return shown;
}

/** @param {string} kind @param {string} words */
const legend = (kind, words) => h("li", {}, h("span", { class: `swatch ${kind}`, "aria-hidden": "true" }), words);

/** Seconds from the question to the answer's first token. @param {import("./api.js").Timings} timings */
const first = ({ retrieve, load, assemble, first_token }) => retrieve + load + assemble + first_token;

/** @param {Evidence} evidence */
function facts({ timings, usage }) {
  const cached = usage.prompt_tokens_details.cached_tokens;
  return [
    `first token ${duration(first(timings))}`,
    `whole answer ${duration(timings.total)}`,
    cached === null ? "cache not reported" : `${count(cached)} positions from cache`,
  ].join(" · ");
}

/**
 * Two answers to the same question, and what each took.
 * @param {{text: string, evidence: Evidence}} before @param {{text: string, evidence: Evidence}} after
 * @returns {HTMLElement}
 */
export function comparison(before, after) {
  const both = [before.evidence, after.evidence];
  /** @param {string} name @param {string[]} cells */
  const row = (name, cells) => h("tr", {}, h("th", { scope: "row" }, name), ...cells.map((cell) => h("td", {}, cell)));
  const verbatim = both.map(({ citations }) => citations.filter((citation) => citation.verbatim).length);
  const more = after.evidence.usage.prompt_tokens - before.evidence.usage.prompt_tokens;
  const change = more > 0 ? `cost ${count(more)} more positions` : more < 0 ? `took ${count(-more)} fewer positions` : "cost nothing more";
  const firsts = both.map(({ timings }) => duration(first(timings)));
  return h("section", { class: "comparison" },
    h("h3", {}, `Reading verbatim ${change}`),
    h("table", {},
      h("thead", {}, h("tr", {}, h("td", {}), h("th", { scope: "col" }, "Before"), h("th", { scope: "col" }, "Now"))),
      h("tbody", {},
        row("Answer", [before.text.trim() || "None", after.text.trim() || "None"]),
        row("Verbatim", verbatim.map((number) => count(number))),
        row("Positions", both.map(({ usage }) => count(usage.prompt_tokens))),
        row("First token", firsts),
        row("Whole answer", both.map(({ timings }) => duration(timings.total))),
        row("Not in sources", both.map(({ grounding }) => grounding.missing.join(", ") || "Nothing")))));
}
