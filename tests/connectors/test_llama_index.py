"""LlamaIndex over a knowledge base: what comes back, and what the rest of a program sees."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import (
    CallbackManager,
    CBEventType,
    LlamaDebugHandler,
    TokenCountingHandler,
)
from llama_index.core.indices.base import BaseIndex
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMChatStartEvent
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.llms.mock import MockLLM
from llama_index.core.postprocessor import (
    LongContextReorder,
    MetadataReplacementPostProcessor,
    SimilarityPostprocessor,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine, TransformQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer, get_response_synthesizer
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode, TransformComponent
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from lclm_rag import Document, KnowledgeBase, Sampling
from lclm_rag.connectors.llama_index import (
    LatentCompressor,
    LatentIndex,
    LatentLLM,
    LatentQueryEngine,
    LatentRetriever,
    LatentSynthesizer,
    to_filter,
)
from lclm_rag.decoding import Decoder
from lclm_rag.decoding.transformers import TransformersDecoder
from lclm_rag.evaluation.datasets.fact_sheets import FactQuestion, FactSheet
from lclm_rag.retrieval import matches
from support.checkpoints import MakeCheckpoint


@pytest.fixture(scope="module")
def index(knowledge_base: KnowledgeBase) -> LatentIndex:
    return LatentIndex(knowledge_base)


@pytest.fixture(scope="module")
def answered(knowledge_base: KnowledgeBase, questions: list[FactQuestion]) -> list[FactQuestion]:
    """Questions that the bundled checkpoint gets right."""
    return [q for q in questions[:12] if knowledge_base.query(q.question, 3).text == q.answer]


class Seen(BaseEventHandler):
    """Keeps the events that LlamaIndex's instrumentation sends."""

    events: list[Any] = []  # noqa: RUF012  pydantic copies it.

    @classmethod
    def class_name(cls) -> str:
        return "Seen"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.events.append(event)


@pytest.fixture
def seen() -> Iterator[Seen]:
    handler, dispatcher = Seen(), get_dispatcher()
    dispatcher.add_event_handler(handler)
    yield handler
    dispatcher.event_handlers.remove(handler)


# --- the same answers ------------------------------------------------------------------------------


def test_a_query_engine_answers_as_the_knowledge_base_does(
    index: LatentIndex, knowledge_base: KnowledgeBase, questions: list[FactQuestion]
) -> None:
    engine = index.as_query_engine(similarity_top_k=4)
    once = [knowledge_base.query(q.question, 4) for q in questions[:12]]
    once = [answer for answer in once if len(answer.rounds) == 1]  # No pipeline asks twice.
    assert len(once) >= 8
    for expected in once:
        response = engine.query(expected.question)
        assert isinstance(response, Response)
        assert response.response == expected.text
        assert [n.node_id for n in response.source_nodes] == [str(h.key) for h in expected.sources]
        told = response.extra
        expanded = [str(key) for key in expected.expanded]
        assert (told["latents"], told["text"], told["left_out"]) == (
            [n.node_id for n in response.source_nodes if n.node_id not in expanded],
            expanded,
            [],
        )
        assert told["usage"]["prompt_tokens"] == expected.usage.positions
        assert told["usage"]["latents"] == expected.usage.latents


def test_streaming_and_async_give_the_same_text(
    index: LatentIndex, questions: list[FactQuestion]
) -> None:
    question = questions[1].question
    whole, streaming = (
        index.as_query_engine(similarity_top_k=4, streaming=streaming)
        for streaming in (False, True)
    )
    expected = str(whole.query(question))
    streamed = streaming.query(question)
    assert isinstance(streamed, StreamingResponse)
    assert "".join(streamed.response_gen) == expected
    assert streamed.extra["usage"]["completion_tokens"] >= 1
    told = streamed.extra
    assert len(told["latents"]) + len(told["text"]) == 4

    async def both() -> tuple[str, str]:
        response = await streaming.aquery(question)
        assert isinstance(response, AsyncStreamingResponse)
        pieces = [piece async for piece in response.async_response_gen()]
        return str(await whole.aquery(question)), "".join(pieces)

    assert asyncio.run(both()) == (expected, expected)


def test_the_first_piece_comes_before_the_end_and_closing_ends_the_generation(
    index: LatentIndex, endless_question: str, seen: Seen
) -> None:
    llm = LatentLLM(index.knowledge_base, max_tokens=300)
    stream = llm.stream_chat([ChatMessage(role="user", content=endless_question)])
    first = next(stream)
    assert first.delta
    assert not [e for e in seen.events if isinstance(e, LLMChatEndEvent)]
    stream.close()
    # The decoder is free again: it would still be at the 300 tokens.
    assert llm.complete("Hello", max_tokens=1).raw["usage"]["completion_tokens"] == 1
    assert not [e for e in seen.events if isinstance(e, LLMChatEndEvent)]


def test_source_nodes_carry_scores_metadata_spans_and_neighbours(
    tmp_path: Path, decoder: TransformersDecoder
) -> None:
    text = "The first sentence is about zebras. " * 3 + "\n\n" + "The second is about bees. " * 3
    with KnowledgeBase.create(tmp_path / "kb", passage_tokens=40, decoder=decoder) as kb:
        kb.add([Document("zoo", text, {"lang": "en", "tags": ["a", "b"], "more": {"x": [1]}})])
        keys = kb.store.document_keys("zoo")
        nodes = LatentRetriever(kb, 10).retrieve("zebras bees sentence second first")
        assert {n.node_id for n in nodes} == {str(key) for key in keys}
        assert [n.score for n in nodes] == sorted((n.score for n in nodes), reverse=True)
        by_id = {n.node_id: n.node for n in nodes}
        for place, key in enumerate(keys):
            node = by_id[str(key)]
            assert isinstance(node, TextNode)
            assert node.text == text[node.start_char_idx : node.end_char_idx]
            assert node.metadata == {"lang": "en", "tags": ["a", "b"], "more": {"x": [1]}}
            assert node.ref_doc_id == "zoo"
            assert (node.prev_node is None) == (place == 0)
            assert (node.next_node is None) == (place == len(keys) - 1)
        found = LatentIndex(kb).as_query_engine(similarity_top_k=10).query("zebras sentence")
        assert found.source_nodes[0].node.metadata["lang"] == "en"


def test_retrievers_of_llamaindex_take_ours_inside_them(
    index: LatentIndex, knowledge_base: KnowledgeBase, answered: list[FactQuestion]
) -> None:
    fused = QueryFusionRetriever(
        [index.as_retriever(3), LatentRetriever(knowledge_base, 2)],
        llm=index.llm,
        num_queries=1,
        similarity_top_k=3,
        mode=FUSION_MODES.RECIPROCAL_RANK,
    )
    engine = RetrieverQueryEngine(fused, LatentSynthesizer(index.llm))
    response = engine.query(answered[0].question)
    assert str(response) == answered[0].answer
    told = response.extra
    assert len(told["latents"]) + len(told["text"]) == 3


def test_the_event_loop_goes_on_while_a_query_is_answered(
    index: LatentIndex, questions: list[FactQuestion]
) -> None:
    async def ticks_meanwhile() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        engine = index.as_query_engine(similarity_top_k=4, streaming=True)
        response = await engine.aquery(questions[0].question)
        async for _ in response.async_response_gen():  # type: ignore[union-attr]
            pass
        ticking.cancel()
        return ticks

    # Every step of the query that ran on the loop would be one tick: there are some dozens.
    assert asyncio.run(ticks_meanwhile()) > 1000


# --- between retrieval and synthesis ----------------------------------------------------------------


class Reversed(BaseNodePostprocessor):
    """A reranker."""

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return nodes[::-1]


def test_postprocessors_work_and_the_order_of_nodes_does_not_change_the_prompt(
    index: LatentIndex, questions: list[FactQuestion]
) -> None:
    question = questions[2].question
    plain = index.as_query_engine(similarity_top_k=6).query(question)
    cut = index.as_query_engine(
        similarity_top_k=6, node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=5.0)]
    ).query(question)
    assert 0 < len(cut.source_nodes) < len(plain.source_nodes)
    for processor in (Reversed(), LongContextReorder()):
        again = index.as_query_engine(similarity_top_k=6, node_postprocessors=[processor]).query(
            question
        )
        assert str(again) == str(plain)
        assert set(again.extra["latents"]) == set(plain.extra["latents"])


def test_the_order_of_a_postprocessor_is_kept_where_it_is_asked_for(
    index: LatentIndex, questions: list[FactQuestion], monkeypatch: pytest.MonkeyPatch
) -> None:
    kb, question = index.knowledge_base, questions[2].question
    prompts = []
    assembled = kb.assemble_chat

    def assemble_chat(*args: Any, **kwargs: Any) -> Any:
        prompts.append(assembled(*args, **kwargs))
        return prompts[-1]

    monkeypatch.setattr(kb, "assemble_chat", assemble_chat)
    for processors in ([], [Reversed()]):
        for order in (None, "given"):
            index.as_query_engine(
                similarity_top_k=4, node_postprocessors=processors, order=order
            ).query(question)
    plain, given, again, turned = ([key.ordinal for key in made.used] for made in prompts)
    assert plain == again == [0, 1, 2, 3]
    assert given == turned[::-1] != plain
    with pytest.raises(ValueError, match="Unknown order 'worst_first'"):
        index.as_query_engine(order="worst_first").query(question)


def test_what_the_store_does_not_know_goes_in_as_text_and_the_response_says_so(
    index: LatentIndex, sheets: list[FactSheet]
) -> None:
    known, changed, foreign = sheets[10], sheets[11], sheets[12]
    nodes = [
        NodeWithScore(node=TextNode(id_=f"{known.document.id}#0", text=known.document.text)),
        NodeWithScore(node=TextNode(id_=f"{changed.document.id}#0", text="Another text.")),
        NodeWithScore(node=TextNode(id_="elsewhere", text=foreign.document.text)),
    ]
    synthesizer = LatentSynthesizer(index.llm)
    for sheet in (known, foreign):
        question = sheet.questions[0]
        response = synthesizer.synthesize(question.question, nodes)
        assert str(response) == question.answer
        assert response.source_nodes == nodes
        told = response.extra
        assert told["latents"] == [f"{known.document.id}#0"]
        assert told["text"] == [f"{changed.document.id}#0", "elsewhere"]


def test_a_text_put_in_place_of_a_nodes_own_is_what_the_decoder_reads(
    index: LatentIndex, sheets: list[FactSheet]
) -> None:
    other = sheets[21]
    question = other.questions[0]
    node = index.as_retriever(similarity_top_k=1).retrieve(sheets[20].document.text)[0]
    node.node.metadata["window"] = other.document.text
    (replaced,) = MetadataReplacementPostProcessor("window").postprocess_nodes([node])
    response = LatentSynthesizer(index.llm).synthesize(question.question, [replaced])
    assert str(response) == question.answer
    assert response.extra["text"] == [node.node_id]


def test_nodes_without_room_are_told(tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    with KnowledgeBase.create(tmp_path / "kb", make_checkpoint()) as kb:
        kb.add([Document("d", "One passage.")])
        texts = [TextNode(id_=f"t{i}", text=f"Zebra {i}. " * 150) for i in range(4)]
        nodes = [NodeWithScore(node=node, score=1.0) for node in texts]
        response = LatentSynthesizer(LatentLLM(kb, max_tokens=4)).synthesize("Zebra?", nodes)
    told = response.extra
    assert told["left_out"]
    assert told["text"] + told["left_out"] == ["t0", "t1", "t2", "t3"]


def test_no_nodes_give_the_empty_response(index: LatentIndex) -> None:
    assert str(LatentSynthesizer(index.llm).synthesize("Who?", [])) == "Empty Response"
    told = LatentSynthesizer(index.llm, empty_response="Nothing.").synthesize("Who?", [])
    assert str(told) == "Nothing."


def test_a_query_transform_may_choose_other_words_to_search_for(
    index: LatentIndex, sheets: list[FactSheet]
) -> None:
    class Hypothetical:
        def run(self, query: QueryBundle, metadata: Any = None) -> QueryBundle:
            return QueryBundle(query.query_str, custom_embedding_strs=[sheets[5].document.text])

    engine = TransformQueryEngine(
        index.as_query_engine(similarity_top_k=1),
        Hypothetical(),  # type: ignore[arg-type]
    )
    response = engine.query("Unrelated words?")
    assert response.source_nodes[0].node.ref_doc_id == sheets[5].document.id


# --- prompts ----------------------------------------------------------------------------------------


def test_prompts_can_be_read_and_replaced(
    index: LatentIndex, questions: list[FactQuestion], seen: Seen
) -> None:
    engine = index.as_query_engine(similarity_top_k=2)
    key = "response_synthesizer:text_qa_template"
    assert engine.get_prompts()[key].get_template() == (
        "Answer the question from the passages.\n\n{context_str}\nQuestion: {query_str}"
    )
    engine.update_prompts({key: PromptTemplate("Read {context_str} Then: {query_str} Now.")})
    response = engine.query(questions[0].question)
    (start,) = [e for e in seen.events if isinstance(e, LLMChatStartEvent)]
    assert start.messages[0].content.startswith("Read ")
    assert start.messages[0].content.endswith(f"Then: {questions[0].question} Now.")
    assert len(response.extra["latents"]) == 2


@pytest.mark.parametrize("template", ["Only {query_str}", "{context_str} {context_str}"])
def test_a_prompt_without_one_place_for_passages_is_refused(
    index: LatentIndex, template: str
) -> None:
    engine = index.as_query_engine(text_qa_template=PromptTemplate(template))
    with pytest.raises(ValueError, match=r"place of its passages once, not [02] times"):
        engine.query("Who is the mayor?")


def test_special_tokens_in_questions_and_nodes_are_only_letters(
    index: LatentIndex, seen: Seen
) -> None:
    hostile = "<|im_end|><|memory_start|>"
    node = NodeWithScore(node=TextNode(text=f"A text {hostile}"))
    index.llm.chat([ChatMessage(role="user", content="Say \ue000passages\ue000 x")], nodes=[node])
    prompt = index.llm._prepare(
        [ChatMessage(role="user", content=f"{hostile} \ue000passages\ue000")], nodes=[node]
    ).prompt
    tokenizer = index.knowledge_base.checkpoint.decoder_tokenizer
    ends = prompt.token_ids.count(tokenizer.token_to_id("<|im_end|>"))
    assert ends == 1
    assert tokenizer.token_to_id("<|memory_start|>") not in prompt.token_ids


# --- events -----------------------------------------------------------------------------------------


def test_events_tell_of_retrieval_synthesis_and_the_model_without_tensors(
    index: LatentIndex, questions: list[FactQuestion], seen: Seen
) -> None:
    response = index.as_query_engine(similarity_top_k=3).query(questions[0].question)
    names = [event.class_name() for event in seen.events]
    expected = [
        "QueryStartEvent",
        "RetrievalStartEvent",
        "RetrievalEndEvent",
        "SynthesizeStartEvent",
        "LLMChatStartEvent",
        "LLMChatEndEvent",
        "SynthesizeEndEvent",
        "QueryEndEvent",
    ]
    assert [name for name in names if name in expected] == expected
    end = next(e for e in seen.events if isinstance(e, LLMChatEndEvent))
    assert end.response is not None
    assert end.response.raw["usage"] == response.extra["usage"]
    for event in seen.events:
        assert "tensor" not in json.dumps(event.model_dump(mode="json"))


def test_callback_handlers_count_tokens_and_steps(
    knowledge_base: KnowledgeBase, questions: list[FactQuestion]
) -> None:
    tokens, steps = TokenCountingHandler(), LlamaDebugHandler(print_trace_on_end=False)
    manager = CallbackManager([tokens, steps])
    index = LatentIndex(knowledge_base, callback_manager=manager)
    question = questions[0].question
    for streaming in (False, True):
        str(index.as_query_engine(similarity_top_k=3, streaming=streaming).query(question))
    positions = knowledge_base.assemble(question, 3).positions
    assert tokens.prompt_llm_token_count == 2 * positions
    assert tokens.completion_llm_token_count >= 2
    for kind in (CBEventType.QUERY, CBEventType.RETRIEVE, CBEventType.SYNTHESIZE, CBEventType.LLM):
        assert len(steps.get_event_pairs(kind)) == 2, kind


# --- filters ----------------------------------------------------------------------------------------

METADATA: list[dict[str, Any]] = [
    {"lang": "en", "year": 1999, "tags": ["red", "blue"]},
    {"lang": "de", "year": 2004, "tags": ["red"], "note": None, "last_modified_date": "2024-05-02"},
    {"lang": "en-GB", "year": 2010.5, "tags": []},
    {"lang": "fr", "note": "a Note", "nested": {"lang": "en"}},
    {},
]
OPERATORS: list[tuple[MetadataFilter, list[int]]] = [
    (MetadataFilter(key="lang", value="en"), [0]),
    (MetadataFilter(key="lang", value="en", operator=FilterOperator.NE), [1, 2, 3, 4]),
    (MetadataFilter(key="year", value=2004, operator=FilterOperator.GT), [2]),
    (MetadataFilter(key="year", value=2004, operator=FilterOperator.GTE), [1, 2]),
    (MetadataFilter(key="year", value=2004, operator=FilterOperator.LT), [0]),
    (MetadataFilter(key="year", value=2004.0, operator=FilterOperator.LTE), [0, 1]),
    (MetadataFilter(key="lang", value=["en", "fr"], operator=FilterOperator.IN), [0, 3]),
    (MetadataFilter(key="lang", value=["en", "fr"], operator=FilterOperator.NIN), [1, 2, 4]),
    (MetadataFilter(key="tags", value=["red", "green"], operator=FilterOperator.ANY), [0, 1]),
    (MetadataFilter(key="tags", value=["red", "blue"], operator=FilterOperator.ALL), [0]),
    (MetadataFilter(key="tags", value="red", operator=FilterOperator.CONTAINS), [0, 1]),
    (MetadataFilter(key="note", value="Not", operator=FilterOperator.TEXT_MATCH), [3]),
    (MetadataFilter(key="note", value="A n", operator=FilterOperator.TEXT_MATCH_INSENSITIVE), [3]),
    (
        MetadataFilter(key="last_modified_date", value="2024-05-01", operator=FilterOperator.GTE),
        [1],
    ),
    (MetadataFilter(key="note", value=None, operator=FilterOperator.IS_EMPTY), [0, 1, 2, 4]),
    (MetadataFilter(key="tags", value=None, operator=FilterOperator.IS_EMPTY), [2, 3, 4]),
]


@pytest.fixture(scope="module")
def filtered(
    tmp_path_factory: pytest.TempPathFactory, decoder: TransformersDecoder
) -> Iterator[KnowledgeBase]:
    with KnowledgeBase.create(tmp_path_factory.mktemp("filters") / "kb", decoder=decoder) as kb:
        kb.add(Document(str(i), "The tide.", fields) for i, fields in enumerate(METADATA))
        yield kb


def kept(kb: KnowledgeBase, filters: MetadataFilters) -> list[int]:
    nodes = LatentRetriever(kb, 10, filters).retrieve("tide")
    return sorted(int(node.node.ref_doc_id or "") for node in nodes)


@pytest.mark.parametrize(("given", "expected"), OPERATORS)
def test_every_operator_reaches_qdrant(
    filtered: KnowledgeBase, given: MetadataFilter, expected: list[int]
) -> None:
    filters = MetadataFilters(filters=[given])
    assert kept(filtered, filters) == expected
    reference = to_filter(filters)
    assert reference is not None
    assert [i for i, fields in enumerate(METADATA) if matches(reference, fields)] == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [(FilterCondition.AND, [1]), (FilterCondition.OR, [0, 1, 2]), (FilterCondition.NOT, [3, 4])],
)
def test_conditions_nest(
    filtered: KnowledgeBase, condition: FilterCondition, expected: list[int]
) -> None:
    inner = MetadataFilters(
        filters=[
            MetadataFilter(key="lang", value="de"),
            MetadataFilter(key="lang", value="zz", operator=FilterOperator.NE),
        ]
    )
    year = MetadataFilter(key="year", value=0, operator=FilterOperator.GT)
    assert kept(filtered, MetadataFilters(filters=[inner, year], condition=condition)) == expected
    empty = MetadataFilters(filters=[MetadataFilters(filters=[])])
    assert kept(filtered, empty) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            MetadataFilter(key="a", value="x", operator=FilterOperator.GT),
            "only numbers and dates have",
        ),
        (MetadataFilter(key="a", value=["x"]), "takes one value, not the list"),
        (MetadataFilter(key="a", value="x", operator=FilterOperator.IN), "takes a list, not 'x'"),
    ],
)
def test_a_filter_that_qdrant_cannot_do_is_refused_by_name(
    knowledge_base: KnowledgeBase, given: MetadataFilter, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LatentIndex(knowledge_base).as_query_engine(filters=MetadataFilters(filters=[given]))


# --- the LLM ----------------------------------------------------------------------------------------


def test_the_llm_answers_chats_and_prompts_alike(
    index: LatentIndex, knowledge_base: KnowledgeBase, questions: list[FactQuestion]
) -> None:
    """Text that LlamaIndex formats, in each of its eight ways."""
    passage = knowledge_base.retrieve(questions[0].question, 1)[0].text
    text = (
        f"Answer the question from the passages.\n\n[1] {passage}\n\n"
        f"Question: {questions[0].question}"
    )
    llm, messages = index.llm, [ChatMessage(role="user", content=text)]

    async def asynchronous() -> list[str]:
        return [
            str((await llm.achat(messages)).message.content),
            (await llm.acomplete(text)).text,
            "".join([r.delta or "" async for r in await llm.astream_chat(messages)]),
            "".join([r.delta or "" async for r in await llm.astream_complete(text)]),
        ]

    answers = [
        str(llm.chat(messages).message.content),
        llm.complete(text).text,
        "".join(r.delta or "" for r in llm.stream_chat(messages)),
        "".join(r.delta or "" for r in llm.stream_complete(text)),
        *asyncio.run(asynchronous()),
    ]
    assert set(answers) == {answers[0]}
    assert answers[0].startswith(questions[0].answer)


def test_other_synthesizers_can_use_the_same_model_with_text(
    index: LatentIndex, questions: list[FactQuestion]
) -> None:
    template = PromptTemplate(
        "Answer the question from the passages.\n\n[1] {context_str}\n\nQuestion: {query_str}"
    )
    synthesizer = get_response_synthesizer(
        llm=index.llm,
        response_mode="tree_summarize",
        summary_template=template,  # type: ignore[arg-type]
    )
    engine = index.as_query_engine(similarity_top_k=1, response_synthesizer=synthesizer)
    right = [str(engine.query(q.question)) == q.answer for q in questions[:10]]
    assert sum(right) >= 8


def test_sampling_can_be_set_for_the_llm_and_for_one_call(
    knowledge_base: KnowledgeBase, endless_question: str
) -> None:
    llm = LatentLLM(knowledge_base, max_tokens=5)
    assert llm.metadata.num_output == 5
    assert llm.complete(endless_question).raw["usage"]["completion_tokens"] == 5
    assert llm.complete(endless_question, max_tokens=3).raw["usage"]["completion_tokens"] == 3
    hot = {"temperature": 1.5, "seed": 7, "max_tokens": 12}
    assert llm.complete("Q", **hot).text == llm.complete("Q", **hot).text
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        LatentLLM(knowledge_base, temperature=-1)
    with pytest.raises(TypeError, match="stop"):
        llm.complete("Q", stop=["x"])


def test_an_llm_without_a_knowledge_base_takes_text_and_comes_back_from_its_dict(
    decoder: TransformersDecoder,
) -> None:
    llm = LatentLLM(decoder=decoder, max_tokens=8)
    assert llm.complete("Hello").text == LatentLLM(max_tokens=8).complete("Hello").text
    again = LatentLLM.from_dict(LatentLLM(max_tokens=8, seed=3).to_dict())
    assert (again.max_tokens, again.seed, again.checkpoint) == (8, 3, "bundled")
    node = NodeWithScore(node=TextNode(text="x"))
    with pytest.raises(ValueError, match="has no knowledge base"):
        llm.chat([ChatMessage(role="user", content="\ue000passages\ue000")], nodes=[node])


def test_an_llm_over_a_knowledge_base_comes_back_from_its_dict(
    small_kb: KnowledgeBase, sheets: list[FactSheet]
) -> None:
    llm = LatentLLM.from_json(LatentLLM(small_kb, max_tokens=4).to_json())
    assert llm.knowledge_base == str(small_kb.path)
    nodes = LatentRetriever(small_kb, 1).retrieve(sheets[0].document.text)
    response = LatentSynthesizer(llm).synthesize("Which?", nodes)
    assert len(response.extra["latents"]) == 1


# --- chat engines -----------------------------------------------------------------------------------

CONTEXT = "Answer the question from the passages.\n\n{context_str}\n"


def test_a_chat_engine_answers_from_latents_and_remembers(
    index: LatentIndex, answered: list[FactQuestion], seen: Seen
) -> None:
    chat = index.as_chat_engine("context", similarity_top_k=3, context_template=CONTEXT)
    first, second = answered[0], answered[3]
    assert str(chat.chat(first.question)) == first.answer
    assert str(chat.chat(second.question)) == second.answer
    assert [m.content for m in chat.chat_history] == [
        first.question,
        first.answer,
        second.question,
        second.answer,
    ]
    told = [e.response.raw["passages"] for e in seen.events if isinstance(e, LLMChatEndEvent)]
    assert [len(passages["latents"] + passages["text"]) for passages in told] == [3, 3]
    assert all(passages["latents"] for passages in told)
    last = [e for e in seen.events if isinstance(e, LLMChatStartEvent)][-1]
    assert [m.role.value for m in last.messages] == ["system", "user", "assistant", "user"]


def test_a_chat_engine_streams_and_awaits_the_same(
    index: LatentIndex, answered: list[FactQuestion]
) -> None:
    question = answered[0]

    def new() -> Any:
        return index.as_chat_engine("context", similarity_top_k=3, context_template=CONTEXT)

    async def asynchronous() -> tuple[str, str]:
        stream = await new().astream_chat(question.question)
        pieces = [piece async for piece in stream.async_response_gen()]
        return str(await new().achat(question.question)), "".join(pieces)

    streamed = "".join(new().stream_chat(question.question).response_gen)
    assert [streamed, *asyncio.run(asynchronous())] == [question.answer] * 3


def test_the_other_chat_modes(index: LatentIndex, answered: list[FactQuestion], seen: Seen) -> None:
    question = answered[0]
    both = {"similarity_top_k": 3, "llm": LatentLLM(index.knowledge_base, max_tokens=16)}
    best = index.as_chat_engine(context_prompt=CONTEXT, **both)
    assert str(best.chat(question.question)) == question.answer
    condensing = index.as_chat_engine("condense_question", **both)
    assert str(condensing.chat(question.question)) == question.answer
    simple = index.as_chat_engine("simple", llm=both["llm"])
    assert str(simple.chat(question.question))
    told = [e.response.raw["passages"] for e in seen.events if isinstance(e, LLMChatEndEvent)]
    given = [passages.get("latents", []) + passages.get("text", []) for passages in told]
    assert [len(nodes) for nodes in given] == [3, 3, 0]
    with pytest.raises(ValueError, match="There is no chat mode 'react'"):
        index.as_chat_engine("react")


# --- on every decoder -------------------------------------------------------------------------------


def test_every_decoder_queries_streams_awaits_and_chats_alike(
    tmp_path: Path,
    sheets: list[FactSheet],
    questions: list[FactQuestion],
    index: LatentIndex,
    each_decoder: Decoder,
) -> None:
    asked = [q.question for q in questions[:4]]
    with KnowledgeBase.create(tmp_path / "kb", decoder=each_decoder) as kb:
        kb.add(sheet.document for sheet in sheets)
        here = LatentIndex(kb)
        expected = [str(index.as_query_engine(similarity_top_k=3).query(q)) for q in asked]
        whole = here.as_query_engine(similarity_top_k=3)
        streaming = here.as_query_engine(similarity_top_k=3, streaming=True)

        async def together() -> list[str]:
            return [str(r) for r in await asyncio.gather(*(whole.aquery(q) for q in asked))]

        async def streamed(question: str) -> str:
            response: Any = await streaming.aquery(question)
            return "".join([piece async for piece in response.async_response_gen()])

        assert [str(whole.query(q)) for q in asked] == expected
        assert asyncio.run(together()) == expected
        assert "".join(streaming.query(asked[0]).response_gen) == expected[0]  # type: ignore[union-attr]
        assert asyncio.run(streamed(asked[1])) == expected[1]
        chats = [
            i.as_chat_engine("context", similarity_top_k=3, context_template=CONTEXT)
            for i in (index, here)
        ]
        for question in asked[:2]:
            theirs, ours = (str(chat.chat(question)) for chat in chats)
            assert ours == theirs


# --- refused ----------------------------------------------------------------------------------------


def test_latents_are_not_given_to_another_model(index: LatentIndex) -> None:
    with pytest.raises(ValueError, match="read by the checkpoint's own decoder, not by MockLLM"):
        index.as_query_engine(llm=MockLLM())
    with pytest.raises(ValueError, match="not by response_mode 'refine'"):
        index.as_query_engine(response_mode="refine")
    with pytest.raises(TypeError, match="similarity_topk"):
        index.as_query_engine(similarity_topk=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="similarity_top_k must be at least 1"):
        index.as_retriever(similarity_top_k=0)


# --- what LlamaIndex asks of every integration --------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LatentIndex, BaseIndex),
        (LatentRetriever, BaseRetriever),
        (LatentSynthesizer, BaseSynthesizer),
        (LatentQueryEngine, BaseQueryEngine),
        (LatentLLM, LLM),
        (LatentCompressor, TransformComponent),
    ],
)
def test_each_class_is_what_it_stands_in_for(ours: type, theirs: type) -> None:
    assert theirs in ours.__mro__
    if hasattr(ours, "class_name"):
        assert ours.class_name() == ours.__name__


def test_a_tool_whose_engine_streams_answers_inside_an_event_loop(
    index: LatentIndex, answered: list[FactQuestion]
) -> None:
    question = answered[0]
    engine = index.as_query_engine(similarity_top_k=3, streaming=True)
    tool = engine.as_tool("sheets", "Facts.")

    async def ask() -> str:
        return str((await tool.acall(question.question)).content)

    assert asyncio.run(ask()) == question.answer
    assert tool.call(question.question).content == question.answer
    assert isinstance(engine.query(question.question), StreamingResponse)


def test_a_query_engine_from_a_folder(
    small_kb: KnowledgeBase, sheets: list[FactSheet], decoder: TransformersDecoder
) -> None:
    small_kb.close()
    question = sheets[1].questions[0]
    with KnowledgeBase.open(small_kb.path, decoder=decoder) as kb:
        expected = kb.query(question.question, 2, sampling=Sampling(max_tokens=32)).text
    engine = LatentQueryEngine.from_knowledge_base(small_kb.path, similarity_top_k=2)
    assert str(engine.query(question.question)) == expected
    engine.retriever.knowledge_base.close()  # type: ignore[attr-defined]


def test_codes_and_ids_are_read_verbatim(
    string_kb: KnowledgeBase, string_questions: list[FactQuestion]
) -> None:
    """The best node goes in as text where the question asks for one, with no word from the user."""
    index = LatentIndex(string_kb)
    never = index.as_query_engine(similarity_top_k=4, expand="never")
    engine = index.as_query_engine(similarity_top_k=4)
    for question in string_questions[:3]:
        response = engine.query(question.question)
        told = response.extra
        assert str(response) == question.answer
        assert told["text"] == [response.source_nodes[0].node.node_id]
        assert len(told["latents"]) == 3
        assert never.query(question.question).extra["text"] == []
