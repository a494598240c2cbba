// @ts-check
/** The documents of a knowledge base: list, search, upload, delete, versions. */

import { get, post, remove, upload } from "./api.js";
import { announce, by, count, counted, h, problem } from "./dom.js";
import { currentFilters, suggest } from "./settings.js";
import { cards, openPassage, tags } from "./sources.js";

/** @typedef {import("./api.js").Base} Base */

/** @type {() => Base | null} */
let currentBase = () => null;
/** @type {() => Promise<void>} */
let refresh = async () => {};
/** @type {string | null} */
let last = null;
/** Uploads are sent one after another; the service works on them in this order anyway. */
let queue = Promise.resolve();

/** @param {() => Base | null} base @param {() => Promise<void>} reload Reads anew what knowledge bases hold. */
export function startDocuments(base, reload) {
  currentBase = base;
  refresh = reload;
  by("more-documents").addEventListener("click", () => list(true));
  by("search-form").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    search();
  });
  by("search").addEventListener("input", () => {
    if (!by("search").value) by("found").replaceChildren();
  });
  by("versions").addEventListener("toggle", versions);
  by("files").addEventListener("change", () => {
    add(by("files").files);
    by("files").value = "";
  });
  const view = by("documents");
  const drop = by("upload");
  for (const kind of ["dragenter", "dragover"]) {
    view.addEventListener(kind, (/** @type {DragEvent} */ event) => {
      if (drop.hidden || !event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  view.addEventListener("dragleave", (/** @type {DragEvent} */ event) => {
    if (!view.contains(/** @type {Node | null} */ (event.relatedTarget))) drop.classList.remove("over");
  });
  view.addEventListener("drop", (/** @type {DragEvent} */ event) => {
    drop.classList.remove("over");
    if (drop.hidden || !event.dataTransfer?.files.length) return;
    event.preventDefault();
    add(event.dataTransfer.files);
  });
}

/** Show the documents of the current knowledge base from the start, and search again what was searched. */
export async function showDocuments() {
  const base = currentBase();
  if (!base) return;
  by("upload").hidden = !base.writable;
  by("documents-summary").textContent =
    `${base.id}, version ${count(base.version)}` + (base.documents === undefined || base.passages === undefined
      ? "" : `: ${counted(base.documents, "document")}, ${counted(base.passages, "passage")}`) +
    `, compressed by ${base.checkpoint}.`;
  const found = by("found").children.length ? search() : null;
  await Promise.all([list(false), versions(), found]);
}

/** @param {boolean} more Whether to go on where the list ends. */
async function list(more) {
  const base = currentBase();
  if (!base) return;
  const rows = by("document-list");
  const filters = currentFilters();
  try {
    const page = await get("documents", { model: base.id, filters, after: more ? last : null, limit: 20 });
    if (currentBase()?.id !== base.id) return;
    const items = page.data.map((/** @type {any} */ document) => row(base, document));
    if (!more) rows.replaceChildren();
    rows.append(...items);
    last = page.last_id;
    by("more-documents").hidden = !page.has_more;
    if (!rows.children.length) {
      rows.append(h("li", { class: "empty" }, filters.length ? "No document passes the filters."
        : base.writable ? "There are no documents yet. Drop files above." : "There are no documents yet. Add some with lclm-rag add."));
    } else if (more) items[0]?.querySelector("button")?.focus();
    for (const { metadata } of page.data) suggest(metadata);
  } catch (error) {
    by("more-documents").hidden = true;
    rows.replaceChildren(h("li", {}, problem(error, "Try again", () => list(false))));
  }
}

/** @param {Base} base @param {any} document */
function row(base, document) {
  const open = () => openPassage(base.id, { document: document.id, passage: 0, metadata: document.metadata });
  const trash = base.writable
    ? h("button", { type: "button", class: "quiet", "aria-label": `Delete ${document.id}`,
        onclick: () => askToDelete(base, document.id) }, "Delete")
    : null;
  return h("li", { class: "document" },
    h("div", { class: "grow" },
      h("button", { type: "button", class: "open", onclick: open }, document.id),
      h("p", { class: "dim" }, `${counted(document.passages, "passage")}, ${counted(document.characters, "character")}`),
      tags(document.metadata)),
    trash);
}

/** @param {Base} base @param {string} id */
function askToDelete(base, id) {
  const dialog = by("confirm");
  by("confirm-title").textContent = "Delete this document?";
  by("confirm-text").textContent = `${id} will no longer be found in ${base.id}.`;
  dialog.returnValue = "no";
  dialog.onclose = async () => {
    if (dialog.returnValue !== "yes") return;
    try {
      await remove(`documents/${encodeURIComponent(id)}`, { model: base.id });
      announce(`${id} deleted.`);
      await refresh();
    } catch (error) {
      by("found").replaceChildren(problem(error));
    }
    by("search").focus();
  };
  dialog.showModal();
}

async function search() {
  const base = currentBase();
  const query = by("search").value.trim();
  const found = by("found");
  if (!base || !query) {
    found.replaceChildren();
    return;
  }
  try {
    const filters = currentFilters();
    const { data, reason } = await post("search", { model: base.id, query, filters: filters.length ? filters : null });
    found.replaceChildren(
      h("h2", { class: "column-title" }, data.length ? counted(data.length, "passage") : reason || "Nothing was found."),
      cards(data, (citation) => openPassage(base.id, citation), null));
  } catch (error) {
    found.replaceChildren(problem(error, "Search again", search));
  }
}

/** @param {FileList} files */
function add(files) {
  const base = currentBase();
  if (!base?.writable) return;
  for (const file of files) {
    const state = h("span", { class: "dim" }, "waiting");
    const bar = h("progress", { max: "1", value: "0", "aria-label": `Upload of ${file.name}` });
    const item = h("li", {}, h("span", { class: "file" }, file.name), bar, state);
    by("uploads").append(item);
    queue = queue.then(() => send(base, file, item, bar, state));
  }
}

/**
 * @param {Base} base @param {File} file @param {HTMLElement} item @param {HTMLProgressElement} bar
 * @param {HTMLElement} state
 */
async function send(base, file, item, bar, state) {
  try {
    const { report } = await upload(base.id, file, {
      sent(share) {
        bar.value = share;
        state.textContent = share < 1 ? `sending, ${Math.round(share * 100)} %` : "sent";
      },
      job(job) {
        // How much there is to compress is not known, so the bar only moves.
        bar.removeAttribute("value");
        state.textContent = job.state === "queued" ? "waits for other changes"
          : `compressing, ${counted(job.passages, "passage")} done`;
      },
    });
    const parts = [["added", report.added], ["replaced", report.updated], ["unchanged", report.unchanged]]
      .filter(([, number]) => number).map(([what, number]) => `${count(number)} ${what}`);
    state.textContent = parts.join(", ") || "nothing to add";
    announce(`${file.name}: ${state.textContent}.`);
    await refresh();
  } catch (error) {
    item.classList.add("failed");
    state.replaceWith(h("span", { class: "wrong", role: "alert" }, error instanceof Error ? error.message : String(error)));
  }
  bar.remove();
}

/** @param {number | undefined} number Missing for a key that a filter binds. */
const total = (number) => number === undefined ? "–" : count(number);

async function versions() {
  const base = currentBase();
  if (!base || !by("versions").open) return;
  const rows = by("version-rows");
  try {
    const { data } = await get(`models/${encodeURIComponent(base.id)}/versions`, { limit: 20 });
    rows.replaceChildren(...data.reverse().map((/** @type {any} */ version) =>
      h("tr", {}, h("th", { scope: "row" }, count(version.version)), h("td", {}, when(version.created)),
        h("td", {}, version.operation), h("td", {}, total(version.documents)), h("td", {}, total(version.passages)))));
  } catch (error) {
    rows.replaceChildren(h("tr", {}, h("td", { colspan: "5" }, problem(error))));
  }
}

/** @param {string | number} created */
function when(created) {
  const date = new Date(typeof created === "number" ? created * 1000 : created);
  return Number.isNaN(date.getTime()) ? String(created)
    : date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}
