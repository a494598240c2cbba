"""From a question to its answer, round by round: prompts go out, completions come in.

`answering` is a generator, so that one question can be decoded at once, from an event loop, or together with
many others (`lclm_rag.evaluation`): who drives it decides.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TYPE_CHECKING

from lclm_rag.asking import Asked, Found, ask
from lclm_rag.decoding import Completion
from lclm_rag.errors import NoPassagesError
from lclm_rag.prompting import PassageForm, SoftPrompt, next_turn
from lclm_rag.prompting.template import plain_ids
from lclm_rag.querying.expansion import (
    EXPAND_TOOL,
    EXPANDED_AGAIN,
    MAX_ROUNDS,
    Expand,
    Reply,
    parse_reply,
    tool_result,
    word_for_word,
)
from lclm_rag.querying.grounding import ground
from lclm_rag.types import Answer, Grounding, PassageKey, Round, Timings, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from lclm_rag.checkpoint import Space
    from lclm_rag.knowledge_base import KnowledgeBase

__all__ = ["Answering", "answering"]

Answering = Generator[SoftPrompt, Completion, Answer]
"""Gives prompts, takes the completion of each, and returns the answer."""


def answering(
    kb: KnowledgeBase,
    question: str,
    found: Callable[[], Found],
    *,
    form: PassageForm,
    space: Space,
    max_tokens: int,
    expand: Expand,
) -> Answering:
    """Ask one question, expanding passages as `expand` says, where they are latents. Arguments as for
    `lclm_rag.asking.ask`. Where nothing is found, no prompt is given, and the answer says so."""
    if form != "latents":
        expand = "never"
    started = time.perf_counter()
    try:
        asked = ask(kb, question, found, form, space, max_tokens, expand)
    except NoPassagesError as error:
        return _no_answer(question, str(error), time.perf_counter() - started)
    if expand in ("model", "tool"):
        return (yield from _skimming(kb, asked, max_tokens, as_tool=expand == "tool"))
    completion = yield asked.prompt
    rounds = [_round(asked.prompt, completion, asked.expanded, asked.no_room)]
    if expand == "auto" and ground(completion.text, question, asked.texts.values()).missing:
        wider = asked.expand([*asked.expanded, *asked.ranked[:EXPANDED_AGAIN]])
        new = tuple(key for key in wider.expanded if key not in asked.expanded)
        if new:
            asked = wider
            completion = yield asked.prompt
            rounds.append(_round(asked.prompt, completion, new, asked.no_room))
    return _answer(asked, asked.prompt, completion.text.strip(), completion, rounds)


def _skimming(kb: KnowledgeBase, asked: Asked, max_tokens: int, as_tool: bool) -> Answering:
    """The decoder asks for passages itself, in a chat that only grows."""
    prompt, numbers = asked.prompt, dict(enumerate(asked.assembled.used, start=1))
    open_to_it = dict(numbers)
    rounds: list[Round] = []
    new: tuple[PassageKey, ...] = ()
    no_room: tuple[PassageKey, ...] = ()
    while True:
        completion = yield prompt
        rounds.append(_round(prompt, completion, new, no_room))
        reply = parse_reply(completion.text, len(numbers))
        wished = reply.numbers or reply.unknown
        if not wished or len(rounds) == MAX_ROUNDS:
            # One that still asks, though nothing more was offered, is shown as it is.
            text = reply.answer or completion.text.strip()
            return _answer(asked, prompt, text, completion, rounds)
        room = kb.context_length - max_tokens - prompt.positions - len(completion.token_ids)
        last = len(rounds) + 1 == MAX_ROUNDS
        new, no_room = _that_fit(asked, reply, open_to_it, room, last, as_tool)
        given = [(n, asked.texts[key]) for n, key in numbers.items() if key in new]
        open_to_it = {n: key for n, key in open_to_it.items() if key not in new}
        prompt = next_turn(
            kb.checkpoint,
            asked.template,
            prompt,
            completion.token_ids,
            _turn(asked.question, given, _told(reply, new, no_room, numbers), last, as_tool),
            [EXPAND_TOOL] if as_tool else None,
        )


def _that_fit(
    asked: Asked,
    reply: Reply,
    numbers: dict[int, PassageKey],
    room: int,
    last: bool,
    as_tool: bool,
) -> tuple[tuple[PassageKey, ...], tuple[PassageKey, ...]]:
    """Of the passages that the decoder asks for and has not read (numbers): those that the next turn has room
    for, in the order in which it named them, and the others."""
    fitting: list[PassageKey] = []
    others: list[PassageKey] = []
    given: list[tuple[int, str]] = []
    for number in reply.numbers:
        if number not in numbers:
            continue
        key = numbers[number]
        longer = [*given, (number, asked.texts[key])]
        told = _told(reply, (*fitting, key), (*others, key), numbers)
        words = _turn(asked.question, longer, told, last, as_tool)[1]
        # What the chat template writes around a turn is a few tokens.
        if len(plain_ids(asked.template.inert, words)) + _AROUND_A_TURN <= room:
            given = longer
            fitting.append(key)
        else:
            others.append(key)
    return tuple(fitting), tuple(others)


_AROUND_A_TURN = 32


def _turn(
    question: str, passages: list[tuple[int, str]], told: str, last: bool, as_tool: bool
) -> tuple[str, str]:
    """(role, words) of what the decoder is given next."""
    if as_tool:
        return "tool", told + tool_result(passages)
    return "user", told + word_for_word(passages, question, last)


def _told(
    reply: Reply,
    given: tuple[PassageKey, ...],
    no_room: tuple[PassageKey, ...],
    numbers: dict[int, PassageKey],
) -> str:
    """What the decoder must know of a wish that is not fulfilled. numbers: of all passages that there are."""
    lines = [f"There is no passage {number}.\n" for number in reply.unknown]
    for number in reply.numbers:
        key = numbers.get(number)
        if key in no_room:
            lines.append(f"There is no room for passage {number}.\n")
        elif key not in given:
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


def _no_answer(question: str, reason: str, seconds: float) -> Answer:
    """Nothing was found, and nothing decoded."""
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
    asked: Asked, prompt: SoftPrompt, text: str, completion: Completion, rounds: list[Round]
) -> Answer:
    used = set(asked.assembled.used)
    tokens = {row.passage.key: row.tokens for _, row in asked.found}
    return Answer(
        question=asked.question,
        text=text,
        sources=[hit for hit, _ in asked.found if hit.key in used],
        left_out=list(asked.assembled.left_out),
        complete=completion.finish_reason == "stop",
        grounding=ground(text, asked.question, asked.texts.values()),
        rounds=tuple(rounds),
        usage=Usage(
            positions=prompt.positions,
            unexpanded_positions=asked.skimmed.prompt.positions,
            latents=prompt.latent_count,
            source_tokens=sum(tokens[span.key] for span in prompt.spans if span.key),
            generated_tokens=len(completion.token_ids),
            cached_positions=completion.cached_positions,
        ),
        timings=Timings(
            retrieve=asked.retrieve,
            load=asked.load,
            assemble=asked.assemble,
            first_token=sum(r.seconds for r in rounds[:-1]) + completion.first_token,
            total=time.perf_counter() - asked.started,
        ),
    )
