"""What tracers are told of a model call inside a Runnable: its question, its answer, its usage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, LLMResult

__all__ = ["ModelCall", "amodel_call", "model_call", "usage_of"]

_SERIALIZED = {"name": "LatentDecoder"}


@dataclass
class ModelCall:
    """A model call, filled in as it goes on.

    Attributes:
        text: The answer.
        usage: What it took; None where that is not known.
    """

    text: str = ""
    usage: UsageMetadata | None = None

    def result(self) -> LLMResult:
        """The call as LangChain's callbacks take it."""
        message = AIMessage(self.text, usage_metadata=self.usage)
        return LLMResult(generations=[[ChatGeneration(message=message)]])


@contextmanager
def model_call(run_manager: Any, question: str) -> Iterator[ModelCall]:
    """Tell tracers of the model call that happens inside the block, or that it failed.

    Args:
        run_manager: LangChain's manager of the run that makes the call.
        question: The question.
    """
    started = run_manager.get_child().on_chat_model_start(_SERIALIZED, [[HumanMessage(question)]])
    call = ModelCall()
    try:
        yield call
    except BaseException as error:
        started[0].on_llm_error(error)
        raise
    started[0].on_llm_end(call.result())


@asynccontextmanager
async def amodel_call(run_manager: Any, question: str) -> AsyncIterator[ModelCall]:
    """`model_call` for event loops."""
    manager = run_manager.get_child()
    started = await manager.on_chat_model_start(_SERIALIZED, [[HumanMessage(question)]])
    call = ModelCall()
    try:
        yield call
    except BaseException as error:
        await started[0].on_llm_error(error)
        raise
    await started[0].on_llm_end(call.result())


def usage_of(positions: int, generated: int) -> UsageMetadata:
    """LangChain's account of what an answer took, in decoder positions and tokens."""
    return UsageMetadata(
        input_tokens=positions, output_tokens=generated, total_tokens=positions + generated
    )
