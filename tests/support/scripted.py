"""A decoder whose replies are given, for tests of what the library makes of them."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence

from lclm_rag import KnowledgeBase
from lclm_rag.decoding import Completion, Decoder, Sampling
from lclm_rag.decoding.decoder import Finished
from lclm_rag.prompting import SoftPrompt
from lclm_rag.prompting.template import plain_ids

__all__ = ["Scripted", "scripted", "words"]


class Scripted(Decoder):
    """Replies what it was told to, and keeps the prompts."""

    def __init__(self, like: Decoder, replies: Sequence[str]) -> None:
        self.checkpoint = like.checkpoint
        self.context_length = like.context_length
        self._replies = iter(replies)
        self.prompts: list[SoftPrompt] = []

    def reply(self, *replies: str) -> None:
        """What to reply from now on."""
        self._replies = iter(replies)

    def complete(self, prompts: Sequence[SoftPrompt], sampling: Sampling) -> list[Completion]:  # type: ignore[override]
        (prompt,) = prompts
        self.check(prompt, sampling)
        self.prompts.append(prompt)
        reply = next(self._replies)
        ids = plain_ids(self.checkpoint.inert_decoder_tokenizer, reply)
        end = self.checkpoint.decoder_tokenizer.token_to_id("<|im_end|>")
        return [Completion(reply, [*ids, end], "stop", 0.01, 0.1)]

    def stream(
        self, prompt: SoftPrompt, sampling: Sampling, finished: Finished | None = None
    ) -> Generator[str]:
        (completion,) = self.complete([prompt], sampling)
        yield from re.findall(r".{1,3}", completion.text, re.DOTALL)
        if finished:
            finished(completion)


def words(kb: KnowledgeBase, prompt: SoftPrompt) -> str:
    return str(kb.checkpoint.decoder_tokenizer.decode(prompt.token_ids, skip_special_tokens=False))


def scripted(
    kb: KnowledgeBase, *replies: str, frame: str | None = None
) -> tuple[KnowledgeBase, Scripted]:
    """The same knowledge base with a decoder that replies so."""
    decoder = Scripted(kb.decoder, replies)
    return KnowledgeBase.open(kb.path, frame=frame, decoder=decoder), decoder
