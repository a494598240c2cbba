"""One question becomes several, each is asked of the index, and the answers are put together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

from fact_sheets import documents, sheets
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.query_engine import SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator

from lclm_rag.connectors.llama_index import LatentIndex, LatentSynthesizer


def take_apart(messages: Sequence[ChatMessage], **kwargs: Any) -> ChatMessage:
    """Stands for a chat model that plans."""
    asked = [sheet.questions[0].question for sheet in sheets()[:2]]
    plan = {"items": [{"sub_question": question, "tool_name": "sheets"} for question in asked]}
    return ChatMessage(role="assistant", content=json.dumps(plan))


def main() -> None:
    planner = MockFunctionCallingLLM(response_generator=take_apart, is_chat_model=True)
    with TemporaryDirectory() as folder:
        index = LatentIndex.from_documents(documents(), path=f"{folder}/kb")
        engine = SubQuestionQueryEngine.from_defaults(
            query_engine_tools=[
                index.as_query_engine(similarity_top_k=3).as_tool("sheets", "Facts.")
            ],
            question_gen=LLMQuestionGenerator.from_defaults(llm=planner),
            # The answers so far are no passages of the store: they go in as text.
            response_synthesizer=LatentSynthesizer(index.llm),
            llm=index.llm,
            use_async=True,
            verbose=False,
        )
        response = engine.query(" ".join(sheet.questions[0].question for sheet in sheets()[:2]))
        for source in response.source_nodes[:2]:
            print(source.text)
        print(f"All in all: {response}")
        index.close()


if __name__ == "__main__":
    main()
