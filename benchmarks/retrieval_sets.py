"""Sets for `lclm-rag eval --retrieval` from Debian's manuals: the title of a section, and the section.

    apt-get install debian-reference-en debian-reference-de debian-reference-fr debian-reference-ja
    python benchmarks/retrieval_sets.py /tmp/sets --languages en de fr ja --results benchmarks/results

Each language becomes a folder in the form of BEIR. A document is a section of the Debian Reference without
sections of its own, without its title; the query is the title. Titles that several sections have are left
out. The texts are not kept here.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

from shared import machine, provenance

from lclm_rag.checkpoint import BUNDLED, Checkpoint
from lclm_rag.evaluation.datasets.judged import read_judged_set
from lclm_rag.evaluation.retrieval import evaluate_retrieval, of_documents
from lclm_rag.retrieval import load_embedder

SHORTEST = 200  # characters of a section


class Sections(HTMLParser):
    """The sections of a page of DocBook, each with its title and its own text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._open: list[dict[str, list[str]]] = []
        self._divs: list[bool] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        kind = dict(attributes).get("class")
        if tag == "div":
            is_section = kind == "section"
            self._divs.append(is_section)
            if is_section:
                for outer in self._open:
                    outer["parent"] = ["yes"]
                self._open.append({"title": [], "text": [], "parent": []})
        elif re.fullmatch(r"h[1-6]", tag) and kind == "title":
            self._in_title = True
        elif tag in ("p", "li", "tr", "pre", "dt", "dd"):
            self.handle_data("\n")

    def handle_endtag(self, tag: str) -> None:
        if re.fullmatch(r"h[1-6]", tag):
            self._in_title = False
        elif tag == "div" and self._divs and self._divs.pop():
            section = self._open.pop()
            if not section["parent"]:
                title = re.sub(r"^[\d.]+\s*", "", " ".join("".join(section["title"]).split()))
                text = re.sub(r"\n\s*\n+", "\n\n", "".join(section["text"])).strip()
                self.found.append((title, text))

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open[-1]["title" if self._in_title else "text"].append(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--languages", nargs="+", default=["en", "de", "fr", "ja"])
    parser.add_argument("--manual", type=Path, default=Path("/usr/share/debian-reference"))
    parser.add_argument("--results", type=Path, help="Measure them, too, into this folder.")
    parser.add_argument("--embedder", help="Measure dense vectors beside BM25.")
    arguments = parser.parse_args()
    for language in arguments.languages:
        sections: list[tuple[str, str]] = []
        for page in sorted(arguments.manual.glob(f"ch*.{language}.html")):
            reader = Sections()
            reader.feed(page.read_text("utf-8"))
            sections += reader.found
        kept = [(title, text) for title, text in sections if len(text) >= SHORTEST]
        once = {title for title, count in Counter(title for title, _ in kept).items() if count == 1}
        folder = arguments.out / f"debian-reference-{language}"
        (folder / "qrels").mkdir(parents=True, exist_ok=True)
        corpus, queries, qrels = [], [], ["query-id\tcorpus-id\tscore"]
        for number, (title, text) in enumerate(kept):
            corpus.append({"_id": f"d{number}", "title": "", "text": text})
            if title in once:
                queries.append({"_id": f"q{number}", "text": title})
                qrels.append(f"q{number}\td{number}\t1")
        for name, rows in (("corpus", corpus), ("queries", queries)):
            lines = (json.dumps(row, ensure_ascii=False) for row in rows)
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        (folder / "qrels" / "test.tsv").write_text("\n".join(qrels) + "\n", "utf-8")
        print(f"{folder}: {len(corpus)} sections, {len(queries)} titles")
        if arguments.results is not None:
            out = arguments.results / f"retrieval_debian_{language}.json"
            measure(folder, arguments.embedder, out)


def measure(folder: Path, model: str | None, out: Path) -> None:
    """What `lclm-rag eval --retrieval` gives, and where it comes from."""
    judged = read_judged_set(folder)
    assert judged.documents is not None
    embedder = None if model is None else load_embedder(model)
    checkpoint = Checkpoint.open(BUNDLED)
    with of_documents(judged.documents, checkpoint, embedder=embedder) as searched:
        report = evaluate_retrieval(searched, judged)
    whole = {"set": report["set"], "machine": machine(), **report, "provenance": provenance()}
    out.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
