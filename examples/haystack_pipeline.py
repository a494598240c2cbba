"""A Haystack pipeline: python examples/haystack_pipeline.py kb/ "Who is the mayor of Velun?" """

from __future__ import annotations

import sys

from haystack import Pipeline

from lclm_rag.connectors.haystack import LatentGenerator, LatentRetriever


def main(folder: str, query: str) -> None:
    pipeline = Pipeline()
    pipeline.add_component("retriever", LatentRetriever(folder, top_k=4))
    # Rankers and joiners fit between: passages that come out of them still go in as latents.
    pipeline.add_component("generator", LatentGenerator(folder))
    pipeline.connect("retriever.documents", "generator.documents")
    found = pipeline.run({"retriever": {"query": query}, "generator": {"query": query}})
    print(found["generator"]["replies"][0])
    print(", ".join(document.id for document in found["generator"]["documents"]))
    pipeline.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
