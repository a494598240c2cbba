"""The contexts that an evaluation compares: what a question is answered from.

```
text             the passages as pasted text; text:1 only the best one, whatever the others have
latents          the passages as latents; latents:1 likewise
latents+expand   latents, expanded as `lclm-rag query` does it; :always, :model, :tool; :3 for the best three
closed-book      no passages
kvpress:PRESS    the KV cache of the pasted text, cut to as many positions as latents take; snapkv, kvzip, …
llmlingua2       the passages' text, cut by LLMLingua-2 to as many; :MODEL for another than its published one
```

`in_frames` makes several of each, one for each frame: latents@card, latents@chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lclm_rag.prompting import Context, Frame
from lclm_rag.querying.expansion import Expand, check_expand

__all__ = ["EvalContext", "in_frames", "parse_context"]


@dataclass(frozen=True)
class EvalContext:
    """One of the contexts that an evaluation compares.

    Attributes:
        name: The name in reports, as `parse_context` takes it.
        kind: What the passages go into the prompt as, as for `KnowledgeBase.query`.
        expand: Which passages go in verbatim, as for `KnowledgeBase.query`.
        press: The press of kvpress; "" for none.
        lingua: The model of LLMLingua-2; "" for its published one, None if LLMLingua-2 is not used.
        frame: The words around passages and question; None is the frame of the knowledge base.
        top_k: How many passages this context has; None is as many as the others.
    """

    name: str
    kind: Context
    expand: Expand = "never"
    press: str = ""
    lingua: str | None = None
    frame: Frame | None = None
    top_k: int | None = None

    @property
    def has_passages(self) -> bool:
        """Whether questions are answered from passages at all."""
        return self.kind != "none"


def parse_context(name: str) -> EvalContext:
    """Make a context from its name.

    Args:
        name: One of the names in the table of `lclm_rag.evaluation.contexts`.

    Raises:
        ValueError: When there is no such context.
    """
    kind, _, more = name.partition(":")
    if kind == "latents+expand":
        expand: Expand = int(more) if more.isdecimal() else more or "auto"  # type: ignore[assignment]
        check_expand(expand)
        return EvalContext(name, "latents", expand)
    if kind == "llmlingua2":
        return EvalContext(name, "text", lingua=more)
    if kind == "kvpress" and more:
        return EvalContext(name, "text", press=more)
    if kind in ("text", "latents") and (not more or (more.isdecimal() and int(more) > 0)):
        return EvalContext(name, kind, top_k=int(more) if more else None)  # type: ignore[arg-type]
    if name == "closed-book":
        return EvalContext(name, "none")
    known = ["closed-book", "text[:PASSAGES]", "latents[:PASSAGES]", "llmlingua2[:MODEL]"]
    known += ["latents+expand[:MORE]", "kvpress:PRESS"]
    raise ValueError(f"Unknown context {name!r}; use {', '.join(known)}.")


def in_frames(contexts: Sequence[EvalContext], frames: Sequence[Frame]) -> list[EvalContext]:
    """Make contexts that ask in several frames.

    Args:
        contexts: The contexts.
        frames: The frames; none leaves the contexts as they are.

    Returns:
        Each context in each frame, named CONTEXT@FRAME.
    """
    if not frames:
        return list(contexts)
    return [replace(c, name=f"{c.name}@{f.name}", frame=f) for c in contexts for f in frames]
