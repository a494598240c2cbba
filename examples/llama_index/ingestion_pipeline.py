"""An IngestionPipeline that splits documents and compresses the nodes; a second run compresses nothing."""

from __future__ import annotations

from tempfile import TemporaryDirectory

from fact_sheets import documents, sheets
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter

from lclm_rag import KnowledgeBase
from lclm_rag.connectors.llama_index import LatentCompressor, LatentIndex


def main() -> None:
    question = sheets()[2].questions[0]
    with TemporaryDirectory() as folder, KnowledgeBase.create(f"{folder}/kb") as kb:
        pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(chunk_size=256), LatentCompressor(kb)]
        )
        nodes = pipeline.run(documents=documents())
        print(f"{len(nodes)} nodes, {len(kb)} passages, version {kb.store.version} of the store")
        pipeline.run(documents=documents())
        print(f"after a second run: {len(kb)} passages, version {kb.store.version}")

        response = LatentIndex(kb).as_query_engine(similarity_top_k=3).query(question.question)
        print(f"{question.question} → {response}")


if __name__ == "__main__":
    main()
