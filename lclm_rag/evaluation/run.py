"""Answer every question of a set in every context, and record the answers."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch

from lclm_rag import __version__
from lclm_rag.decoding.server import ServerDecoder
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.estimate.shapes import DecoderShape
from lclm_rag.evaluation.baselines.kvpress_environment import (
    environment_python,
    environment_versions,
)
from lclm_rag.evaluation.contexts import EvalContext
from lclm_rag.evaluation.journal import AnswerRecord, Journal
from lclm_rag.evaluation.measures import score
from lclm_rag.evaluation.questions import EvalQuestion, EvalSet
from lclm_rag.evaluation.report import summarize
from lclm_rag.evaluation.runners import Runner, runner
from lclm_rag.torch_setup import resolve_device, resolve_dtype

if TYPE_CHECKING:
    from lclm_rag.decoding import Decoder
    from lclm_rag.knowledge_base import KnowledgeBase

__all__ = ["evaluate"]

_VERSIONS = ("qdrant-edge-py", "tokenizers", "torch", "transformers", "vllm")
"""Packages that may change an answer by their version."""


def evaluate(
    kb: KnowledgeBase,
    questions: EvalSet,
    contexts: Sequence[EvalContext],
    folder: Path,
    *,
    top_k: int = 8,
    kvpress: Path | None = None,
    alone: int = 20,
    together: int = 50,
    on_progress: Callable[[EvalContext, int], None] = lambda context, count: None,
) -> dict[str, Any]:
    """Answer all questions greedily in all contexts.

    Every batch of answers is written to disk before the next begins, so a run that was killed continues where
    it stopped. Contexts may be added later.

    Args:
        kb: The knowledge base; it holds the set's documents already.
        questions: The set of questions.
        contexts: The contexts to compare.
        folder: The run's folder, new or begun with the same settings.
        top_k: How many passages to retrieve for each question.
        kvpress: The environment that `kvpress_environment` made, for contexts with a press.
        alone: How many questions, from the first on, are answered one at a time and timed.
        together: How many of the other questions are answered together at most.
        on_progress: Called with the context and the number of its questions that are answered.

    Returns:
        The report, which is also written to `report.json` in `folder`.

    Raises:
        EvaluationError: Before any question is answered, when the folder was begun with other settings, when
            another process writes to it, or when a context cannot be evaluated on these questions.
    """
    settings = _settings(kb, questions, top_k)
    with ExitStack() as resources, Journal(folder, settings) as journal:
        runners = [
            (context, runner(kb, questions, context, top_k, kvpress, resources))
            for context in contexts
        ]
        timed = {q.id for q in questions.questions[:alone]}
        # vLLM and a server use memory in other processes, which cannot be measured from here.
        device = kb.decoder.model.device if isinstance(kb.decoder, TransformersDecoder) else None
        gpu = device if device is not None and device.type == "cuda" else None
        for context, run in runners:
            done = journal.done(context.name)
            count = len(done)
            on_progress(context, count)
            todo = [q for q in questions.questions if q.id not in done]
            if todo and todo[0].id in timed:
                run(todo[:1])  # An untimed first answer, so that loading is not part of the times.
            for batch in _batches(todo, timed, together):
                journal.add(_measured(batch, run, batch[0].id in timed, gpu))
                count += len(batch)
                on_progress(context, count)
        manifest = kb.store.manifest
        report = summarize(
            questions.questions,
            journal.answers,
            settings,
            kv_bytes_per_position=_kv_bytes(kb),
            store={"bytes": manifest.bytes, "source_tokens": manifest.totals.tokens},
        )
        if kvpress is not None and any(context.press for context in contexts):
            report["kvpress"] = environment_versions(environment_python(kvpress))
        path = folder / "report.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
        temporary.replace(path)
    return report


def _settings(kb: KnowledgeBase, questions: EvalSet, top_k: int) -> dict[str, Any]:
    """What the answers depend on, apart from the contexts."""
    layout = kb.store.layout
    decoder = kb.decoder
    return {
        "lclm_rag": __version__,
        "commit": _commit(),
        "versions": _versions(),
        "set": questions.name,
        "questions": {"count": len(questions.questions), **questions.settings},
        "top_k": None if questions.whole_documents else top_k,
        "checkpoint": kb.checkpoint.name,
        "encoder": layout.fingerprint,
        "decoder": kb.checkpoint.decoder_fingerprint,
        "decoded_by": type(decoder).__name__,
        "decoder_options": _shown(kb.decoder_options),
        "server": _server(decoder),
        "device": str(resolve_device(kb.device)),
        "dtype": str(resolve_dtype(kb.dtype, kb.device)).removeprefix("torch."),
        "codec": layout.codec,
        "space": layout.space,
        "order": kb.order,
        "passage_tokens": kb.settings.passage_tokens,
        "contextual_headers": kb.settings.contextual_headers,
        "frame": kb.frame.name,
        "instruction": kb.template.instruction,
        "embedder": kb.settings.embedder,
        "passages": len(kb),
        "store": _digest(kb),
    }


def _commit() -> str | None:
    """The last commit that changed this package, with "+" if a file is other now; None outside of git."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Installed into an environment inside somebody's repository, it is not of that repository.
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("log", "-1", "--format=%H", "--", ".") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _shown(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them, without secrets."""
    plain = (str, int, float, bool, type(None))
    return {
        name: value if isinstance(value, plain) else repr(value)
        for name, value in sorted(options.items())
        if name != "api_key"
    }


def _server(decoder: Decoder) -> dict[str, str] | None:
    """The server that decodes, without the password that its URL may have, and its name of the model."""
    if not isinstance(decoder, ServerDecoder):
        return None
    url = urlsplit(decoder.url)
    bare = url._replace(netloc=url.netloc.rpartition("@")[2])
    return {"url": bare.geturl(), "model": decoder.model}


def _digest(kb: KnowledgeBase) -> str:
    """A digest that changes whenever the store's visible passages change."""
    digest = hashlib.sha256()
    for entry in sorted(kb.store.entries(), key=lambda entry: entry.sha256):
        deleted = entry.deletions.checksum if entry.deletions else 0
        digest.update(f"{entry.sha256} {deleted}\n".encode())
    return digest.hexdigest()[:16]


def _kv_bytes(kb: KnowledgeBase) -> int:
    """The size of the decoder's KV cache for one position, in bytes."""
    in_half_precision = DecoderShape.of(kb.checkpoint).kv_bytes
    return in_half_precision * resolve_dtype(kb.dtype, kb.device).itemsize // 2


def _batches(
    questions: Sequence[EvalQuestion], timed: set[str], together: int
) -> Iterator[Sequence[EvalQuestion]]:
    """Timed questions one at a time; then the others, grouped by their longest answer."""
    for question in questions:
        if question.id in timed:
            yield [question]
    rest = sorted((q for q in questions if q.id not in timed), key=lambda q: q.max_tokens)
    for _, group in groupby(rest, key=lambda q: q.max_tokens):
        of_length = list(group)
        for start in range(0, len(of_length), together):
            yield of_length[start : start + together]


def _measured(
    batch: Sequence[EvalQuestion], run: Runner, timed: bool, gpu: torch.device | None
) -> list[AnswerRecord]:
    """Answer a batch, and add times, peak memory and scores to its records.

    gpu: the device whose memory this process uses; None if there is none.
    """
    if gpu is not None:
        torch.cuda.reset_peak_memory_stats(gpu)
    started = time.perf_counter()
    answers = run(batch)
    seconds = time.perf_counter() - started
    records = []
    for question, record in zip(batch, answers, strict=True):
        if timed:
            peak = None if gpu is None else torch.cuda.max_memory_allocated(gpu)
            record = replace(record, seconds=seconds, peak_memory=record.peak_memory or peak)
        else:
            # Measured over a whole batch, so not valid for a single question.
            record = replace(record, first_token=None, peak_memory=None)
        scores = score(question, record.answer)
        records.append(replace(record, scores={name: float(v) for name, v in scores.items()}))
    return records
