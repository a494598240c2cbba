"""What is learned in the frame's prompt: to give a text back, to answer, to ask for a passage."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.prompting.chat import next_turn
from lclm_rag.prompting.frames import fill
from lclm_rag.prompting.soft_prompt import SoftPrompt
from lclm_rag.prompting.template import PromptTemplate, plain_ids
from lclm_rag.querying.expansion import Given, next_messages, tool_offered
from lclm_rag.training.blocks import Block, BlockBuilder
from lclm_rag.training.examples import Ask, Questions

__all__ = ["REPEAT", "answer", "copy_random", "distill", "expand", "reconstruct"]

REPEAT = "Repeat the passage."
"""What is asked in place of a question where a text is to be given back."""


def reconstruct(checkpoint: Checkpoint, template: PromptTemplate, text: str) -> Block:
    """Learn to give a text back from its memory, when asked to in the frame's prompt.

    Args:
        checkpoint: The checkpoint.
        template: The template of the decoder's prompts.
        text: The text.

    Returns:
        The block.
    """
    bodies = _bodies(checkpoint, template, [text])
    builder = _shown(checkpoint, template, "reconstruct", bodies).given(_asked(template, REPEAT))
    return _replied(template, builder, text).block()


def copy_random(
    checkpoint: Checkpoint,
    template: PromptTemplate,
    rng: random.Random,
    shortest: int = 8,
    longest: int = 40,
    *,
    pasted: bool = False,
) -> Block:
    """Learn to give back random tokens, which no sense helps to guess: names are copied because of it.

    Args:
        checkpoint: The checkpoint.
        template: The template of the decoder's prompts.
        rng: Draws the tokens.
        shortest: Fewest tokens.
        longest: Most tokens.
        pasted: Whether they are pasted, and no memory.

    Returns:
        The block.

    Raises:
        ValueError: When encoder and decoder have no token in common.
    """
    common = _common_tokens(checkpoint)
    if not common:
        raise ValueError("The tokenizers of encoder and decoder have no token in common.")
    drawn = [rng.choice(common) for _ in range(rng.randint(shortest, longest))]
    words = [said for said, _ in drawn]
    if pasted:
        body, name = (False, words), "copy_random_text"
    else:
        before, after = (
            plain_ids(checkpoint.encoder_tokenizer, part)
            for part in template.frame.memory.split("{text}")
        )
        body, name = (True, [*before, *(read for _, read in drawn), *after]), "copy_random"
    builder = _shown(checkpoint, template, name, [body]).given(_asked(template, REPEAT))
    return builder.said([*words, template.end_of_turn]).block()


def answer(
    checkpoint: Checkpoint,
    template: PromptTemplate,
    questions: Questions,
    pasted: Collection[int] = (),
    objective: str = "answer",
) -> Block:
    """Learn the answers to questions about passages, in the prompts that a knowledge base would make.

    Args:
        checkpoint: The checkpoint.
        template: The template of the decoder's prompts.
        questions: The passages, in the order of their keys, and the questions.
        pasted: The numbers, from 1, of passages that are text and no memory.
        objective: By what name losses are reported.

    Returns:
        The block.
    """
    bodies = _bodies(checkpoint, template, questions.passages, pasted)
    builder = _shown(checkpoint, template, objective, bodies)
    for ask in _each(questions, builder):
        _replied(template, builder.given(_asked(template, ask.question)), ask.answer)
    return builder.block()


def distill(
    checkpoint: Checkpoint,
    template: PromptTemplate,
    questions: Questions,
) -> Block:
    """Learn to reply from memories as the decoder does from the same passages as text.

    Args:
        checkpoint: The checkpoint.
        template: The template of the decoder's prompts.
        questions: The passages, in the order of their keys, and questions with what the decoder replied to
            the prompts with pasted passages.

    Returns:
        The block, with these prompts as its teacher.
    """
    everything = range(1, len(questions.passages) + 1)
    teacher = answer(checkpoint, template, questions, everything, "distill")
    return replace(answer(checkpoint, template, questions, (), "distill"), teacher=teacher)


def expand(
    checkpoint: Checkpoint,
    template: PromptTemplate,
    questions: Questions,
) -> Block:
    """Learn to ask for a passage verbatim and to answer from it, in the chat of `expand="model"`.

    Args:
        checkpoint: The checkpoint.
        template: The template of the decoder's prompts, without an offer.
        questions: The passages, in the order of their keys, and the questions. In place of spaces that
            answers begin with, "ANSWER: " is put there, or "FINAL: " if passages are asked for by a tool.

    Returns:
        The block.

    Raises:
        ValueError: When there is no such passage, or the frame does not allow what is to be learned.
        CheckpointError: When the decoder's chat template does not take the turns.
    """
    frame, passages = template.frame, questions.passages
    offering = template.offering(checkpoint, tool_offered(frame, "model"))
    bodies = _bodies(checkpoint, template, passages)
    builder = _shown(checkpoint, offering, "expand", bodies)
    mark = "FINAL: " if offering.tools else "ANSWER: "
    for ask in _each(questions, builder):
        builder.given(_asked(offering, ask.question))
        if ask.number is None:
            if frame.expansion.must_expand:
                raise ValueError(
                    f"In the frame {frame.name} a passage is asked for first: give number."
                )
        elif not 1 <= ask.number <= len(passages):
            raise ValueError(f"There is no passage {ask.number}; there are {len(passages)}.")
        elif frame.expansion.rounds < 2:
            raise ValueError(f"In the frame {frame.name} no passage can be asked for.")
        else:
            left = frame.expansion.rounds - 1
            passage = (ask.number, passages[ask.number - 1])
            given = Given((passage,), (), ask.question, left, left == 1)
            asked = next_messages(frame, given, by_tool=bool(offering.tools))
            request = offering.markup_ids(_request(offering, ask.number))
            turn = next_turn(checkpoint, offering, SoftPrompt([]), request, asked).token_ids
            # The request and the end of its turn, and then what it gets.
            builder.said(turn[: len(request) + 1]).given(turn[len(request) + 1 :])
        _replied(offering, builder, mark + ask.answer.lstrip())
    return builder.block()


# --- parts ------------------------------------------------------------------------------------------

_Body = tuple[bool, list[int]]
"""Whether a passage is a memory; its tokens, the encoder's or the decoder's."""


def _bodies(
    checkpoint: Checkpoint,
    template: PromptTemplate,
    passages: Sequence[str],
    pasted: Collection[int] = (),
) -> list[_Body]:
    bodies = []
    for number, text in enumerate(passages, start=1):
        if number in pasted:
            bodies.append((False, plain_ids(template.inert, text)))
        else:
            read = fill(template.frame.memory, text=text)
            bodies.append((True, plain_ids(checkpoint.encoder_tokenizer, read)))
    return bodies


def _shown(
    checkpoint: Checkpoint, template: PromptTemplate, objective: str, bodies: Sequence[_Body]
) -> BlockBuilder:
    """The frame's prompt, up to where the question begins."""
    ratio = checkpoint.config.compression_ratio
    builder = BlockBuilder(template, ratio, objective)
    spans = [
        template.memory_span(-(-len(ids) // ratio)) if compressed else ids
        for compressed, ids in bodies
    ]
    context, starts = template.context(template.start, spans)
    done = 0
    for (compressed, ids), span, start in zip(bodies, spans, starts, strict=True):
        builder.given(context[done:start])
        builder = builder.memory(ids) if compressed else builder.given(ids)
        done = start + len(span)
    return builder.given(context[done:])


def _each(questions: Questions, builder: BlockBuilder) -> Iterator[Ask]:
    """The questions; if there are several, a tail is begun for each."""
    for ask in questions.asks:
        if len(questions.asks) > 1:
            builder.tail()
        yield ask


def _asked(template: PromptTemplate, question: str) -> list[int]:
    """What comes behind the passages, up to where the reply begins."""
    return list(template.ends(question).after)


def _replied(template: PromptTemplate, builder: BlockBuilder, words: str) -> BlockBuilder:
    return builder.said([*plain_ids(template.inert, words), template.end_of_turn])


@cache
def _common_tokens(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """The ids of tokens that decoder and encoder both have, added tokens left out."""
    said, read = checkpoint.decoder_tokenizer, checkpoint.encoder_tokenizer
    added = {t.content for t in said.get_added_tokens_decoder().values()}
    added |= {t.content for t in read.get_added_tokens_decoder().values()}
    known = read.get_vocab(with_added_tokens=False)
    of_decoder = said.get_vocab(with_added_tokens=False)
    both = [(i, known[t]) for t, i in of_decoder.items() if t in known and t not in added]
    return sorted(both)


def _request(template: PromptTemplate, number: int) -> str:
    """How a decoder asks for a passage; a call of a tool is written as Qwen's templates write it."""
    if not template.tools:
        return f"EXPAND: {number}"
    tool = template.tools[0]["function"]
    parameters = tool.get("parameters", {})
    known = parameters.get("properties", {})
    name = fill(template.frame.expansion.name, number=number)
    arguments = {
        key: _argument(known.get(key, {}), name, number)
        for key in parameters.get("required") or known
    }
    call = json.dumps({"name": tool["name"], "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def _argument(kind: Mapping[str, Any], name: str, number: int) -> Any:
    if kind.get("type") == "array":
        return [_argument(kind.get("items", {}), name, number)]
    return number if kind.get("type") in ("integer", "number") else name
