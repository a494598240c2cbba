"""LangChain over a knowledge base: python examples/langchain_qa.py kb/ "Who is the mayor of Velun?" """

from __future__ import annotations

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnablePassthrough

from lclm_rag import KnowledgeBase
from lclm_rag.connectors.langchain import LatentAnswer, LatentRetriever


def main(folder: str, question: str) -> None:
    with KnowledgeBase.open(folder) as kb:
        # The answer, in pieces as they are written.
        for piece in (LatentAnswer(knowledge_base=kb, top_k=4) | StrOutputParser()).stream(
            question
        ):
            print(piece, end="", flush=True)
        print()
        # The retriever in a chain of your own.
        chain = {
            "passages": LatentRetriever(knowledge_base=kb, top_k=2),
            "question": RunnablePassthrough(),
        } | RunnablePassthrough.assign(keys=lambda found: [d.id for d in found["passages"]])
        print(", ".join(chain.invoke(question)["keys"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
