"""The answers of an evaluation so far, on disk, so that a killed run can continue where it stopped.

A run's folder contains `run.json`, the settings, and `answers.jsonl`, one line for each question in each
context. A folder begun with other settings is refused, so that no figure ever mixes two runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lclm_rag.errors import EvaluationError

__all__ = ["AnswerRecord", "Journal"]


@dataclass(frozen=True)
class AnswerRecord:
    """One question, answered in one context; the fields are those of a line of `answers.jsonl`.

    Attributes:
        mode: The context's name.
        id: The question's id.
        answer: The answer as generated; "" if `error` says why there is none.
        error: Why there is no answer; "" otherwise.
        scores: Scores from 0 to 1 by measure, as `lclm_rag.evaluation.measures.score` gives them.
        hit: Whether a document with the answer was among the passages; None if that is not known.
        recall: The share of the documents with the answer that were among the passages; None likewise.
        recall_at_1: The same share for the best passage alone.
        grounded: Whether all exact strings of the answer are in its sources; None if it has none.
        positions: Positions of the prompt.
        computed: Prompt positions that the decoder computed over all rounds, without those that its cache
            held.
        peak_positions: The most prompt positions that the KV cache held at once.
        rounds: How many prompts the answer took.
        expanded: How many passages were verbatim in the prompt.
        left_out: How many passages the prompt had no room for.
        first_token: Seconds from the question to the first token, retrieval, reading of latents, the adapter
            and all rounds among them, if the question was answered alone.
        seconds: Seconds for the whole answer, if the question was answered alone.
        prepared: Seconds that another compressor took to make the prompt from the passages; latents need
            none.
        peak_memory: Peak bytes on the GPU; None without one.
    """

    mode: str
    id: str
    answer: str
    error: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    hit: bool | None = None
    recall: float | None = None
    recall_at_1: float | None = None
    grounded: bool | None = None
    positions: int = 0
    computed: int = 0
    peak_positions: int = 0
    rounds: int = 0
    expanded: int = 0
    left_out: int = 0
    first_token: float | None = None
    seconds: float | None = None
    prepared: float = 0.0
    peak_memory: int | None = None


class Journal:
    """The folder of one run, open for writing, by one process at a time.

    Args:
        folder: The run's folder; created if missing.
        settings: Everything that the answers depend on, as JSON.

    Raises:
        EvaluationError: When the folder was begun with other settings (the message names the first that
            differs), or when another process writes to it.

    Attributes:
        folder: The run's folder.
        answers: All records so far.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = FileLock(folder / "lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise EvaluationError(f"Another process is evaluating into {folder}.") from None
        try:
            self._check(settings)
            self.answers = list(_read(folder / "answers.jsonl"))
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Let other processes write to the folder."""
        self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def done(self, context: str) -> set[str]:
        """The ids of the questions already answered in the context of that name."""
        return {record.id for record in self.answers if record.mode == context}

    def add(self, records: Sequence[AnswerRecord]) -> None:
        """Append answers; they are on disk when this returns."""
        lines = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in records)
        with (self.folder / "answers.jsonl").open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self.answers += records

    def _check(self, settings: Mapping[str, Any]) -> None:
        path = self.folder / "run.json"
        wanted = json.loads(json.dumps(settings))
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(wanted, indent=2) + "\n", "utf-8")
            temporary.replace(path)
            return
        begun = json.loads(path.read_text("utf-8"))
        for name in (*begun, *(name for name in wanted if name not in begun)):
            if begun.get(name) != wanted.get(name):
                raise EvaluationError(
                    f"{self.folder} was begun with {name} {_short(begun.get(name))}, not "
                    f"{_short(wanted.get(name))}: use the same, or another folder."
                )


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:200]


def _read(path: Path) -> Iterable[AnswerRecord]:
    """The records of a journal; a partial last line, left by a killed run, is removed from the file."""
    if not path.exists():
        return
    whole = path.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if len(kept) < len(whole):
        with path.open("r+b") as file:
            file.truncate(len(kept))
    for line in kept.decode("utf-8").split("\n"):
        if line:
            yield AnswerRecord(**json.loads(line))
