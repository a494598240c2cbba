"""KnowledgeBase: a folder with a latent store and a passage index, and a decoder to answer from it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lclm_rag.answer import AddReport, Answer, Hit, Timings, Usage
from lclm_rag.checkpoint import BUNDLED, Checkpoint, Space
from lclm_rag.documents import Document
from lclm_rag.errors import KnowledgeBaseError
from lclm_rag.prompting import (
    DEFAULT_INSTRUCTION,
    AssembledPrompt,
    PromptPassage,
    PromptTemplate,
    SoftPrompt,
    assemble,
)
from lclm_rag.settings import Settings, read_settings, write_settings

if TYPE_CHECKING:
    import torch

    from lclm_rag.compression import Compressor
    from lclm_rag.compression.adapter import Adapter
    from lclm_rag.decoding import Decoder, Sampling
    from lclm_rag.retrieval import Embedder, PassageIndex
    from lclm_rag.retrieval.filters import Filter
    from lclm_rag.store import CodecName, LatentStore, StoredPassage

__all__ = ["KnowledgeBase"]

DEFAULT_TOP_K = 8
PassageForm = Literal["latents", "text", "none"]
"""How passages go into the prompt; "none" asks without any (closed book)."""


class KnowledgeBase:
    """The one object that ties store, index, prompt and decoder together.

    Make one with `create` or `open`. Models are loaded when they are first needed: `add` loads the
    encoder, `query` the decoder (and the adapter), `retrieve` neither.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        checkpoint: Checkpoint,
        store: LatentStore,
        *,
        decoder: str | Decoder = "transformers",
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.path = path
        self.settings = settings
        self.checkpoint = checkpoint
        self.store = store
        self.device = device
        self.dtype = dtype
        self._decoder_choice = decoder

    # --- making and opening ---------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        checkpoint: str | Path = BUNDLED,
        *,
        codec: CodecName = "bf16",
        space: Space = "encoder",
        passage_tokens: int | None = None,
        instruction: str = DEFAULT_INSTRUCTION,
        embedder: str | None = None,
        qdrant_url: str | None = None,
        collection: str | None = None,
        decoder: str | Decoder = "transformers",
        device: str = "auto",
        dtype: str = "auto",
    ) -> KnowledgeBase:
        """Make an empty knowledge base in a folder that is empty or does not exist.

        checkpoint: folder, hub id, or "bundled". codec: "bf16" or "fp16". space: "encoder" (smaller,
        survives a new adapter) or "decoder" (nothing to compute at query time). passage_tokens:
        default one encoder window. embedder: a sentence-transformers model for hybrid retrieval
        (default: BM25 alone). qdrant_url, collection: a Qdrant server in place of the embedded index.
        decoder, device, dtype: as for `open`.
        """
        from lclm_rag.store import CODECS, LatentStore, Layout

        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise KnowledgeBaseError(
                f"{path} is not empty; choose another folder, or open it instead."
            )
        if codec not in CODECS:
            raise ValueError(f"Unknown codec {codec!r}; use {' or '.join(CODECS)}.")
        if space not in ("encoder", "decoder"):
            raise ValueError(f"Unknown space {space!r}; use encoder or decoder.")
        if passage_tokens is not None and passage_tokens < 1:
            raise ValueError(f"passage_tokens must be at least 1, not {passage_tokens}.")
        opened = Checkpoint.open(checkpoint)
        settings = Settings(
            checkpoint=opened.name if opened.name == BUNDLED else _lasting_name(opened),
            passage_tokens=passage_tokens or opened.config.encoder_window_size,
            instruction=instruction,
            embedder=embedder,
            qdrant_url=qdrant_url,
            collection=(collection or f"lclm-{path.resolve().name}") if qdrant_url else None,
        )
        layout = Layout(
            codec=codec,
            space=space,
            width=opened.width(space),
            fingerprint=opened.fingerprint(space),
            compression_ratio=opened.config.compression_ratio,
        )
        path.mkdir(parents=True, exist_ok=True)
        store = LatentStore.create(path / "store", layout)
        # Last, so that a folder with kb.json is always whole.
        write_settings(path, settings)
        return cls(path, settings, opened, store, decoder=decoder, device=device, dtype=dtype)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        checkpoint: str | Path | None = None,
        decoder: str | Decoder = "transformers",
        device: str = "auto",
        dtype: str = "auto",
    ) -> KnowledgeBase:
        """Open a knowledge base.

        checkpoint: where it lies now, if not where it lay when the knowledge base was made.
        decoder: "transformers", or any object with `complete` and `stream`. device: "auto", "cpu",
        "cuda". dtype: "auto", "float32", "bfloat16", "float16".
        Raises KnowledgeBaseError where the folder is none, or was built with another checkpoint.
        """
        from lclm_rag.store import LatentStore

        path = Path(path)
        settings = read_settings(path)
        opened = Checkpoint.open(checkpoint or settings.checkpoint)
        store = LatentStore.open(path / "store")
        found, wanted = opened.fingerprint(store.layout.space), store.layout.fingerprint
        if found != wanted:
            raise KnowledgeBaseError(
                f"{path} was built with checkpoint {settings.checkpoint} (fingerprint {wanted}); "
                f"{opened.name} has fingerprint {found}, and cannot read its latents."
            )
        return cls(path, settings, opened, store, decoder=decoder, device=device, dtype=dtype)

    def close(self) -> None:
        """Release the passage index, so that another process can open it."""
        if "index" in self.__dict__:
            self.index.close()
            del self.__dict__["index"]

    def __enter__(self) -> KnowledgeBase:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Passages."""
        return len(self.store)

    # --- parts, loaded when first needed --------------------------------------------------------

    @cached_property
    def compressor(self) -> Compressor:
        from lclm_rag.compression import Compressor

        return Compressor.from_pretrained(self.checkpoint, self.device, self.dtype)

    @cached_property
    def decoder(self) -> Decoder:
        if not isinstance(self._decoder_choice, str):
            return self._decoder_choice
        if self._decoder_choice != "transformers":
            raise ValueError(f"Unknown decoder {self._decoder_choice!r}; use transformers.")
        from lclm_rag.decoding.transformers import TransformersDecoder

        return TransformersDecoder.from_pretrained(self.checkpoint, self.device, self.dtype)

    @cached_property
    def template(self) -> PromptTemplate:
        return PromptTemplate.of(self.checkpoint, self.settings.instruction)

    @cached_property
    def index(self) -> PassageIndex:
        """The passage index, at the store's version: built or brought up to date where it is not."""
        from lclm_rag.indexing.passage_index import open_index

        return open_index(
            self.path / "index",
            self.store,
            embedder=self._embedder,
            qdrant_url=self.settings.qdrant_url,
            collection=self.settings.collection,
        )

    @cached_property
    def _embedder(self) -> Embedder | None:
        if self.settings.embedder is None:
            return None
        from lclm_rag.retrieval import SentenceTransformerEmbedder

        return SentenceTransformerEmbedder(self.settings.embedder)

    @cached_property
    def _adapter(self) -> Adapter:
        if "compressor" in self.__dict__:
            return self.compressor.adapter
        from lclm_rag.compression.adapter import load_adapter

        return load_adapter(self.checkpoint, self.device, self.dtype)

    # --- writing --------------------------------------------------------------------------------

    def add(
        self,
        documents: Iterable[Document],
        *,
        on_progress: Callable[[AddReport], None] = lambda report: None,
    ) -> AddReport:
        """Compress documents and commit them as one new version; upsert by document id.

        A document whose text and metadata are unchanged is skipped. An error, a duplicate id among
        them too, leaves the last version as it stands. `on_progress` gets the running totals.
        """
        from lclm_rag.indexing.local import add_documents

        self.index  # noqa: B018  In use elsewhere? Better known now than after the work.
        with self.store.writer() as writer:
            report = add_documents(
                writer, documents, self.compressor, self.settings.passage_tokens, on_progress
            )
            self._show(writer.commit())
        return report

    def delete(self, document_ids: Sequence[str]) -> int:
        """Delete documents by id; returns how many passages went.

        Raises KnowledgeBaseError, and deletes nothing, where one of them is not there.
        """
        self.index  # noqa: B018
        with self.store.writer() as writer:
            unknown = [i for i in document_ids if writer.base.document_hash(i) is None]
            if unknown:
                raise KnowledgeBaseError(f"There is no document {unknown[0]!r} in {self.path}.")
            gone = sum(writer.delete_document(i) for i in document_ids)
            self._show(writer.commit())
        return gone

    def _show(self, store: LatentStore) -> None:
        """Turn to a new version, the passage index with it."""
        self.close()
        self.store = store
        self.index  # noqa: B018  Brings the index to the new version.

    # --- reading --------------------------------------------------------------------------------

    def retrieve(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
    ) -> list[Hit]:
        """The best passages for a question, best first.

        filters: {"lang": "en"} for equality, or an expression made with `lclm_rag.retrieval.field`.
        """
        return [hit for hit, _ in self._retrieve(question, top_k, filters)]

    def assemble(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        form: PassageForm = "latents",
        max_tokens: int = 256,
    ) -> SoftPrompt:
        """What the decoder would be given.

        form: "latents"; "text", the same passages pasted; "none", no passages.
        """
        found = self._retrieve(question, top_k, filters, form)
        return self._fit(question, self._prompt_passages(found, form), max_tokens).prompt

    def query(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        form: PassageForm = "latents",
        sampling: Sampling | None = None,
    ) -> Answer:
        """Retrieve, assemble, decode."""
        from lclm_rag.decoding import Sampling

        sampling = sampling or Sampling()
        started = time.perf_counter()
        found = self._retrieve(question, top_k, filters, form)
        retrieved = time.perf_counter()
        passages = self._prompt_passages(found, form)
        loaded = time.perf_counter()
        assembled = self._fit(question, passages, sampling.max_tokens)
        ready = time.perf_counter()
        completion = self.decoder.complete([assembled.prompt], sampling)[0]
        used = set(assembled.used)
        tokens = {row.passage.key: row.tokens for _, row in found}
        return Answer(
            question=question,
            text=completion.text.strip(),
            sources=[hit for hit, _ in found if hit.key in used],
            left_out=list(assembled.left_out),
            complete=completion.finish_reason == "stop",
            usage=Usage(
                positions=assembled.prompt.positions,
                latents=assembled.prompt.latent_count,
                source_tokens=sum(tokens[s.key] for s in assembled.prompt.spans if s.key),
                generated_tokens=len(completion.token_ids),
            ),
            timings=Timings(
                retrieve=retrieved - started,
                load=loaded - retrieved,
                assemble=ready - loaded,
                first_token=completion.first_token,
                total=time.perf_counter() - started,
            ),
        )

    def stream(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        form: PassageForm = "latents",
        sampling: Sampling | None = None,
    ) -> Iterator[str]:
        """As `query`, in pieces of text as they are written; joined, they are its text."""
        from lclm_rag.decoding import Sampling, stripped

        sampling = sampling or Sampling()
        found = self._retrieve(question, top_k, filters, form)
        assembled = self._fit(question, self._prompt_passages(found, form), sampling.max_tokens)
        yield from stripped(self.decoder.stream(assembled.prompt, sampling))

    async def aquery(self, question: str, *args: Any, **kwargs: Any) -> Answer:
        """`query` in a thread: the event loop stays free."""
        return await asyncio.to_thread(self.query, question, *args, **kwargs)

    async def astream(self, question: str, *args: Any, **kwargs: Any) -> AsyncIterator[str]:
        """`stream` in a thread: the event loop stays free."""
        pieces = self.stream(question, *args, **kwargs)
        end = object()
        try:
            while (piece := await asyncio.to_thread(next, pieces, end)) is not end:
                yield str(piece)
        finally:
            await asyncio.to_thread(pieces.close)  # type: ignore[attr-defined]

    def _retrieve(
        self,
        question: str,
        top_k: int,
        filters: Filter | Mapping[str, Any] | None,
        form: PassageForm = "latents",
    ) -> list[tuple[Hit, StoredPassage]]:
        from lclm_rag.retrieval import as_filter

        if form not in get_args(PassageForm):
            raise ValueError(f"Unknown form {form!r}; use {', '.join(get_args(PassageForm))}.")

        if not question.strip():
            raise ValueError("The question is empty.")
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}.")
        if form == "none":
            return []
        hits = self.index.search(question, top_k, as_filter(filters))
        rows = self.store.read(hit.key for hit in hits)
        return [
            (
                Hit(
                    key=hit.key,
                    score=hit.score,
                    text=row.passage.text,
                    start=row.passage.start,
                    end=row.passage.end,
                    metadata=row.passage.metadata,
                ),
                row,
            )
            for hit, row in zip(hits, rows, strict=True)
        ]

    def _prompt_passages(
        self, found: list[tuple[Hit, StoredPassage]], form: PassageForm
    ) -> list[PromptPassage]:
        rows = [row for _, row in found]
        latents: Sequence[torch.Tensor | None] = [None] * len(rows)
        if form == "latents" and rows:
            latents = self._in_decoder_space([row.latents for row in rows])
        return [
            PromptPassage(row.passage.key, row.passage.text, vectors)
            for row, vectors in zip(rows, latents, strict=True)
        ]

    def _in_decoder_space(self, latents: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Through the adapter, all passages at once, where the store keeps encoder space."""
        if self.store.layout.space == "decoder":
            return latents
        import torch

        projected = self._adapter.project(torch.cat(latents))
        return list(projected.split([len(vectors) for vectors in latents]))

    def _fit(
        self, question: str, passages: list[PromptPassage], max_tokens: int
    ) -> AssembledPrompt:
        budget = self.checkpoint.context_length - max_tokens
        return assemble(self.template, passages, question, budget)


def _lasting_name(checkpoint: Checkpoint) -> str:
    """A folder as an absolute path, so that it is found from elsewhere; a hub id as it is."""
    path = Path(checkpoint.name).expanduser()
    return str(path.resolve()) if path.is_dir() else checkpoint.name
