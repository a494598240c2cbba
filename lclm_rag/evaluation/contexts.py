"""How the context of a question reaches the decoder: the modes that an evaluation compares."""

from __future__ import annotations

from dataclasses import dataclass

from lclm_rag.prompting import PassageForm
from lclm_rag.querying.expansion import Expand, check_expand

__all__ = ["MODES", "Mode", "parse_mode"]

MODES = {
    "closed-book": "no passages",
    "text": "the passages pasted",
    "latents": "the passages as latents",
    "latents+expand": "the same, expanded as lclm-rag query does it; :always, :model, :tool, or :3 for the "
    "best three",
    "llmlingua2": "the passages' text cut by LLMLingua-2 to the positions that latents take; :MODEL for "
    "another model than its published one",
    "kvpress": "the KV cache of the pasted text cut to the same; :snapkv, :kvzip, :expected_attention, …",
}
"""Name, and what it means. Behind a colon a mode can be told more."""


@dataclass(frozen=True)
class Mode:
    """form, expand: as for `KnowledgeBase.query`. press: of kvpress, "" for none. lingua: the
    model of LLMLingua-2, "" for its published one, None where it is not used."""

    name: str
    form: PassageForm
    expand: Expand = "never"
    press: str = ""
    lingua: str | None = None

    @property
    def has_passages(self) -> bool:
        return self.form != "none"


def parse_mode(name: str) -> Mode:
    """A mode by its name. Raises ValueError where there is none of that name."""
    kind, _, more = name.partition(":")
    if kind == "latents+expand":
        expand: Expand = int(more) if more.isdecimal() else more or "auto"  # type: ignore[assignment]
        check_expand(expand)
        return Mode(name, "latents", expand)
    if kind == "llmlingua2":
        return Mode(name, "text", lingua=more)
    if kind == "kvpress" and more:
        return Mode(name, "text", press=more)
    simple = {
        "closed-book": Mode(name, "none"),
        "text": Mode(name, "text"),
        "latents": Mode(name, "latents"),
    }
    if name not in simple:
        known = [*simple, "llmlingua2[:MODEL]", "latents+expand[:MORE]", "kvpress:PRESS"]
        raise ValueError(f"Unknown mode {name!r}; use {', '.join(known)}.")
    return simple[name]
