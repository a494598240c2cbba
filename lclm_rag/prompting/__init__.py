"""Passages and question → soft prompt."""

from lclm_rag.prompting.assembler import (
    AssembledPrompt,
    PassageForm,
    PromptPassage,
    assemble,
)
from lclm_rag.prompting.soft_prompt import SoftPrompt, Span
from lclm_rag.prompting.template import DEFAULT_INSTRUCTION, PromptTemplate

__all__ = [
    "DEFAULT_INSTRUCTION",
    "AssembledPrompt",
    "PassageForm",
    "PromptPassage",
    "PromptTemplate",
    "SoftPrompt",
    "Span",
    "assemble",
]
