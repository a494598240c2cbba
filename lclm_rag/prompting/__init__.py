"""Passages and question → soft prompt."""

from lclm_rag.prompting.assembler import (
    AssembledPrompt,
    Context,
    Order,
    PromptPassage,
    assemble,
    check_order,
    positions,
)
from lclm_rag.prompting.chat import PASSAGES, ChatMessage, chat_ends, chat_ids, next_turn
from lclm_rag.prompting.frames import FRAMES, Expansion, Frame, frame_of, load_frame
from lclm_rag.prompting.soft_prompt import SoftPrompt, Span
from lclm_rag.prompting.template import PromptEnds, PromptTemplate

__all__ = [
    "FRAMES",
    "PASSAGES",
    "AssembledPrompt",
    "ChatMessage",
    "Context",
    "Expansion",
    "Frame",
    "Order",
    "PromptEnds",
    "PromptPassage",
    "PromptTemplate",
    "SoftPrompt",
    "Span",
    "assemble",
    "chat_ends",
    "chat_ids",
    "check_order",
    "frame_of",
    "load_frame",
    "next_turn",
    "positions",
]
