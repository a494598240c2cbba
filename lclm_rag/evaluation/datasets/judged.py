"""Sets for retrieval: queries, and which documents are relevant to each.

Two forms are read. A folder in the form of BEIR has its own documents:

- `corpus.jsonl`: {"_id", "title", "text"} on each line; the title, if there is one, becomes the first line of
  the text, and any other fields are left alone.
- `queries.jsonl`: {"_id", "text"}.
- `qrels/<split>.tsv`: a heading, then query id, document id and grade, with tabs between them.

A JSONL file has questions about the documents of a knowledge base: {"question": …, "document_ids": […]} on
each line, or "document_id" for a single one; any other fields are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lclm_rag.errors import EvaluationError
from lclm_rag.evaluation.datasets.jsonl_questions import json_lines, one_or_more, text_of
from lclm_rag.types import Document

__all__ = ["JudgedSet", "read_judged_set"]

_DEFAULT_SPLIT = "test"


@dataclass(frozen=True)
class JudgedSet:
    """Queries with judged documents.

    Attributes:
        name: The name of the file or folder.
        queries: The text of each query that has a relevant document, by its id.
        grades: For each of these queries the grade of each judged document; above 0 is relevant.
        documents: The documents; None if they are those of a knowledge base.
        left_out: How many queries have no relevant document.
    """

    name: str
    queries: Mapping[str, str]
    grades: Mapping[str, Mapping[str, int]]
    documents: list[Document] | None
    left_out: int = 0


def read_judged_set(path: Path, split: str | None = None) -> JudgedSet:
    """Read a folder in the form of BEIR, or a JSONL file.

    Args:
        path: The folder or the file.
        split: The name of the folder's qrels. Default: "test", or the only ones there are.

    Returns:
        The set.

    Raises:
        EvaluationError: When something is missing, cannot be read or is not valid; the message names the
            file and the line.
    """
    if path.is_dir():
        return _of_folder(path, split)
    if split is not None:
        raise EvaluationError(f"{path} is not a folder in the form of BEIR; leave the split out.")
    return _of_file(path)


def _of_file(path: Path) -> JudgedSet:
    queries: dict[str, str] = {}
    grades: dict[str, dict[str, int]] = {}
    lines = 0
    for number, record in json_lines(path):
        lines += 1
        try:
            question = text_of(record, "question")
            relevant = one_or_more(record, "document_id", "document_ids")
        except ValueError as error:
            raise EvaluationError(f"{path}, line {number}: {error}") from error
        if relevant:
            queries[str(number)], grades[str(number)] = question, dict.fromkeys(relevant, 1)
    if not queries:
        raise EvaluationError(
            f"{path}: no question has document_ids; name the documents that should be found."
        )
    return JudgedSet(path.name, queries, grades, None, lines - len(queries))


def _of_folder(folder: Path, split: str | None) -> JudgedSet:
    qrels = _qrels(folder, split)
    documents = [
        Document(key, "\n".join(part for part in (title, text) if part.strip()))
        for key, title, text in _texts_by_id(folder / "corpus.jsonl")
        if title.strip() or text.strip()
    ]
    asked = {key: text for key, _, text in _texts_by_id(folder / "queries.jsonl")}
    grades = _grades(qrels)
    if (unknown := next((q for q in grades if q not in asked), None)) is not None:
        raise EvaluationError(f"{qrels} judges the query {unknown!r}, which queries.jsonl lacks.")
    relevant = {q for q, judged in grades.items() if any(grade > 0 for grade in judged.values())}
    queries = {q: text for q, text in asked.items() if q in relevant}
    if not queries or not documents:
        raise EvaluationError(
            f"{folder}: no query has a relevant document, or there are no documents."
        )
    known = {document.id for document in documents}
    for query in queries:
        lost = next((d for d, grade in grades[query].items() if grade > 0 and d not in known), None)
        if lost is not None:
            raise EvaluationError(
                f"{qrels}: document {lost!r}, relevant to query {query!r}, is not in corpus.jsonl."
            )
    kept = {q: grades[q] for q in queries}
    return JudgedSet(folder.name, queries, kept, documents, len(grades) - len(queries))


def _qrels(folder: Path, split: str | None) -> Path:
    found = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
    if not found:
        raise EvaluationError(
            f"{folder} has no qrels/*.tsv; a folder in the form of BEIR has corpus.jsonl, queries.jsonl and "
            "qrels/test.tsv."
        )
    chosen = split or (found[0] if len(found) == 1 else _DEFAULT_SPLIT)
    if chosen not in found:
        raise EvaluationError(f"{folder} has no split {chosen!r}; there is {', '.join(found)}.")
    return folder / "qrels" / f"{chosen}.tsv"


def _texts_by_id(path: Path) -> list[tuple[str, str, str]]:
    """Id, title and text of each line."""
    found: dict[str, tuple[str, str, str]] = {}
    for number, record in json_lines(path):
        key, title, text = (record.get(name, "") for name in ("_id", "title", "text"))
        key = str(key) if isinstance(key, int) else key
        texts = [value or "" for value in (key, title, text)]
        if not all(isinstance(value, str) for value in texts) or not key:
            raise EvaluationError(f"{path}, line {number}: _id, title and text must be texts.")
        if key in found:
            raise EvaluationError(f"{path}, line {number}: the _id {key!r} was there before.")
        found[key] = (texts[0], texts[1], texts[2])
    return list(found.values())


def _grades(path: Path) -> dict[str, dict[str, int]]:
    grades: dict[str, dict[str, int]] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error}).") from error
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            query, document, grade = line.split("\t")
            grades.setdefault(query, {})[document] = int(grade)
        except ValueError as error:
            raise EvaluationError(
                f"{path}, line {number}: expected query id, document id and a whole number, with tabs "
                "between them."
            ) from error
    return grades
