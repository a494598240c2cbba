"""The evaluation set published with the paper's checkpoints: `latent-context/lclm-eval` on the hub.

```
<config>/test-*.parquet      config: ruler, gsm8k, longhealth5 or longbench
  prompt      str     rendered as a chat, the context between <|memory_start|> and <|memory_end|>
  category    str     "niah_single_1_4096", "narrativeqa"; may follow a path ("memwrap/ruler/...")
  extra_info  struct  ground_truth: {answers}, or {answer_letter, answer_text} (LongHealth); scoring_function;
                      all_classes (LongBench's classifications)
```

Its card and the paper's code (https://github.com/LeonLixyz/LCLM) define how RULER is scored. What they leave
open follows the benchmarks themselves: LongBench's own metric and answer length for each of its tasks, the
letter for LongHealth, the last number for GSM8K.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from lclm_rag.checkpoint import MEMORY_END
from lclm_rag.errors import EvaluationError
from lclm_rag.evaluation.measures import check_answers, check_measure
from lclm_rag.evaluation.questions import EvalQuestion, EvalSet, Measure
from lclm_rag.hub import fetch, is_hub_id

__all__ = ["HUB_ID", "Config", "lclm_eval_questions"]

HUB_ID = "latent-context/lclm-eval"
Config = Literal["ruler", "gsm8k", "longhealth5", "longbench"]

_COLUMNS = ["prompt", "category", "extra_info"]
_ROWS_AT_ONCE = 16
"""Few, because a prompt of RULER has up to 600 kB."""


@dataclass(frozen=True)
class _Rule:
    measure: Measure
    max_tokens: int
    all_answers: bool = False


# The paper's code allows 128 tokens for every task of RULER; RULER itself allows 30 to 128.
_RULER_ALL = _Rule("contains", 128, all_answers=True)
_RULER_ANY = _Rule("contains", 128)
_RULER_TASKS = {
    **dict.fromkeys(["niah_single_1", "niah_single_2", "niah_single_3"], _RULER_ALL),
    **dict.fromkeys(["niah_multikey_1", "niah_multikey_2", "niah_multikey_3"], _RULER_ALL),
    **dict.fromkeys(["niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe"], _RULER_ALL),
    **dict.fromkeys(["qa_1", "qa_2"], _RULER_ANY),
}
_RULER_SCORING = {"ruler_string_match_all": _RULER_ALL, "ruler_string_match_part": _RULER_ANY}

# Room for reasoning before the number. Neither of these two lengths is published.
_GSM8K = _Rule("number", 512)
_LONGHEALTH = _Rule("choice", 128)

# Metric and answer length of each task: LongBench's `eval.py` and `config/dataset2maxlen.json`.
_LONGBENCH_TASKS = {
    "narrativeqa": _Rule("f1", 128),
    "qasper": _Rule("f1", 128),
    "multifieldqa_en": _Rule("f1", 64),
    "multifieldqa_zh": _Rule("f1_zh", 64),
    "hotpotqa": _Rule("f1", 32),
    "2wikimqa": _Rule("f1", 32),
    "musique": _Rule("f1", 32),
    "dureader": _Rule("rouge_l_zh", 128),
    "gov_report": _Rule("rouge_l", 512),
    "qmsum": _Rule("rouge_l", 512),
    "multi_news": _Rule("rouge_l", 512),
    "vcsum": _Rule("rouge_l_zh", 512),
    "trec": _Rule("classification", 64),
    "triviaqa": _Rule("f1_first_line", 32),
    "samsum": _Rule("rouge_l_first_line", 128),
    "lsht": _Rule("classification", 64),
    "passage_count": _Rule("count", 32),
    "passage_retrieval_en": _Rule("retrieval", 32),
    "passage_retrieval_zh": _Rule("retrieval", 32),
    "lcc": _Rule("code_similarity", 64),
    "repobench-p": _Rule("code_similarity", 64),
}


def lclm_eval_questions(
    config: Config,
    source: str | Path = HUB_ID,
    *,
    categories: Sequence[str] = (),
    limit: int | None = None,
) -> EvalSet:
    """Read the questions of one config, in the files' order; all their prompts are held in memory.

    Args:
        config: Which of the set's configs.
        source: A folder with the published files, or a data set's id on the hub, from which the config's
            files are fetched (ruler's are gigabytes).
        categories: Names of categories, in which "*" stands for anything ("niah_*_4096"); () for all.
        limit: The first so many questions of each category; None for all.

    Raises:
        EvaluationError: When files are missing or differ from the published ones, a name matches no category,
            or the scoring rule of a task is not known.
        ValueError: When an argument is invalid.
        ImportError: When a package that a measure needs is missing.
    """
    if config not in get_args(Config):
        raise ValueError(f"There is no config {config!r}; take {', '.join(get_args(Config))}.")
    if limit is not None and limit < 1:
        raise ValueError("limit must be at least 1.")
    files = _files(config, source)
    wanted = _wanted(_categories(files), categories, files[0].parent)
    for rule in {_rule(config, category) for category in wanted}:
        check_measure(rule.measure)
    questions = [
        _question(config, category, number, row, where)
        for category, number, row, where in _rows(files, wanted, limit)
    ]
    content = xxhash.xxh3_128()
    for question in questions:
        content.update(repr((question.id, question.prompt, question.answers)).encode())
    settings = {
        "config": config,
        "categories": sorted(wanted),
        "limit": limit,
        "questions_xxh3_128": content.hexdigest(),
    }
    return EvalSet(f"lclm-eval/{config}", questions, (), whole_documents=False, settings=settings)


def _rule(config: Config, category: str) -> _Rule:
    if config == "gsm8k":
        return _GSM8K
    if config == "longhealth5":
        return _LONGHEALTH
    rules = _RULER_TASKS if config == "ruler" else _LONGBENCH_TASKS
    task = re.sub(r"_[0-9]+$", "", category) if config == "ruler" else category
    # The second lookup is for a name without a length: of "niah_single_1" the first cuts off the "_1".
    rule = rules.get(task) or rules.get(category)
    if rule is None:
        raise EvaluationError(
            f"It is not known how {config}'s {category!r} is scored; choose other categories, of "
            f"{', '.join(rules)}."
        )
    return rule


def _question(
    config: Config, category: str, number: int, row: Mapping[str, Any], where: str
) -> EvalQuestion:
    prompt, extra = row["prompt"], row["extra_info"]
    if not isinstance(prompt, str) or not prompt or not isinstance(extra, dict):
        raise EvaluationError(f"{where}: prompt or extra_info is missing; fetch {HUB_ID} anew.")
    rule = _rule(config, category)
    scoring = extra.get("scoring_function")
    if config == "ruler" and scoring is not None:
        if scoring not in _RULER_SCORING:
            raise EvaluationError(
                f"{where}: it is not known how {category!r} is scored by {scoring!r}; choose other "
                "categories."
            )
        rule = _RULER_SCORING[scoring]
    truth = extra.get("ground_truth")
    answers = _texts(truth, "answer_letter", "answers", "answer")
    if not answers:
        raise EvaluationError(f"{where}: no answers in ground_truth; fetch {HUB_ID} anew.")
    classes = _texts(extra, "all_classes") or (
        _texts(truth, "all_classes") if isinstance(truth, dict) else ()
    )
    if rule.measure == "classification" and not classes:
        raise EvaluationError(f"{where}: {category!r} needs all_classes; choose other categories.")
    question = EvalQuestion(
        id=f"{config}/{category}/{number}",
        question=_question_text(prompt),
        answers=answers,
        category=category,
        all_answers=rule.all_answers,
        prompt=prompt,
        measure=rule.measure,
        max_tokens=rule.max_tokens,
        classes=classes if rule.measure == "classification" else (),
    )
    try:
        check_answers(question)
    except ValueError as error:
        raise EvaluationError(f"{where}: {error}") from error
    return question


def _texts(value: Any, *names: str) -> tuple[str, ...]:
    """The texts under the first of the names that has any; without names, those of the value itself."""
    if isinstance(value, dict):
        return next((texts for name in names if (texts := _texts(value.get(name)))), ())
    values = value if isinstance(value, list) else [value]
    return tuple(str(v) for v in values if v is not None and str(v).strip())


def _question_text(prompt: str) -> str:
    """The prompt's text after its last context; "" if there is none."""
    _, mark, behind = prompt.rpartition(MEMORY_END)
    return behind.partition("<|im_end|>")[0].strip() if mark else ""


def _rows(
    files: Sequence[Path], wanted: Mapping[str, Sequence[str]], limit: int | None
) -> Iterator[tuple[str, int, dict[str, Any], str]]:
    """The category of each wanted row, its number in the category, the row, and its place for messages."""
    named = {raw: category for category, raws in wanted.items() for raw in raws}
    seen: Counter[str] = Counter()
    for path in files:
        file = pq.ParquetFile(path)
        before = 0
        for group in range(file.num_row_groups):
            raws = file.read_row_group(group, columns=["category"])["category"].to_pylist()
            taken: dict[int, tuple[str, int]] = {}
            for index, raw in enumerate(raws):
                category = named.get(raw)
                if category is not None and (limit is None or seen[category] < limit):
                    taken[index] = category, seen[category]
                    seen[category] += 1
            for index, row in _taken_rows(file, group, set(taken)):
                yield *taken[index], row, f"{path}, row {before + index + 1}"
            before += len(raws)


def _taken_rows(
    file: pq.ParquetFile, group: int, taken: set[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    if not taken:
        return
    start = 0
    batches = file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=_COLUMNS)
    for batch in batches:
        here = [i for i in range(start, start + batch.num_rows) if i in taken]
        rows = batch.take(pa.array([i - start for i in here], pa.int64())).to_pylist()
        yield from zip(here, rows, strict=True)
        start += batch.num_rows


def _categories(files: Sequence[Path]) -> dict[str, list[str]]:
    """Each category, without the path before it, and its spellings in the files."""
    raws: set[str] = set()
    for path in files:
        try:
            file = pq.ParquetFile(path)
            if missing := [c for c in _COLUMNS if c not in file.schema_arrow.names]:
                raise EvaluationError(
                    f"{path}: has no column {missing[0]!r}; give a copy of {HUB_ID}."
                )
            raws.update(file.read(columns=["category"])["category"].unique().to_pylist())
        except (OSError, pa.ArrowException) as error:
            raise EvaluationError(f"{path}: cannot be read as Parquet; fetch it anew.") from error
    spellings: dict[str, list[str]] = {}
    for raw in raws:
        if not isinstance(raw, str):
            raise EvaluationError(f"{files[0].parent}: a row has no category; fetch {HUB_ID} anew.")
        spellings.setdefault(raw.rpartition("/")[2], []).append(raw)
    return spellings


def _wanted(
    spellings: Mapping[str, list[str]], names: Sequence[str], folder: Path
) -> dict[str, list[str]]:
    for name in names:
        if not any(fnmatchcase(category, name) for category in spellings):
            raise EvaluationError(
                f"{folder}: no category fits {name!r}; there are {', '.join(sorted(spellings))}."
            )
    fits = names or ("*",)
    return {c: raws for c, raws in spellings.items() if any(fnmatchcase(c, name) for name in fits)}


def _files(config: Config, source: str | Path) -> list[Path]:
    folder = Path(source)
    if not folder.is_dir():
        folder = _fetched(config, source)
    files = sorted((folder / config).glob("test-*.parquet"))
    if not files:
        raise EvaluationError(
            f"{folder / config}: no test-*.parquet there; give a folder with a copy of {HUB_ID}."
        )
    return files


def _fetched(config: Config, source: str | Path) -> Path:
    if isinstance(source, Path) or not is_hub_id(source):
        raise EvaluationError(f"There is no folder {str(source)!r}; give one, or {HUB_ID!r}.")
    try:
        return fetch(source, repo_type="dataset", allow_patterns=f"{config}/test-*.parquet")
    except OSError as error:
        raise EvaluationError(
            f"{source} is neither a folder nor could it be fetched from the hub ({error}); check the "
            "name and the network."
        ) from error
