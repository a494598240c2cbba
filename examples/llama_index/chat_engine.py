"""A conversation: passages are retrieved for each message, and the history goes along."""

from __future__ import annotations

from tempfile import TemporaryDirectory

from fact_sheets import documents, sheets

from lclm_rag.connectors.llama_index import LatentIndex


def main() -> None:
    first, second = (sheet.questions[0] for sheet in sheets()[:2])
    with TemporaryDirectory() as folder:
        # index = VectorStoreIndex.from_documents(documents())
        index = LatentIndex.from_documents(documents(), path=f"{folder}/kb")
        chat_engine = index.as_chat_engine(
            chat_mode="context",
            similarity_top_k=3,
            context_template="Answer the question from the passages.\n\n{context_str}\n",
        )
        for question in (first, second):
            print(f"{question.question} → {chat_engine.chat(question.question)}")
        chat_engine.reset()
        print(f"{first.question} → ", end="")
        for piece in chat_engine.stream_chat(first.question).response_gen:
            print(piece, end="", flush=True)
        print()
        index.close()


if __name__ == "__main__":
    main()
