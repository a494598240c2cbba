"""An agent with the index as its tool."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

from fact_sheets import documents, sheets
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM

from lclm_rag.connectors.llama_index import LatentIndex


def act(messages: Sequence[ChatMessage], **kwargs: Any) -> ChatMessage:
    """Stands for a chat model that calls tools: it asks the tool, and repeats what it said."""
    last = messages[-1]
    if last.role == "tool":
        return ChatMessage(role="assistant", content=str(last.content))
    call = ToolCallBlock(
        tool_call_id="1", tool_name="sheets", tool_kwargs={"input": str(last.content)}
    )
    return ChatMessage(role="assistant", blocks=[call])


async def main() -> None:
    question = sheets()[0].questions[0]
    with TemporaryDirectory() as folder:
        index = LatentIndex.from_documents(documents(), path=f"{folder}/kb")
        # as_tool: the tool gives whole answers, also where the engine streams.
        tool = index.as_query_engine(similarity_top_k=3, streaming=True).as_tool("sheets", "Facts.")
        agent = FunctionAgent(tools=[tool], llm=MockFunctionCallingLLM(response_generator=act))
        print(f"{question.question} → {await agent.run(question.question)}")
        index.close()


if __name__ == "__main__":
    asyncio.run(main())
