"""From a question's hits to its answer, round by round: prompts go out, completions come in.

`answer` is a generator, so whoever drives it decides whether one question is decoded at once, from an event
loop, or together with many others (`lclm_rag.evaluation`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.decoding import (
    Completion,
    Decoder,
    Sampling,
    aanswer_pieces,
    all_answered,
    said,
)
from lclm_rag.prompting import SoftPrompt, next_turn
from lclm_rag.prompting.frames import fill
from lclm_rag.prompting.replies import Reply, mentioned, parse_reply, without_mark
from lclm_rag.prompting.template import plain_ids
from lclm_rag.querying.expansion import (
    EXPANDED_AGAIN,
    Given,
    next_messages,
)
from lclm_rag.querying.grounding import ground
from lclm_rag.querying.prompts import PromptBuilder, QueryPrompt
from lclm_rag.querying.query import Query
from lclm_rag.querying.reader import Retrieved
from lclm_rag.types import Answer, Grounding, PassageKey, Round, Timings, Usage

__all__ = [
    "Rounds",
    "adrive",
    "adrive_all",
    "answer",
    "astream_answer",
    "drive",
    "drive_all",
    "no_answer",
    "standalone",
    "step",
]

T = TypeVar("T")

Rounds = Generator[SoftPrompt, Completion, Answer]
"""Yields prompts, is sent the completion of each, and returns the answer."""


def answer(
    builder: PromptBuilder, query: Query, retrieved: Retrieved, before: Sequence[Round] = ()
) -> Rounds:
    """Answer one question from its hits, expanding latents as the query says.

    Args:
        builder: Builds the prompts.
        query: The question and its options.
        retrieved: The hits.
        before: The round in which the question was put so that it can be searched for.

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
        return (yield from _skim(builder.checkpoint, built, started, before))
    completion = yield built.prompt
    rounds = [_round(built.prompt, completion, built.expanded, built.no_room)]
    text = said(builder.checkpoint, built.prompt, completion)
    reply = parse_reply(text, len(built.assembled.used))
    missing = _missing(built, text) if query.expand == "auto" and not reply.asks else 0
    if query.expand == "auto" and (reply.asks or missing):
        # A decoder that was trained to ask may do so although nothing is offered.
        wanted = [built.assembled.used[n - 1] for n in reply.numbers]
        wider = built.expand([*built.expanded, *(wanted or built.ranked[:EXPANDED_AGAIN])])
        new = tuple(key for key in wider.expanded if key not in built.expanded)
        if new:
            built = wider
            again = yield built.prompt
            rounds.append(_round(built.prompt, again, new, built.no_room))
            text_again = said(builder.checkpoint, built.prompt, again)
            reply_again = parse_reply(text_again, len(built.assembled.used))
            # A first reply that is an answer gives way only to one that is better grounded.
            cut = again.finish_reason != "stop" and completion.finish_reason == "stop"
            answers = bool(without_mark(text_again)) and not reply_again.asks and not cut
            if reply.asks or (answers and _missing(built, text_again) < missing):
                completion, text, reply = again, text_again, reply_again
    return _answer(
        built,
        built.prompt,
        without_mark(text),
        completion,
        [*before, *rounds],
        started,
        asks=reply.asks,
    )


def standalone(
    builder: PromptBuilder, query: Query
) -> Generator[SoftPrompt, Completion, tuple[Query, list[Round]]]:
    """Put a question that follows others so that it can be searched for.

    Args:
        builder: Builds the prompts.
        query: The question and its options.

    Yields:
        The prompt to decode, if the decoder does it. Send its completion.

    Returns:
        The question to search and to answer, and the round that it took, if any.
    """
    steps = builder.follow_up(query)
    try:
        prompt = next(steps)
    except StopIteration as finished:
        return finished.value, []
    completion = yield prompt
    try:
        steps.send(completion)
    except StopIteration as finished:
        query = finished.value
    found = _round(prompt, completion, (), ())
    return query, [replace(found, reply=query.search, purpose="follow_up")]


async def adrive(
    steps: Generator[SoftPrompt, Completion, T], decoder: Decoder, sampling: Sampling
) -> T:
    """Send the steps the completions of their prompts, without blocking the event loop.

    Args:
        steps: The steps.
        decoder: Completes the prompts.
        sampling: How tokens are chosen.

    Returns:
        What the steps return.

    Raises:
        PromptError: When the decoder refuses a prompt.
        DecoderError: When the decoder fails, or is closed.
    """
    return (await adrive_all([steps], decoder, sampling))[0]


async def adrive_all(
    steps: Sequence[Generator[SoftPrompt, Completion, T]], decoder: Decoder, sampling: Sampling
) -> list[T]:
    """`adrive` for many at once: the prompts of a round are decoded together.

    Args:
        steps: The steps of each.
        decoder: Completes the prompts.
        sampling: How tokens are chosen.

    Returns:
        What each returns.

    Raises:
        PromptError: As for `adrive`.
        DecoderError: As for `adrive`.
    """
    results: dict[int, T] = {}
    prompts = await asyncio.to_thread(_next_prompts, steps, None, results)
    while prompts:
        decoded = all_answered(await decoder.acomplete(list(prompts.values()), sampling))
        completions = dict(zip(prompts, decoded, strict=True))
        prompts = await asyncio.to_thread(_next_prompts, steps, completions, results)
    return [results[i] for i in range(len(steps))]


def drive(steps: Generator[SoftPrompt, Completion, T], decoder: Decoder, sampling: Sampling) -> T:
    """`adrive` for callers outside of event loops.

    Args:
        steps: The steps.
        decoder: Completes the prompts.
        sampling: How tokens are chosen.

    Returns:
        What the steps return.
    """
    return drive_all([steps], decoder, sampling)[0]


def drive_all(
    steps: Sequence[Generator[SoftPrompt, Completion, T]], decoder: Decoder, sampling: Sampling
) -> list[T]:
    """`adrive_all` for callers outside of event loops.

    Args:
        steps: The steps of each.
        decoder: Completes the prompts.
        sampling: How tokens are chosen.

    Returns:
        What each returns.
    """
    results: dict[int, T] = {}
    prompts = _next_prompts(steps, None, results)
    while prompts:
        decoded = all_answered(decoder.complete(list(prompts.values()), sampling))
        prompts = _next_prompts(steps, dict(zip(prompts, decoded, strict=True)), results)
    return [results[i] for i in range(len(steps))]


def _next_prompts(
    steps: Sequence[Generator[SoftPrompt, Completion, T]],
    completions: Mapping[int, Completion] | None,
    results: dict[int, T],
) -> dict[int, SoftPrompt]:
    """Go on with those that have a completion (None: begin with all): their next prompts, by their number."""
    prompts: dict[int, SoftPrompt] = {}
    for i in range(len(steps)) if completions is None else completions:
        try:
            prompts[i] = next(steps[i]) if completions is None else steps[i].send(completions[i])
        except StopIteration as finished:
            results[i] = finished.value
    return prompts


async def astream_answer(
    builder: PromptBuilder,
    query: Query,
    retrieved: Retrieved,
    decoder: Decoder,
    before: Sequence[Round] = (),
) -> AsyncGenerator[str | Answer]:
    """Answer one question from its hits piece by piece, in one round.

    Closing the generator ends the generation.

    Args:
        builder: Builds the prompts.
        query: The question and its options; `expand` is not "model" or "tool".
        retrieved: The hits.
        decoder: Completes the prompt.
        before: As for `answer`.

    Yields:
        The pieces of the answer, and last the answer.

    Raises:
        ContextLengthError: As for `PromptBuilder.build`.
        NoPassagesError: As for `PromptBuilder.build`.
        PromptError: When the decoder refuses the prompt.
        DecoderError: When the decoder fails, or is closed.
    """
    started = time.perf_counter() - retrieved.seconds
    built = await asyncio.to_thread(builder.build, query, retrieved)
    finished: list[Completion] = []
    pieces = aanswer_pieces(decoder, built.prompt, query.sampling, finished.append)
    text = ""
    async with aclosing(pieces):
        async for piece in pieces:
            text += piece
            yield piece
    (completion,) = finished
    reply = parse_reply(
        said(builder.checkpoint, built.prompt, completion), len(built.assembled.used)
    )
    rounds = [_round(built.prompt, completion, built.expanded, built.no_room)]
    yield _answer(
        built, built.prompt, text, completion, [*before, *rounds], started, asks=reply.asks
    )


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


def _missing(built: QueryPrompt, text: str) -> int:
    """How many numbers, codes and quotations of a reply its sources do not have."""
    return len(ground(without_mark(text), built.query.question, built.texts.values()).missing)


def _skim(
    checkpoint: Checkpoint, built: QueryPrompt, started: float, before: Sequence[Round]
) -> Rounds:
    """Rounds in which the decoder asks for passages itself, in a chat that only grows."""
    expansion = built.template.frame.expansion
    prompt, numbers = built.prompt, dict(enumerate(built.assembled.used, start=1))
    unread = {n: key for n, key in numbers.items() if key not in built.expanded}
    rounds: list[Round] = []
    new, no_room = built.expanded, built.no_room
    while True:
        completion = yield prompt
        rounds.append(_round(prompt, completion, new, no_room))
        reply = parse_reply(said(checkpoint, prompt, completion), len(numbers))
        done = len(rounds)
        too_early = expansion.must_expand and len(unread) == len(numbers) and not reply.asks
        if too_early and done < expansion.rounds:
            reply = Reply(tuple(_meant(built, reply, numbers)), (), "")
        if not reply.asks or done >= expansion.rounds:
            break
        room = built.budget - prompt.positions - len(completion.token_ids)
        left = expansion.rounds - done
        given, new, no_room = _given(built, reply, numbers, unread, room, left, too_early)
        unread = {n: key for n, key in unread.items() if key not in new}
        messages = next_messages(built.template.frame, given, by_tool=bool(built.template.tools))
        prompt = next_turn(checkpoint, built.template, prompt, completion.token_ids, messages)
    if reply.asks and expansion.final and done == expansion.rounds:
        last = [("user", expansion.final)]
        prompt = next_turn(checkpoint, built.template, prompt, completion.token_ids, last)
        completion = yield prompt
        rounds.append(_round(prompt, completion, (), ()))
        reply = parse_reply(said(checkpoint, prompt, completion), len(numbers))
    return _answer(
        built, prompt, reply.answer, completion, [*before, *rounds], started, asks=reply.asks
    )


def _meant(built: QueryPrompt, reply: Reply, numbers: dict[int, PassageKey]) -> list[int]:
    """The passages that an answer mentions by number; if none, the best one."""
    best = [n for n, key in numbers.items() if key == built.ranked[0]]
    return mentioned(reply.answer, len(numbers)) or best


def _given(
    built: QueryPrompt,
    reply: Reply,
    numbers: dict[int, PassageKey],
    unread: dict[int, PassageKey],
    room: int,
    left: int,
    reminded: bool,
) -> tuple[Given, tuple[PassageKey, ...], tuple[PassageKey, ...]]:
    """What the decoder gets for its request, within the room there is.

    `numbers` are all passages, `unread` those that it has not read, `left` the rounds after this one. Returns
    also the keys of the passages that it gets, in the order in which it named them, and of those for which
    there is no room.
    """
    frame = built.template.frame
    by_tool = bool(built.template.tools)

    def refused(number: int, words: str) -> tuple[int, str]:
        return number, fill(words, name=fill(frame.expansion.name, number=number))

    def given(fitting: list[int], others: list[int]) -> Given:
        sentences = [refused(n, "There is no {name}.") for n in reply.unknown]
        for n in reply.numbers:
            if n not in unread:
                number, words = refused(n, "{name} is above, verbatim.")
                sentences.append((number, words[:1].upper() + words[1:]))
            elif n in others:
                sentences.append(refused(n, "There is no room for {name}."))
        return Given(
            passages=tuple((n, built.texts[numbers[n]]) for n in sorted(fitting)),
            refused=tuple(sentences),
            question=built.query.question,
            left=left,
            last=left == 1,
            unreadable=reply.unreadable,
            reminded=reminded,
        )

    def length(words: Given) -> int:
        messages = next_messages(frame, words, by_tool=by_tool)
        # The chat template writes only a few tokens around a turn.
        return sum(len(plain_ids(built.template.inert, w)) + _AROUND_A_TURN for _, w in messages)

    fitting: list[int] = []
    others: list[int] = []
    for n in reply.numbers:
        if n in unread:
            # Every refusal is counted, though the passage may yet be taken.
            fits = length(given([*fitting, n], [*others, n])) <= room
            (fitting if fits else others).append(n)
    return (
        given(fitting, others),
        tuple(numbers[n] for n in fitting),
        tuple(numbers[n] for n in others),
    )


_AROUND_A_TURN = 32


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
    *,
    asks: bool,
) -> Answer:
    """The answer, which the completion gives; without text if that still asks for passages."""
    text = "" if asks else text
    only_thought = not asks and not text and bool(completion.text.strip())
    used = set(built.assembled.used)
    tokens = {row.passage.key: row.tokens for row in built.retrieved.rows}
    question = built.query.question
    return Answer(
        question=question,
        text=text,
        sources=[hit for hit in built.retrieved.hits if hit.key in used],
        left_out=list(built.assembled.left_out),
        history_left_out=built.history_left_out,
        complete=completion.finish_reason == "stop" and not asks and not only_thought,
        grounding=ground(text, question, built.texts.values()),
        rounds=tuple(rounds),
        usage=Usage(
            positions=prompt.positions,
            unexpanded_positions=built.skimmed.prompt.positions,
            latents=prompt.latent_count,
            source_tokens=sum(tokens[span.key] for span in prompt.spans if span.key),
            generated_tokens=sum(r.generated_tokens for r in rounds),
            cached_positions=rounds[-1].cached_positions,
        ),
        timings=Timings(
            retrieve=built.retrieved.seconds,
            load=built.load,
            assemble=built.assemble,
            first_token=sum(r.seconds for r in rounds[:-1]) + rounds[-1].first_token,
            total=time.perf_counter() - started,
        ),
        reason=_STILL_ASKS if asks else _ONLY_THOUGHT if only_thought else "",
    )


_ONLY_THOUGHT = "The decoder wrote nothing but thoughts; raise max_tokens if they were cut."
_STILL_ASKS = (
    "The decoder asked for passages verbatim instead of answering, and could not be given more. Ask with "
    'expand="model" or fewer passages, or raise max_tokens.'
)
