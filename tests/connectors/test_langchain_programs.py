"""Programs of LangChain's own documentation over a knowledge base. Each names its document."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from pydantic import BaseModel

from lclm_rag import KnowledgeBase
from lclm_rag.connectors.langchain import (
    ChatLatent,
    LatentAnswer,
    LatentRetriever,
    to_documents,
    to_filter,
)
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion
from lclm_rag.retrieval import matches


@pytest.fixture(autouse=True)
def _no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGSMITH_TRACING", "false")


@pytest.fixture(scope="module")
def answered(knowledge_base: KnowledgeBase, questions: list[FactQuestion]) -> FactQuestion:
    """A question that the bundled checkpoint gets right."""
    return next(q for q in questions if knowledge_base.query(q.question, 2).text == q.answer)


# --- retrievers ---------------------------------------------------------------------------------------


def test_a_retriever_does_what_langchains_standard_tests_ask(
    knowledge_base: KnowledgeBase, answered: FactQuestion
) -> None:
    """contributing/how_to/integrations/standard_tests: `k` at construction, `k` for one call, types."""
    question = answered.question
    for k in (1, 3):
        assert len(LatentRetriever(knowledge_base=knowledge_base, k=k).invoke(question)) == k
        found = LatentRetriever(knowledge_base=knowledge_base).invoke(question, k=k)
        assert len(found) == k
        assert all(isinstance(document, Document) for document in found)
    found = asyncio.run(LatentRetriever(knowledge_base=knowledge_base).ainvoke(question))
    assert all(isinstance(document, Document) for document in found)


@pytest.mark.parametrize(
    ("component", "alien"),
    [
        (LatentRetriever, {"search_kwargs": {"k": 1}}),
        (LatentRetriever, {"topk": 1}),
        (LatentAnswer, {"temperature": 1}),
        (ChatLatent, {"top_k": 1}),
    ],
)
def test_unknown_arguments_are_refused(
    knowledge_base: KnowledgeBase, component: Any, alien: dict[str, Any]
) -> None:
    (name,) = alien
    with pytest.raises(ValueError, match=rf"{component.__name__} takes .*; not '{name}'"):
        component(knowledge_base=knowledge_base, **alien)
    with pytest.raises(ValueError, match=rf"takes .*; not '{name}'"):
        component(knowledge_base=knowledge_base).invoke("Who?", **alien)


def test_k_and_top_k_together_are_refused(knowledge_base: KnowledgeBase) -> None:
    with pytest.raises(ValueError, match="takes k or top_k, not both"):
        LatentRetriever(knowledge_base=knowledge_base, k=1, top_k=2)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        LatentRetriever(knowledge_base=knowledge_base, k=0)


def test_filters_are_written_as_for_vector_stores(knowledge_base: KnowledgeBase) -> None:
    """how_to/vectorstore_retriever, with the operators of Chroma and PGVector."""
    kept: list[tuple[dict[str, Any], list[int]]] = [
        ({"lang": {"$in": ["en", "de"]}}, [0, 1]),
        ({"lang": {"$nin": ["en", "de"]}}, [2, 3]),
        ({"$or": [{"year": {"$gte": 2000, "$lt": 2010}}, {"lang": "fr"}]}, [1, 2]),
        ({"$and": [{"lang": "de"}, {"year": {"$ne": 1}}]}, [1]),
        ({"$not": {"lang": {"$ne": "en"}}}, [0]),
        ({"year": {"$exists": False}}, [3]),
        ({"lang": "en", "year": {"$eq": 1990}}, [0]),
        ({"lang": ["en", "fr"]}, [0, 2]),
    ]
    fields: list[dict[str, Any]] = [
        {"lang": "en", "year": 1990},
        {"lang": "de", "year": 2005},
        {"lang": "fr", "year": 2010},
        {},
    ]
    for given, expected in kept:
        found = to_filter(given)
        assert found is not None
        assert [i for i, metadata in enumerate(fields) if matches(found, metadata)] == expected
    assert to_filter(None) is None
    kinds = {"kind": {"$nin": ["person", "place"]}}
    retriever = LatentRetriever(knowledge_base=knowledge_base, filters=kinds)
    assert {d.metadata["kind"] for d in retriever.invoke("the mayor earns")} <= {"product"}
    for wrong, message in (
        ({"kind": {"$near": 1}}, "the operator '\\$near'; there are"),
        ({"$and": {}}, "takes a list of filters"),
        ({"kind": {}}, "has no operator"),
    ):
        with pytest.raises(ValueError, match=message):
            to_filter(wrong)


# --- chains (tutorials/rag, expression_language) -------------------------------------------------------


def test_a_chain_that_retrieves_itself_answers_from_latents(
    knowledge_base: KnowledgeBase, answered: FactQuestion
) -> None:
    """how_to/qa_sources: RunnablePassthrough.assign(context=…)."""
    retriever = LatentRetriever(knowledge_base=knowledge_base, k=2)
    answer = LatentAnswer(knowledge_base=knowledge_base)
    chain = RunnablePassthrough.assign(context=(lambda x: x["input"]) | retriever) | answer
    spent: list[Any] = []

    class Seen(BaseCallbackHandler):
        def on_llm_end(self, response: Any, **kwargs: Any) -> None:
            spent.append(response.generations[0][0].message.usage_metadata)

    asked = {"input": answered.question}
    assert chain.invoke(asked, {"callbacks": [Seen()]}) == answered.answer
    assert "".join(chain.stream(asked)) == answered.answer
    assert asyncio.run(chain.ainvoke(asked)) == answered.answer

    async def streamed() -> str:
        return "".join([piece async for piece in chain.astream(asked)])

    assert asyncio.run(streamed()) == answered.answer
    assert spent[0]["input_tokens"] == knowledge_base.assemble(answered.question, 2).positions
    pasted = [Document(d.page_content) for d in retriever.invoke(answered.question)]
    asked_of = {"question": answered.question, "context": pasted}
    answer.invoke(asked_of, {"callbacks": [Seen()]})
    assert spent[1]["input_tokens"] > spent[0]["input_tokens"]  # Not the passages: text.


def test_a_context_of_words_is_explained(knowledge_base: KnowledgeBase) -> None:
    answer = LatentAnswer(knowledge_base=knowledge_base)
    with pytest.raises(ValueError, match=r"is a list of LangChain documents, .* not a str"):
        answer.invoke({"question": "Who?", "context": "Some words."})
    with pytest.raises(ValueError, match="leave the context out"):
        answer.with_sources().invoke({"question": "Who?", "context": [Document("x")]})


def test_answers_and_retrievers_are_tools(
    knowledge_base: KnowledgeBase, answered: FactQuestion
) -> None:
    """how_to/convert_runnable_to_tool, how_to/qa_chat_history."""

    class Asked(BaseModel):
        question: str

    answer = LatentAnswer(knowledge_base=knowledge_base, k=2)
    asked = {"question": answered.question}
    tool = answer.as_tool(args_schema=Asked, name="facts", description="Facts.")
    assert tool.invoke(asked) == answered.answer
    search = create_retriever_tool(LatentRetriever(knowledge_base=knowledge_base, k=1), "s", "S.")
    assert search.invoke({"query": answered.question})


def test_tracers_count_what_an_answer_took(
    knowledge_base: KnowledgeBase, answered: FactQuestion
) -> None:
    """how_to/callbacks_runtime, how_to/chat_token_usage_tracking."""
    spent: list[Any] = []

    class Seen(BaseCallbackHandler):
        def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
            spent.append(messages[0][0].content)

        def on_llm_end(self, response: Any, **kwargs: Any) -> None:
            message = response.generations[0][0].message
            spent.append((message.content, message.usage_metadata))

        def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
            spent.append("failed")

    answer = LatentAnswer(knowledge_base=knowledge_base, k=2)
    config: Any = {"callbacks": [Seen()]}
    whole = answer.with_sources().invoke(answered.question, config)
    text = answer.invoke(answered.question, config)
    assert asyncio.run(answer.ainvoke(answered.question, config)) == text
    took, positions = whole.usage.generated_tokens, whole.usage.positions
    usage = {
        "input_tokens": positions,
        "output_tokens": took,
        "total_tokens": positions + took,
    }
    assert spent == [answered.question, (text, usage)] * 3
    with pytest.raises(ValueError, match="top_k"):
        answer.invoke({"question": answered.question, "top_k": 0}, config)
    assert spent[-1] == "failed"


# --- documents (how_to/document_loader_*) ----------------------------------------------------------------


def test_documents_without_ids_take_a_metadata_value(small_kb: KnowledgeBase) -> None:
    loaded = [Document("Zebras.", metadata={"source": f"notes/{i}.txt"}) for i in range(2)]
    assert small_kb.add(to_documents(loaded, id_key="source")).added == 2
    with pytest.raises(ValueError, match="document 1 has no id and no metadata 'page'"):
        small_kb.add(to_documents(loaded, id_key="page"))


def test_components_take_a_folder_and_can_be_pickled(
    small_kb: KnowledgeBase, questions: list[FactQuestion]
) -> None:
    retriever = LatentRetriever(knowledge_base=str(small_kb.path), k=2)
    found = retriever.invoke("the mayor of the town")
    again = pickle.loads(pickle.dumps(retriever))
    assert again.invoke("the mayor of the town") == found
    copied = pickle.loads(pickle.dumps(LatentAnswer(knowledge_base=small_kb.path, k=1)))
    assert copied.top_k == 1
    for component in (retriever, again, copied):
        component.knowledge_base.close()


# --- chat models (integrations/chat, how_to/chat_streaming) ----------------------------------------------


def test_the_decoder_is_a_chat_model(knowledge_base: KnowledgeBase, answered: FactQuestion) -> None:
    passage = knowledge_base.retrieve(answered.question, 1)[0].text
    model = ChatLatent(knowledge_base=str(knowledge_base.path), max_tokens=24)
    model.knowledge_base.close()
    model = ChatLatent(knowledge_base=knowledge_base, max_tokens=24)
    words = "Answer the question from the passages.\n\n[1] {passage}\n\nQuestion: {question}"
    prompt = ChatPromptTemplate.from_messages([("human", words)])
    chain = prompt | model
    asked = {"passage": passage, "question": answered.question}
    message = chain.invoke(asked)
    assert isinstance(message, AIMessage)
    assert message.content
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] >= 1
    assert asyncio.run(chain.ainvoke(asked)).content == message.content
    pieces = list(chain.stream(asked))
    assert "".join(str(piece.content) for piece in pieces) == message.content
    assert sum((p.usage_metadata or {}).get("output_tokens", 0) for p in pieces) >= 1

    async def streamed() -> str:
        return "".join([piece async for piece in (chain | StrOutputParser()).astream(asked)])

    assert asyncio.run(streamed()) == message.content
    one = model.invoke([SystemMessage("Be brief."), HumanMessage("Hello")], max_tokens=1)
    assert one.response_metadata["finish_reason"] == "length"
    with pytest.raises(ValueError, match="not 'tool'"):
        model.invoke([ToolMessage("x", tool_call_id="1")])
    with pytest.raises(ValueError, match="leave stop out"):
        model.invoke("Hello", stop=["x"])
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        ChatLatent(knowledge_base=knowledge_base, temperature=-1)
