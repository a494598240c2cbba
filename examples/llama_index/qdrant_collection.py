"""A Qdrant collection that LlamaIndex filled gets latents beside it; nothing in it changes."""

from __future__ import annotations

import hashlib
from tempfile import TemporaryDirectory

from fact_sheets import documents, sheets
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.node_parser import SentenceSplitter
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from lclm_rag.connectors.llama_index import LatentCollectionIndex


class WordEmbedding(BaseEmbedding):
    """Counts words in 512 buckets; your own model stands here."""

    def _embed(self, text: str) -> list[float]:
        counts = [0.0] * 512
        for word in text.lower().replace("?", " ").replace(".", " ").split():
            counts[int(hashlib.md5(word.encode()).hexdigest(), 16) % 512] += 1.0
        return counts

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)


def main() -> None:
    question = sheets()[1].questions[0]
    embedding = WordEmbedding()
    vector_store = QdrantVectorStore("sheets", client=QdrantClient(":memory:"))
    VectorStoreIndex.from_documents(
        documents(),
        storage_context=StorageContext.from_defaults(vector_store=vector_store),
        transformations=[SentenceSplitter(chunk_size=256)],
        embed_model=embedding,
    )
    with TemporaryDirectory() as folder:
        index = LatentCollectionIndex.from_vector_store(
            vector_store, f"{folder}/kb", embed_model=embedding
        )
        response = index.as_query_engine(similarity_top_k=4).query(question.question)
        print(f"{question.question} → {response}")
        told = response.extra
        print(f"  {len(told['latents'])} nodes as latents, {len(told['text'])} as text")
        index.close()


if __name__ == "__main__":
    main()
