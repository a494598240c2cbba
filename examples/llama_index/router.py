"""Two indexes, and a router that picks the one to ask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

from fact_sheets import documents, sheets
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.selectors import LLMSingleSelector

from lclm_rag.connectors.llama_index import LatentIndex


def choose(messages: Sequence[ChatMessage], **kwargs: Any) -> ChatMessage:
    """Stands for a chat model that chooses: places are asked of the second index."""
    asked = str(messages[-1].content).rpartition("question:")[2]
    choice = 2 if sheets("place")[0].name in asked else 1
    return ChatMessage(role="assistant", content=json.dumps([{"choice": choice, "reason": "mock"}]))


def main() -> None:
    chooser = MockFunctionCallingLLM(response_generator=choose, is_chat_model=True)
    with TemporaryDirectory() as folder:
        indexes = {
            kind: LatentIndex.from_documents(documents(kind), path=f"{folder}/{kind}")
            for kind in ("person", "place")
        }
        router = RouterQueryEngine.from_defaults(
            selector=LLMSingleSelector.from_defaults(llm=chooser),
            llm=indexes["person"].llm,
            query_engine_tools=[
                index.as_query_engine(similarity_top_k=3).as_tool(kind, f"Facts about a {kind}.")
                for kind, index in indexes.items()
            ],
        )
        for kind in indexes:
            question = sheets(kind)[0].questions[0]
            print(f"{question.question} → {router.query(question.question)}")
        for index in indexes.values():
            index.close()


if __name__ == "__main__":
    main()
