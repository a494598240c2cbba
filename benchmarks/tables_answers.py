"""The tables of docs/benchmarks.md on answers: how many are right, and what a prompt costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tables_evaluation import CONTEXTS
from tables_markdown import MODEL, duration, markdown, percent, results, size, source, times

__all__ = [
    "bundled_checkpoint",
    "conversation",
    "expansion_rules",
    "grounding",
    "passage_order",
    "serving_bears",
    "serving_load",
    "transformers_context",
    "vllm_inputs",
]

CHECKPOINT_RESULTS = Path(__file__).parents[1] / "examples" / "train_tiny_lclm" / "results.json"

LANGUAGES = {
    "en": "English",
    "de": "German",
    "fr": "French",
    "zh": "Chinese",
    "ar": "Arabic",
    "all": "all",
}

ORDERS = {
    "key": "by document (`key`)",
    "best_first": "best first (`best_first`)",
    "best_last": "best last (`best_last`)",
}


INPUTS = {
    "text": "pasted text",
    "mixed": "mixed prompts",
    "items": "latent items",
    "items, seen": "latent items, passages seen before",
    "two-stage": "two stages: encode per question, decode from a file",
    "text, warm": "pasted text, second question",
    "items, warm": "latent items, second question",
}
"""How a table names what benchmarks/vllm_inputs.py measures, in the order of its rows."""


def grounding() -> str:
    """Precision and recall of the check of answers, before it compared normal forms and now."""
    names = ("grounding_before", "grounding")
    before, now = ({run["language"]: run for run in results(name)["results"]} for name in names)
    rows = [
        [title, check, *_precision_and_recall(found[language])]
        for language, title in LANGUAGES.items()
        for check, found in (("before", before), ("now", now))
    ]
    columns = ["language", "check", "strings: precision", "strings: recall"]
    columns += ["answers: precision", "answers: recall"]
    pairs = now["all"]["pairs"]
    notes = f"{pairs} answers, of which {now['all']['answers_false']} are false. {source(*names)}"
    return markdown(columns, rows, notes, left=2)


def serving_load() -> str:
    """Questions a second and time to the first word, by clients at once."""
    found = [run for run in results("serving")["results"] if run["what"] == "load"]
    runs = {(run["clients"], run["context"]): run["values"] for run in found}
    rows = [
        [
            str(clients),
            *(
                cell
                for values in (runs[clients, "latents"], runs[clients, "text"])
                for cell in (f"{values['per_second']:.0f}", duration(values["first_median"]))
            ),
        ]
        for clients in sorted({clients for clients, _ in runs})
    ]
    columns = ["clients", "latents: a second", "first word", "text: a second", "first word"]
    return markdown(columns, rows, f"Medians. {source('serving')}")


def serving_bears() -> str:
    """What the service costs and bears besides."""
    found = {run["what"]: run for run in results("serving")["results"]}
    engine, elsewhere = (
        found[f"overhead, {at}"]["values"] for at in ("engine", "decoder elsewhere")
    )
    memory, version, gone = (found[what]["values"] for what in ("memory", "version", "gone"))
    rows = [
        [
            f"{what}, at 32 clients",
            f"{duration(v['http'])}, {duration(v['overhead'])} more than `aquery`",
        ]
        for what, v in (
            ("An answer, engine on the same cores", engine),
            ("An answer, decoder elsewhere", elsewhere),
        )
    ]
    rows += [
        [
            f"{gone['clients']:.0f} clients that go away midway",
            f"{gone['left']:.0f} questions left",
        ],
        [
            f"A version committed during {version['requests']:,.0f} questions",
            f"{version['failed']:.0f} failed; served after {duration(version['served_after'])}",
        ],
        [
            f"Memory after {memory['requests']:,.0f} questions",
            f"{size(memory['after'] / 2**20)}, {size(memory['before'] / 2**20)} before",
        ],
    ]
    return markdown(["", "measured"], rows, source("serving"), left=2)


def conversation() -> str:
    """Positions of the prompts of a conversation."""
    found = results("conversation")
    runs = {(run["turn"], run["history"]): run for run in found["results"]}
    shown = [turn for turn in (1, 2, 5, 10, 15, 20) if (turn, "words") in runs]
    rows = []
    for turn in shown:
        none, words, latents = (runs[turn, way] for way in ("none", "words", "latents"))
        cells = [f"{run['positions']:,}" for run in (none, words, latents)]
        ratio = times(words["positions"] / latents["positions"])
        rows.append([str(turn), *cells, ratio])
    columns = ["turn", "no history", "as words", "older turns as latents", "words ÷ latents"]
    notes = f"{found['top_k']} passages at most. {source('conversation')}"
    return markdown(columns, rows, notes)


def passage_order() -> str:
    """Exact match by the order of the passages."""
    found = results("passage_order")
    score = {(run["order"], run["context"]): run for run in found["results"]}
    rows = [
        [
            title,
            *(
                f"{percent(run['score'])} ({percent(run['low'])}–{percent(run['high'])})"
                for run in (score[order, context] for context in ("latents", "text"))
            ),
        ]
        for order, title in ORDERS.items()
    ]
    notes = f"{found['questions']} questions, {found['top_k']} passages. {source('passage_order')}"
    return markdown(["order", "latents", "pasted text"], rows, notes)


def _precision_and_recall(run: dict[str, Any]) -> list[str]:
    return [
        f"{percent(right / of)} ({right} of {of})"
        for right, of in (
            (run["rightly_reported"], run["reported"]),
            (run["false_reported"], run["false"]),
            (run["answers_rightly_reported"], run["answers_reported"]),
            (run["answers_rightly_reported"], run["answers_false"]),
        )
    ]


def expansion_rules() -> str:
    """The rules that were weighed for `expand="auto"`."""
    found = results("expansion_rules")
    rows = [
        [
            rule["name"],
            percent(rule["exact_match"]),
            f"{rule['positions']:,.0f}",
            f"{rule['computed']:,.0f}",
            percent(rule["asked_again"]),
        ]
        for rule in found["results"]
    ]
    columns = ["rule", "exact match", "prompt positions", "computed positions", "second round"]
    top_k = found["results"][0]["top_k"]
    notes = f"{found['questions']} questions, top {top_k}. {source('expansion_rules')}"
    return markdown(columns, rows, notes)


def bundled_checkpoint() -> str:
    """The bundled checkpoint on facts that latents keep; examples/train_tiny_lclm has the JSON."""
    found = json.loads(CHECKPOINT_RESULTS.read_text("utf-8"))
    rows = []
    for top in ("top_4", "top_8"):
        for context in ("latents", "text"):
            score = found[top][context]
            cells = [percent(score["exact_match"]), f"{score['positions']:,.0f}"]
            rows.append([CONTEXTS[context], top.replace("_", " "), *cells])
    rows.append(["closed book", "–", percent(found["closed_book"]["exact_match"]), "–"])
    notes = (
        f"{found['questions']} held-out questions about {found['documents']} fact sheets, bf16 latents, "
        "greedy decoding. Data: `examples/train_tiny_lclm/results.json`."
    )
    return markdown(["context", "passages", "exact match", "prompt positions"], rows, notes, left=2)


def vllm_inputs() -> str:
    """Answers on vLLM by how the passages reach it, in the longest context that was measured."""
    found = results("vllm_inputs")
    tokens = max(run["source_tokens"] for run in found["results"])
    at_once = sorted({run["concurrency"] for run in found["results"]})
    least, most = at_once[0], at_once[-1]
    by = {
        (run["way"], run["concurrency"]): run
        for run in found["results"]
        if run["source_tokens"] == tokens
    }
    text, texts = by["text", least], by["text", most]
    rows = []
    for name, title in INPUTS.items():
        one, many = by[name, least], by[name, most]
        first = (
            f"{times(one['first_token'] / text['first_token'])} ({duration(one['first_token'])})"
        )
        rate = many["questions_per_second"]
        per_second = f"{times(rate / texts['questions_per_second'], 1)} ({rate:.2f})"
        row = [title, f"{one['positions']:,.0f}", first, per_second, f"{one['kv_blocks']:,}"]
        rows.append(row)
    columns = [f"passages go in as, {tokens:,} source tokens", "prompt positions"]
    columns += [f"time to first token, {least} at once", f"questions a second, {most} at once"]
    columns += [f"KV blocks of {found['block_size']}, {least} at once"]
    notes = (
        f"{MODEL.get(found['checkpoint'], found['checkpoint']).capitalize()} "
        f"({found['compression_ratio']}×), {found['max_tokens']} tokens of answer; ratios are to pasted "
        f"text in the same run. {source('vllm_inputs')}"
    )
    return markdown(columns, rows, notes)


def transformers_context() -> str:
    """Time to first token of the transformers decoder, by context and its length."""
    found = results("transformers_context")
    contexts = list(dict.fromkeys(run["context"] for run in found["results"]))
    rows = []
    for tokens in dict.fromkeys(run["source_tokens"] for run in found["results"]):
        by = {run["context"]: run for run in found["results"] if run["source_tokens"] == tokens}
        text = by["text"]["first_token"]
        cells = [
            f"{times(by[context]['first_token'] / text)} ({duration(by[context]['first_token'])}), "
            f"{by[context]['positions']:,} positions"
            for context in contexts
        ]
        rows.append([f"{tokens:,}", *cells])
    columns = ["source tokens", *(CONTEXTS.get(context, context) for context in contexts)]
    peaks = [run["peak_bytes"] / 2**20 for run in found["results"] if run["peak_bytes"] is not None]
    memory = f"peak memory at most {size(max(peaks))}" if peaks else "peak memory needs a GPU"
    dtype = found["dtype"].removeprefix("torch.")
    notes = (
        f"Random weights of the {found['shape']} shape, {dtype}; ratios are to pasted text in the same run; "
        f"{memory}. {source('transformers_context')}"
    )
    return markdown(columns, rows, notes)
