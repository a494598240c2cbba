"""Chats with `<|memory_start|>…<|memory_end|>` in their messages → blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import Tokenizer

from lclm_rag.checkpoint import MEMORY, MEMORY_END, MEMORY_START, Checkpoint
from lclm_rag.errors import CheckpointError
from lclm_rag.prompting.markup import memory_regions
from lclm_rag.prompting.template import PromptTemplate, plain_ids
from lclm_rag.training.blocks import Block, BlockBuilder
from lclm_rag.training.examples import Chat

__all__ = ["check_marks", "messages"]

_MEMORY = f"{re.escape(MEMORY_START)}.*?{re.escape(MEMORY_END)}"
# Takes the place of a special token that stands in a text while the chat template is rendered.
_INERT = "\ue000lclm-rag-inert-{}\ue000"
_INERTS = re.compile(_INERT.format(r"(\d+)"))


def messages(checkpoint: Checkpoint, template: PromptTemplate, chat: Chat) -> Block:
    """Learn what the assistant says in a chat, tool calls and ends of turns included.

    Memory marks count in the contents of messages, of all roles; in tools and tool calls they are plain
    letters, as all other special tokens are everywhere.

    Args:
        checkpoint: The checkpoint, whose decoder's chat template is used.
        template: The template of the decoder's prompts.
        chat: The chat.

    Returns:
        The block.

    Raises:
        ValueError: When marks do not pair up, the chat template does not take the chat, or the assistant says
            nothing.
        CheckpointError: When one cannot tell where the chat template begins and ends turns.
    """
    special = _special(template.markup)
    opening, ending = _assistant_turn(checkpoint)
    given = [{**_inert(m, special), "content": _content(m, special)} for m in chat.messages]
    turns = sum(message.get("role") == "assistant" for message in given)
    if not turns:
        raise ValueError("The chat has no turn of the assistant.")
    rendered = _render(checkpoint, given, _inert(list(chat.tools), special))
    check_marks(rendered)
    if rendered.count(opening) != turns:
        raise ValueError(
            f"The chat template begins {rendered.count(opening)} turns of the assistant, not {turns}."
        )
    builder = BlockBuilder(template, checkpoint.config.compression_ratio, "messages")
    parts = "|".join((_MEMORY, *map(re.escape, (opening, *special))))
    turn, speaking = 0, False
    for piece in re.split(f"({parts})", rendered, flags=re.DOTALL):
        if piece == opening:
            turn += 1
            speaking = turn == turns or not chat.last_only
            builder.given(template.markup_ids(piece))
        elif piece.startswith(MEMORY_START):
            words = piece.removeprefix(MEMORY_START).removesuffix(MEMORY_END)
            builder.memory(plain_ids(checkpoint.encoder_tokenizer, _letters(words, special)))
        elif piece in special:
            _append(builder, template.markup_ids(piece), speaking)
            speaking = speaking and piece != ending
        else:
            _append(builder, plain_ids(template.inert, _letters(piece, special)), speaking)
    return builder.block()


def check_marks(text: str) -> None:
    """Check the memory marks in a text.

    Args:
        text: The text.

    Raises:
        ValueError: When one is without its partner, or there is nothing between two.
    """
    marks = re.findall(f"{re.escape(MEMORY_START)}|{re.escape(MEMORY_END)}", text)
    if marks != [MEMORY_START, MEMORY_END] * (len(marks) // 2):
        raise ValueError(f"A {MEMORY_START} or {MEMORY_END} is without its partner.")
    if not all(memory.strip() for memory in memory_regions(text)):
        raise ValueError(f"There is nothing between {MEMORY_START} and {MEMORY_END}.")


def _append(builder: BlockBuilder, token_ids: Sequence[int], learned: bool) -> None:
    builder.said(token_ids) if learned else builder.given(token_ids)


def _render(checkpoint: Checkpoint, given: Sequence[dict[str, Any]], tools: list[Any]) -> str:
    try:
        return str(
            checkpoint.chat_tokenizer.apply_chat_template(
                list(given), tools=tools or None, tokenize=False, add_generation_prompt=False
            )
        )
    except Exception as error:  # Templates raise what they like, through jinja2.
        raise ValueError(f"The chat template does not take this chat: {error}") from error


@cache
def _assistant_turn(checkpoint: Checkpoint) -> tuple[str, str]:
    """What the chat template writes before a turn of the assistant, and the token after it."""
    mark = _INERT.format(0)
    asked = [{"role": "user", "content": mark}]
    before = _render(checkpoint, asked, [])
    whole = str(
        checkpoint.chat_tokenizer.apply_chat_template(
            asked, tokenize=False, add_generation_prompt=True
        )
    )
    said = [*asked, {"role": "assistant", "content": mark}]
    after = _render(checkpoint, said, []).rpartition(mark)[2]
    special = _special(checkpoint.decoder_tokenizer)
    opening = whole.removeprefix(before)
    ends = [token for token in special if token in after]
    if opening == whole or not any(token in opening for token in special) or not ends:
        raise CheckpointError(
            f"The chat template in {checkpoint.decoder_folder} does not begin and end the assistant's turns "
            "with special tokens, so chats cannot be learned."
        )
    return opening, min(ends, key=after.index)


@cache
def _special(tokenizer: Tokenizer) -> tuple[str, ...]:
    """All special tokens, the longest first."""
    added = tokenizer.get_added_tokens_decoder().values()
    found = {MEMORY_START, MEMORY, MEMORY_END, *(t.content for t in added if t.special)}
    return tuple(sorted(found, key=lambda token: (-len(token), token)))


def _inert(value: Any, special: Sequence[str], keep: Sequence[str] = ()) -> Any:
    """The value with special tokens in all its texts taken out of the chat template's sight."""
    if isinstance(value, str):
        marks = "|".join(re.escape(token) for token in special)
        return re.sub(
            marks,
            lambda m: m[0] if m[0] in keep else _INERT.format(special.index(m[0])),
            value,
        )
    if isinstance(value, dict):
        return {key: _inert(each, special) for key, each in value.items()}
    return [_inert(each, special) for each in value] if isinstance(value, list) else value


def _letters(text: str, special: Sequence[str]) -> str:
    """The text as it was before `_inert`."""
    return _INERTS.sub(lambda m: special[int(m[1])], text)


def _content(message: dict[str, Any], special: Sequence[str]) -> str:
    content = message.get("content", "")
    if not isinstance(content, str):
        raise ValueError("The content of a message is not a text.")
    check_marks(content)
    return str(_inert(content, special, (MEMORY_START, MEMORY_END)))
