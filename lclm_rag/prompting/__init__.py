"""Passages and question → soft prompt."""

from lclm_rag.prompting.assembler import (
    AssembledPrompt,
    Context,
    PromptPassage,
    assemble,
    positions,
)
from lclm_rag.prompting.chat import PASSAGES, ChatMessage, chat_frame, chat_ids, next_turn
from lclm_rag.prompting.soft_prompt import SoftPrompt, Span
from lclm_rag.prompting.template import DEFAULT_INSTRUCTION, Frame, PromptTemplate

__all__ = [
    "DEFAULT_INSTRUCTION",
    "PASSAGES",
    "AssembledPrompt",
    "ChatMessage",
    "Context",
    "Frame",
    "PromptPassage",
    "PromptTemplate",
    "SoftPrompt",
    "Span",
    "assemble",
    "chat_frame",
    "chat_ids",
    "next_turn",
    "positions",
]
