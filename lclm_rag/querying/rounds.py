"""From a question's hits to its answer, round by round: prompts go out, completions come in.

`answer` is a generator, so whoever drives it decides whether one question is decoded at once, from an event
loop, or together with many others (`lclm_rag.evaluation`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding import Completion, Decoder, Sampling, all_answered
from lclm_rag.prompting import SoftPrompt, next_turn
from lclm_rag.prompting.template import plain_ids
from lclm_rag.querying.expansion import (
    EXPAND_TOOL,
    EXPANDED_AGAIN,
    MAX_ROUNDS,
    Reply,
    parse_reply,
    tool_result,
    verbatim_turn,
)
from lclm_rag.querying.grounding import ground
from lclm_rag.querying.prompts import PromptBuilder, QueryPrompt
from lclm_rag.querying.query import Query
from lclm_rag.querying.reader import Retrieved
from lclm_rag.types import Answer, Grounding, PassageKey, Round, Timings, Usage

__all__ = ["Rounds", "adecode", "answer", "decode", "no_answer", "step"]

Rounds = Generator[SoftPrompt, Completion, Answer]
"""Yields prompts, is sent the completion of each, and returns the answer."""


def answer(builder: PromptBuilder, query: Query, retrieved: Retrieved) -> Rounds:
    """Answer one question from its hits, expanding latents as the query says.

    Args:
        builder: Builds the prompts.
        query: The question and its options.
        retrieved: The hits.

    Yields:
        The prompts to decode. Send the completion of each.

    Returns:
        The answer.

    Raises:
        ContextLengthError: As for `PromptBuilder.build`.
        NoPassagesError: As for `PromptBuilder.build`.
        CheckpointError: When the decoder's chat template does not support what `query.expand` needs.
    """
    started = time.perf_counter() - retrieved.seconds
    built = builder.build(query, retrieved)
    if query.expand in ("model", "tool"):
        return (yield from _skim(builder.checkpoint, built, started))
    completion = yield built.prompt
    rounds = [_round(built.prompt, completion, built.expanded, built.no_room)]
    if query.expand == "auto" and _lacks_sources(built, completion):
        wider = built.expand([*built.expanded, *built.ranked[:EXPANDED_AGAIN]])
        new = tuple(key for key in wider.expanded if key not in built.expanded)
        if new:
            built = wider
            completion = yield built.prompt
            rounds.append(_round(built.prompt, completion, new, built.no_room))
    text = completion.text.strip()
    return _answer(built, built.prompt, text, completion, rounds, started)


def decode(rounds: Rounds, decoder: Decoder, sampling: Sampling) -> Answer:
    """Drive the rounds of one question to its answer.

    Args:
        rounds: The rounds.
        decoder: Completes the prompts.
        sampling: How tokens are chosen.

    Returns:
        The answer.

    Raises:
        PromptError: When the decoder refuses a prompt.
    """
    next_step = step(rounds, None)
    while not isinstance(next_step, Answer):
        (completion,) = all_answered(decoder.complete([next_step], sampling))
        next_step = step(rounds, completion)
    return next_step


async def adecode(rounds: Rounds, decoder: Decoder, sampling: Sampling) -> Answer:
    """Drive the rounds of one question to its answer, without blocking the event loop.

    Args:
        rounds: The rounds.
        decoder: Completes the prompts.
        sampling: How tokens are chosen.

    Returns:
        The answer.

    Raises:
        PromptError: When the decoder refuses a prompt.
    """
    next_step = await asyncio.to_thread(step, rounds, None)
    while not isinstance(next_step, Answer):
        (completion,) = all_answered(await decoder.acomplete([next_step], sampling))
        next_step = await asyncio.to_thread(step, rounds, completion)
    return next_step


def step(rounds: Rounds, completion: Completion | None) -> SoftPrompt | Answer:
    """Go on to the next prompt, or to the answer.

    Args:
        rounds: The rounds.
        completion: The completion of the previous prompt; None at the start.

    Returns:
        The next prompt, or the answer.
    """
    try:
        return next(rounds) if completion is None else rounds.send(completion)
    except StopIteration as finished:
        result: Answer = finished.value
        return result


def _lacks_sources(built: QueryPrompt, completion: Completion) -> bool:
    """Whether the reply holds a number, a code or a quotation that its sources do not have."""
    return bool(ground(completion.text, built.query.question, built.texts.values()).missing)


def _skim(checkpoint: Checkpoint, built: QueryPrompt, started: float) -> Rounds:
    """Rounds in which the decoder asks for passages itself, in a chat that only grows."""
    as_tool = built.query.expand == "tool"
    prompt, numbers = built.prompt, dict(enumerate(built.assembled.used, start=1))
    unread = dict(numbers)
    rounds: list[Round] = []
    new: tuple[PassageKey, ...] = ()
    no_room: tuple[PassageKey, ...] = ()
    while True:
        completion = yield prompt
        rounds.append(_round(prompt, completion, new, no_room))
        reply = parse_reply(completion.text, len(numbers))
        asks = reply.numbers or reply.unknown
        if not asks or len(rounds) == MAX_ROUNDS:
            # A reply that still asks, although nothing more was offered, is shown as it is.
            text = reply.answer or completion.text.strip()
            return _answer(built, prompt, text, completion, rounds, started)
        room = built.budget - prompt.positions - len(completion.token_ids)
        last = len(rounds) + 1 == MAX_ROUNDS
        new, no_room = _that_fit(built, reply, unread, room, last, as_tool)
        passages = [(n, built.texts[key]) for n, key in numbers.items() if key in new]
        unread = {n: key for n, key in unread.items() if key not in new}
        prompt = next_turn(
            checkpoint,
            built.template,
            prompt,
            completion.token_ids,
            _turn(built, passages, _refusals(reply, new, no_room, numbers), last, as_tool),
            [EXPAND_TOOL] if as_tool else None,
        )


def _that_fit(
    built: QueryPrompt,
    reply: Reply,
    numbers: dict[int, PassageKey],
    room: int,
    last: bool,
    as_tool: bool,
) -> tuple[tuple[PassageKey, ...], tuple[PassageKey, ...]]:
    """Split the unread passages that the decoder asks for by whether the next turn has room for them.

    `numbers` are the passages that it has not read. Returns those that fit, in the order in which the decoder
    named them, and the others.
    """
    fitting: list[PassageKey] = []
    others: list[PassageKey] = []
    passages: list[tuple[int, str]] = []
    for number in reply.numbers:
        if number not in numbers:
            continue
        key = numbers[number]
        longer = [*passages, (number, built.texts[key])]
        refusals = _refusals(reply, (*fitting, key), (*others, key), numbers)
        words = _turn(built, longer, refusals, last, as_tool)[1]
        # The chat template writes only a few tokens around a turn.
        if len(plain_ids(built.template.inert, words)) + _AROUND_A_TURN <= room:
            passages = longer
            fitting.append(key)
        else:
            others.append(key)
    return tuple(fitting), tuple(others)


_AROUND_A_TURN = 32


def _turn(
    built: QueryPrompt, passages: list[tuple[int, str]], refusals: str, last: bool, as_tool: bool
) -> tuple[str, str]:
    """Role and words of the next message to the decoder."""
    if as_tool:
        return "tool", refusals + tool_result(passages)
    return "user", refusals + verbatim_turn(passages, built.query.question, last)


def _refusals(
    reply: Reply,
    expanded: tuple[PassageKey, ...],
    no_room: tuple[PassageKey, ...],
    numbers: dict[int, PassageKey],
) -> str:
    """What the decoder must know about passages that it asks for and does not get.

    `numbers` are those of all passages.
    """
    lines = [f"There is no passage {number}.\n" for number in reply.unknown]
    for number in reply.numbers:
        key = numbers.get(number)
        if key in no_room:
            lines.append(f"There is no room for passage {number}.\n")
        elif key not in expanded:
            lines.append(f"Passage {number} stands above, word for word.\n")
    return "".join(lines)


def _round(
    prompt: SoftPrompt,
    completion: Completion,
    expanded: tuple[PassageKey, ...],
    no_room: tuple[PassageKey, ...],
) -> Round:
    return Round(
        reply=completion.text.strip(),
        expanded=expanded,
        no_room=no_room,
        positions=prompt.positions,
        cached_positions=completion.cached_positions,
        generated_tokens=len(completion.token_ids),
        first_token=completion.first_token,
        seconds=completion.total,
    )


def no_answer(question: str, reason: str, seconds: float) -> Answer:
    """The answer when no passage was found and nothing was decoded.

    Args:
        question: The question.
        reason: Why no passage was found.
        seconds: How long the search took.

    Returns:
        An answer without text.
    """
    return Answer(
        question=question,
        text="",
        sources=[],
        left_out=[],
        complete=True,
        grounding=Grounding(),
        rounds=(),
        usage=Usage(0, 0, 0, 0, 0, 0),
        timings=Timings(retrieve=seconds, load=0.0, assemble=0.0, first_token=0.0, total=seconds),
        reason=reason,
    )


def _answer(
    built: QueryPrompt,
    prompt: SoftPrompt,
    text: str,
    completion: Completion,
    rounds: list[Round],
    started: float,
) -> Answer:
    used = set(built.assembled.used)
    tokens = {row.passage.key: row.tokens for row in built.retrieved.rows}
    question = built.query.question
    return Answer(
        question=question,
        text=text,
        sources=[hit for hit in built.retrieved.hits if hit.key in used],
        left_out=list(built.assembled.left_out),
        complete=completion.finish_reason == "stop",
        grounding=ground(text, question, built.texts.values()),
        rounds=tuple(rounds),
        usage=Usage(
            positions=prompt.positions,
            unexpanded_positions=built.skimmed.prompt.positions,
            latents=prompt.latent_count,
            source_tokens=sum(tokens[span.key] for span in prompt.spans if span.key),
            generated_tokens=len(completion.token_ids),
            cached_positions=completion.cached_positions,
        ),
        timings=Timings(
            retrieve=built.retrieved.seconds,
            load=built.load,
            assemble=built.assemble,
            first_token=sum(r.seconds for r in rounds[:-1]) + completion.first_token,
            total=time.perf_counter() - started,
        ),
    )
