"""The tables of docs/benchmarks.md from reports of `lclm-rag eval`: what is right, how sure, at what cost."""

from __future__ import annotations

from typing import Any

from shared import changed_since
from tables_markdown import MODEL, duration, markdown, percent, results, source

from lclm_rag.evaluation.datasets.parts import check_part

__all__ = [
    "exact_strings_kinds",
    "exact_strings_top4",
    "exact_strings_top8",
    "held_out",
    "joined_facts",
    "joined_facts_kinds",
    "near_duplicates",
    "near_duplicates_kinds",
    "others",
    "paraphrases",
    "ruler_4k",
    "unanswerable",
]

CONTEXTS = {
    "text": "pasted text",
    "text:1": "pasted text, the best passage alone",
    "latents": "latents",
    "latents+expand": "latents, expanded",
    "latents+expand:model": "latents, expanded by the decoder's choice",
    "closed-book": "closed book",
}
"""How a table names the contexts of `lclm-rag eval`; presses are named as one gives them to `--context`."""

_HOW_SURE = (
    "Intervals of shares are Wilson's, those of differences a bootstrap's over documents; better and worse "
    "are questions, p is that of McNemar's exact test."
)


def exact_strings_top4() -> str:
    """Four passages: accuracy, positions, KV cache and time for each context."""
    return _evaluation("eval_exact_strings_top4", "exact match")


def exact_strings_top8() -> str:
    """Eight passages: accuracy, positions, KV cache and time for each context."""
    return _evaluation("eval_exact_strings_top8", "exact match")


def exact_strings_kinds() -> str:
    """Exact match by kind of fact, for four passages and for eight."""
    kinds = {"registry code": "codes", "record id": "UUIDs", "other facts": "other facts"}
    return _kinds(("eval_exact_strings_top4", "eval_exact_strings_top8"), kinds)


def near_duplicates() -> str:
    """Subjects with twins: the first hit is the wrong one in a third."""
    return _evaluation("eval_near_duplicates", "exact match")


def near_duplicates_kinds() -> str:
    """The same by whether there is a twin."""
    return _kinds(("eval_near_duplicates",), {"alone": "no twin", "with a twin": "a twin"})


def joined_facts() -> str:
    """Facts of several sheets."""
    return _evaluation("eval_joined_facts", "score")


def joined_facts_kinds() -> str:
    """The same by how many sheets are joined, and how."""
    names = [f"{what} {each}" for what in ("list", "compare") for each in (2, 4, 8)]
    return _kinds(("eval_joined_facts",), {name: name for name in names}, "score")


def unanswerable() -> str:
    """Facts that no sheet states, and as many that one does."""
    kinds = {"answerable": "stated in a sheet", "unanswerable": "stated in none"}
    return _kinds(("eval_unanswerable",), kinds, "right")


def paraphrases() -> str:
    """The same facts asked as in training and in other words."""
    kinds = {"as trained": "as in training", "in other words": "in other words"}
    return _kinds(("eval_paraphrases",), kinds)


def others() -> str:
    """KV-cache compression, at the positions that latents take."""
    return _evaluation("eval_others", "exact match")


def ruler_4k() -> str:
    """RULER's needle tasks."""
    return _evaluation("eval_ruler_4k", "score")


def held_out() -> str:
    """What of the questions was in the training of the bundled checkpoint."""
    found = results("held_out")
    rows = [
        [run["what"], f"{run['of']:,}", f"{run['seen']:,}", percent(run["seen"] / run["of"], 0)]
        for run in found["results"]
    ]
    notes = f"Against {found['sheets']:,} fact sheets of the training part. {source('held_out')}"
    return markdown(["of the questions", "different ones", "in training", "share"], rows, notes)


def _kinds(names: tuple[str, ...], kinds: dict[str, str], measure: str = "exact match") -> str:
    """Lays out reports by category: each context's score, and its paired difference to pasted text.

    Args:
        names: Of the results.
        kinds: How the table names each category.
        measure: What the score is.
    """
    rows = []
    for name in names:
        found = results(name)
        for kind, title in kinds.items():
            category = found["categories"][kind]
            for mode, score in category["modes"].items():
                if mode == "closed-book":
                    continue
                cells = [f"{category['questions']}", _share(score)]
                cells += _paired(category["differences"].get(mode))
                of = f"{title}, top {found['settings']['top_k']}" if len(names) > 1 else title
                rows.append([of, _context(mode), *cells])
    columns = ["asked for", "context", "n", f"{measure} (95% interval)"]
    columns += ["to pasted text, points", "better, worse", "p"]
    return markdown(columns, rows, f"{_HOW_SURE} {source(*names)}", left=2)


def _share(score: dict[str, float]) -> str:
    return f"{percent(score['mean'])} ({100 * score['low']:.1f}–{100 * score['high']:.1f})"


def _paired(paired: dict[str, Any] | None) -> list[str]:
    """The difference with its interval, the counts, and p; dashes for pasted text itself."""
    if paired is None:
        return ["–"] * 3
    mean, low, high = (_signed(100 * paired[key]) for key in ("mean", "low", "high"))
    p = "< 0.001" if paired["p"] < 0.001 else f"{paired['p']:.3f}"
    return [f"{mean} ({low} to {high})", f"{paired['better']}, {paired['worse']}", p]


def _evaluation(name: str, measure: str) -> str:
    """Lays out a report of `lclm-rag eval`.

    Args:
        name: Of the result.
        measure: What its score is.
    """
    found = results(name)
    top_k = found["settings"]["top_k"]
    columns = ["context", "n", f"{measure} (95% interval)", "to pasted text, points"]
    columns += ["better, worse", "p", "recall@1", "recall" if top_k is None else f"recall@{top_k}"]
    columns += ["prompt positions", "computed positions", "KV cache at its peak"]
    columns += ["time to first token (quartiles)"]
    rows = [
        [
            _context(mode),
            str(figures["score"]["of"]),
            _share(figures["score"]),
            *_paired(found["differences"].get(mode)),
            *(_known(figures[measured]) for measured in ("recall_at_1", "recall")),
            f"{figures['positions']:,.0f}",
            f"{figures['computed_positions']:,.0f}",
            f"{figures['kv_bytes'] / 2**20:.2f} MiB",
            _time(figures),
        ]
        for mode, figures in found["modes"].items()
    ]
    settings = found["settings"]
    of = settings["questions"]
    if "documents" in of:
        subject = f"about {of['documents']} fact sheets{_chosen_on(found)}"
    else:
        lengths = ", ".join(f"{length:,}" for length in of["context_lengths"])
        subject = f"of {len(of['tasks'])} tasks at {lengths} tokens"
    passages = f"top {top_k}" if top_k else "every passage of a text"
    model = MODEL.get(settings["checkpoint"], settings["checkpoint"])
    timed = next(iter(found["modes"].values()))["timed"]
    others = "".join(
        f" kvpress's side: {', '.join(f'{name} {version}' for name, version in versions.items())}."
        for versions in [found.get("kvpress") or {}]
        if versions
    )
    ours = found["provenance"]["versions"]
    # Earlier results left out what comes before decoding, and kept no quartiles.
    known = all(figures["first_token_quartiles"] for figures in found["modes"].values())
    start = "the question" if known else "the decoder's start"
    notes = (
        f"{found['questions']} questions {subject}, {passages}; {model}, {settings['codec']} latents, "
        f"decoded by transformers {ours['transformers']} in {settings['dtype']} with torch {ours['torch']}; "
        f"times are medians of {timed} questions, from {start} to the first token.{others} {_HOW_SURE}"
    )
    return markdown(columns, rows, f"{notes} {source(name)}")


def _chosen_on(found: dict[str, Any]) -> str:
    """Checks that questions are those to report on; says so of results that predate the two parts."""
    settings = found["settings"]
    if "part" not in settings["questions"] and changed_since(found):
        return " (those that expansion was chosen on)"
    check_part(settings, "report")
    return ""


def _known(figure: dict[str, float] | None) -> str:
    return "–" if figure is None else percent(figure["mean"])


def _time(figures: dict[str, Any]) -> str:
    median = duration(figures["first_token"])
    quartiles = figures["first_token_quartiles"]
    return f"{median} ({'–'.join(map(duration, quartiles))})" if quartiles else median


def _context(mode: str) -> str:
    return CONTEXTS.get(mode, f"`{mode}`")


def _signed(points: float) -> str:
    shown = f"{points:+.1f}".replace("-", "−")
    return "0.0" if shown[1:] == "0.0" else shown
