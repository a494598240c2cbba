"""Arguments of LlamaIndex's own classes that have no meaning here: refused, each with its reason."""

from __future__ import annotations

from collections.abc import Collection, Iterable

__all__ = ["refuse_others"]

_BATCHES = "the knowledge base writes in batches by itself"
_ONE_PASS = (
    "latents are answered from in one pass; for more, give text to the same model: "
    "get_response_synthesizer(llm=index.llm, …) as response_synthesizer"
)
_FUSED = "Qdrant fuses words and vectors by their ranks"
_REASONS = {
    "use_async": "await the methods that begin with a instead, such as aquery and ainsert",
    "insert_batch_size": _BATCHES,
    "store_nodes_override": "the knowledge base keeps the nodes",
    "index_struct": "from_path opens a knowledge base",
    "embed_model": "it is chosen when the knowledge base is made or opened",
    "alpha": _FUSED,
    "sparse_top_k": _FUSED,
    "hybrid_top_k": _FUSED,
    **dict.fromkeys(
        (
            "refine_template",
            "summary_template",
            "simple_template",
            "output_cls",
            "structured_answer_filtering",
            "program_factory",
            "multimodal",
        ),
        _ONE_PASS,
    ),
}


def refuse_others(taker: str, given: Iterable[str], known: Collection[str]) -> None:
    """Check the names of arguments.

    Args:
        taker: Who takes the arguments, for the message.
        given: The names of the arguments given.
        known: The names that are taken.

    Raises:
        TypeError: When one is not taken; the message says why, or what is taken.
    """
    for name in given:
        if name not in known:
            reason = _REASONS.get(name, f"it takes {', '.join(sorted(known))}")
            raise TypeError(f"{taker} takes no {name}: {reason}.")
