"""Load documents, build an index, ask it: LlamaIndex's first example."""

from __future__ import annotations

from tempfile import TemporaryDirectory

from fact_sheets import documents, sheets
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from lclm_rag.connectors.llama_index import LatentIndex


def main() -> None:
    question = sheets()[3].questions[2]
    with TemporaryDirectory() as folder:
        # index = VectorStoreIndex.from_documents(documents())
        index = LatentIndex.from_documents(documents(), path=f"{folder}/kb")

        response = index.as_query_engine(similarity_top_k=4).query(question.question)
        print(f"{question.question} → {response}   (right: {question.answer})")
        for source in response.source_nodes:
            print(f"  {source.score:.2f} {source.node_id} {source.metadata}")
        print(f"  {response.extra['usage']}")

        print("Streamed, among the sheets of one kind only:")
        kind = MetadataFilters(filters=[MetadataFilter(key="kind", value=sheets()[3].kind)])
        engine = index.as_query_engine(similarity_top_k=4, streaming=True, filters=kind)
        engine.query(question.question).print_response_stream()
        print()
        index.close()


if __name__ == "__main__":
    main()
