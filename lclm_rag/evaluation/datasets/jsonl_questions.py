"""A user's own questions: one JSON object on each line.

```
{"question": "Who signed it?", "answer": "Ada Byron", "document_id": "contract-7"}
{"question": "Which ports?", "answers": ["443", "8443"], "all_answers": true, "measure": "contains"}
```

The fields:

- question and answer (or answers, each of which is right) are required.
- document_id or document_ids: the documents that contain the answer.
- id: by default "<file>:<line>".
- category: results are also reported by category.
- all_answers: whether the question asks for all of the answers; by default false.
- measure: by default "exact_match".
- classes: for the measure "classification".
- max_tokens: the longest answer, in tokens.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from lclm_rag.errors import EvaluationError
from lclm_rag.evaluation.measures import check_answers, check_measure
from lclm_rag.evaluation.questions import EvalQuestion, EvalSet

__all__ = ["json_lines", "one_or_more", "read_questions", "text_of"]

_FIELDS = (
    *("question", "answer", "answers", "document_id", "document_ids", "id", "category"),
    *("all_answers", "measure", "classes", "max_tokens"),
)


def read_questions(path: Path) -> EvalSet:
    """Read the questions of a JSONL file, in its order; their passages are to be retrieved.

    Blank lines are skipped.

    Args:
        path: The file, in UTF-8; the module's docstring lists the fields of a line.

    Raises:
        EvaluationError: When the file cannot be read or has no questions, a line is invalid, or two questions
            have the same id; the message names the file, and the line if it concerns one.
        ImportError: When a package that a measure needs is missing.
    """
    questions: list[EvalQuestion] = []
    lines: dict[str, int] = {}
    for number, record in json_lines(path):
        where = f"{path}, line {number}"
        try:
            question = _question(record, f"{path.name}:{number}")
        except ValueError as error:
            raise EvaluationError(f"{where}: {error}") from error
        if question.id in lines:
            raise EvaluationError(
                f"{where}: the id {question.id!r} is that of line {lines[question.id]} too; give each "
                "question its own."
            )
        lines[question.id] = number
        questions.append(question)
    if not questions:
        raise EvaluationError(f"{path}: holds no questions; write one JSON object on each line.")
    settings = {"file": path.name, "xxh3_128": xxhash.xxh3_128_hexdigest(path.read_bytes())}
    return EvalSet(path.name, questions, (), whole_documents=False, settings=settings)


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a JSONL file of objects; blank lines are skipped.

    Args:
        path: The file, in UTF-8.

    Yields:
        The number of each line, from 1, and its object.

    Raises:
        EvaluationError: When the file cannot be read, or a line is no JSON object.
    """
    # Line separators other than "\n" may stand inside a JSON string.
    for number, line in enumerate(_bytes(path).split(b"\n"), start=1):
        if line.strip():
            try:
                record = _record(line)
            except ValueError as error:
                raise EvaluationError(f"{path}, line {number}: {error}") from error
            yield number, record


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise EvaluationError(f"{path}: cannot be read ({reason}); check the file.") from error


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8; convert the file.") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not valid JSON ({error.msg} at column {error.colno}); write one JSON object on each line."
        ) from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise ValueError(f"JSON that cannot be read ({error}); mend the line.") from error
    if not isinstance(record, dict):
        raise ValueError("the line is JSON but not an object; write one JSON object on each line.")
    return record


def _question(record: dict[str, Any], default_id: str) -> EvalQuestion:
    if unknown := [name for name in record if name not in _FIELDS]:
        raise ValueError(
            f"{unknown[0]!r} is no field of a question; take it out, or name it as one of "
            f"{', '.join(_FIELDS)}."
        )
    measure = check_measure(text_of(record, "measure", "exact_match"))
    classes = _texts(record, "classes")
    if bool(classes) != (measure == "classification"):
        raise ValueError("classes and the measure 'classification' need each other; give both.")
    answers = one_or_more(record, "answer", "answers")
    if not answers:
        raise ValueError('the question has no answer; give "answer" or "answers".')
    all_answers = record.get("all_answers", False)
    if not isinstance(all_answers, bool):
        raise ValueError("'all_answers' must be true or false.")
    max_tokens = record.get("max_tokens", EvalQuestion.max_tokens)
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise ValueError("'max_tokens' must be a whole number from 1.")
    question = EvalQuestion(
        id=text_of(record, "id", default_id),
        question=text_of(record, "question"),
        answers=answers,
        document_ids=one_or_more(record, "document_id", "document_ids"),
        category=text_of(record, "category", ""),
        all_answers=all_answers,
        measure=measure,
        max_tokens=max_tokens,
        classes=classes,
    )
    check_answers(question)
    return question


def one_or_more(record: dict[str, Any], one: str, more: str) -> tuple[str, ...]:
    """The texts of a field that has one, or of a field that has a list; () if there is neither."""
    if one in record and more in record:
        raise ValueError(f"the line has {one!r} and {more!r}; give one of them.")
    return (text_of(record, one),) if one in record else _texts(record, more)


def _texts(record: dict[str, Any], name: str) -> tuple[str, ...]:
    values = record.get(name, [])
    if not isinstance(values, list):
        raise ValueError(f"{name!r} must be a list of texts.")
    return tuple(text_of({name: value}, name) for value in values)


def text_of(record: dict[str, Any], name: str, default: str | None = None) -> str:
    """The text of a field, which must not be blank."""
    if name not in record and default is not None:
        return default
    if name not in record:
        raise ValueError(f"{name!r} is missing; give it as a text.")
    value = record[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name!r} must be a text that is not empty, not {value!r}.")
    return value
