"""KnowledgeBase: a folder with a latent store and a passage index, and a decoder to answer from it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lclm_rag.answer import AddReport, Answer, Hit
from lclm_rag.checkpoint import BUNDLED, Checkpoint, Space
from lclm_rag.documents import Document, Passage, PassageKey
from lclm_rag.errors import KnowledgeBaseError
from lclm_rag.prompting import (
    DEFAULT_INSTRUCTION,
    AssembledPrompt,
    ChatMessage,
    PassageForm,
    PromptTemplate,
    SoftPrompt,
)
from lclm_rag.settings import Settings, read_settings, write_settings

if TYPE_CHECKING:
    from lclm_rag.asking import Asked, GivenPassage
    from lclm_rag.compression import Compressor
    from lclm_rag.compression.adapter import Adapter
    from lclm_rag.decoding import Decoder, Sampling
    from lclm_rag.retrieval import Embedder, PassageIndex
    from lclm_rag.retrieval.filters import Filter
    from lclm_rag.store import CodecName, LatentStore

__all__ = ["KnowledgeBase"]

DEFAULT_TOP_K = 8


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
        decoder_options: Mapping[str, Any] | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.path = path
        self.settings = settings
        self.checkpoint = checkpoint
        self.store = store
        self.device = device
        self.dtype = dtype
        self._decoder_name = decoder if isinstance(decoder, str) else ""
        self._decoder_options = decoder_options or {}
        self._decoder = None if isinstance(decoder, str) else decoder
        self._loading = threading.Lock()
        self._index: PassageIndex | None = None
        self._opening = threading.Lock()

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
        contextual_headers: bool = False,
        instruction: str = DEFAULT_INSTRUCTION,
        embedder: str | None = None,
        qdrant_url: str | None = None,
        collection: str | None = None,
        decoder: str | Decoder = "transformers",
        decoder_options: Mapping[str, Any] | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> KnowledgeBase:
        """Make an empty knowledge base in a folder that is empty or does not exist.

        checkpoint: folder, hub id, or "bundled". codec: "bf16" or "fp16". space: "encoder" (smaller,
        survives a new adapter) or "decoder" (nothing to compute at query time). passage_tokens:
        default one encoder window. contextual_headers: title and headings, "Title > Heading", go in front
        of each passage where it is compressed, indexed and pasted. embedder: a sentence-transformers
        model for hybrid retrieval (default: BM25 alone). qdrant_url, collection: a Qdrant server in place
        of the embedded index.
        decoder, decoder_options, device, dtype: as for `open`.
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
            contextual_headers=contextual_headers,
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
        return cls(
            path,
            settings,
            opened,
            store,
            decoder=decoder,
            decoder_options=decoder_options,
            device=device,
            dtype=dtype,
        )

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        checkpoint: str | Path | None = None,
        decoder: str | Decoder = "transformers",
        decoder_options: Mapping[str, Any] | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> KnowledgeBase:
        """Open a knowledge base.

        checkpoint: where it lies now, if not where it lay when the knowledge base was made.
        decoder: "transformers", "vllm", the URL of a vLLM server, or a Decoder (which the caller then
        closes). decoder_options: see `load_decoder`; {"tensor_parallel_size": 2}, say. device: "auto",
        "cpu", "cuda". dtype: "auto", "float32", "bfloat16", "float16".
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
        return cls(
            path,
            settings,
            opened,
            store,
            decoder=decoder,
            decoder_options=decoder_options,
            device=device,
            dtype=dtype,
        )

    def close(self) -> None:
        """Release the passage index, so that another process can open it, and the decoder that was loaded
        here."""
        with self._opening:
            self._close_index()
        if self._decoder is not None and self._decoder_name:
            self._decoder.close()
            self._decoder = None

    def _close_index(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None

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

    @property
    def decoder(self) -> Decoder:
        """Loaded once, whichever thread asks first."""
        with self._loading:
            if self._decoder is None:
                from lclm_rag.decoding import load_decoder

                self._decoder = load_decoder(
                    self._decoder_name,
                    self.checkpoint,
                    self.device,
                    self.dtype,
                    **self._decoder_options,
                )
        return self._decoder

    @property
    def context_length(self) -> int:
        """The decoder's, which an engine option may have shortened; the checkpoint's before it is loaded."""
        loaded = self._decoder
        return self.checkpoint.context_length if loaded is None else loaded.context_length

    @cached_property
    def template(self) -> PromptTemplate:
        return PromptTemplate.of(self.checkpoint, self.settings.instruction)

    @property
    def index(self) -> PassageIndex:
        """The passage index, at the store's version: built or brought up to date where it is not. Opened
        once, whichever thread asks first."""
        return self.index_and_store()[0]

    def index_and_store(self) -> tuple[PassageIndex, LatentStore]:
        """Both at the same version, whatever another thread is writing."""
        with self._opening:
            if self._index is None:
                from lclm_rag.indexing.passage_index import open_index

                self._index = open_index(
                    self.path / "index",
                    self.store,
                    embedder=self._embedder,
                    qdrant_url=self.settings.qdrant_url,
                    collection=self.settings.collection,
                )
            return self._index, self.store

    @cached_property
    def _embedder(self) -> Embedder | None:
        if self.settings.embedder is None:
            return None
        from lclm_rag.retrieval import SentenceTransformerEmbedder

        return SentenceTransformerEmbedder(self.settings.embedder)

    @cached_property
    def adapter(self) -> Adapter:
        if "compressor" in self.__dict__:
            return self.compressor.adapter
        from lclm_rag.compression.adapter import load_adapter

        return load_adapter(self.checkpoint, self.device, self.dtype)

    # --- writing --------------------------------------------------------------------------------

    def add(
        self,
        documents: Iterable[Document],
        *,
        split: bool = True,
        on_progress: Callable[[AddReport], None] = lambda report: None,
    ) -> AddReport:
        """Compress documents and commit them as one new version; upsert by document id.

        A document whose text and metadata are unchanged is skipped. An error, a duplicate id among
        them too, leaves the last version as it stands. split: False makes each document one passage,
        however long and without a header: for what was split elsewhere. `on_progress` gets the running
        totals.
        """
        from lclm_rag.indexing.local import add_documents

        self.index  # noqa: B018  In use elsewhere? Better known now than after the work.
        with self.store.writer() as writer:
            report = add_documents(
                writer,
                documents,
                self.compressor,
                passage_tokens=self.settings.passage_tokens if split else None,
                contextual_headers=self.settings.contextual_headers,
                on_progress=on_progress,
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
        with self._opening:
            self._close_index()
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
        from lclm_rag.asking import retrieve

        return [hit for hit, _ in retrieve(self, question, top_k, filters)]

    def find(self, filters: Filter | Mapping[str, Any]) -> list[PassageKey]:
        """All passages whose metadata match, in the order of their keys.

        filters: as for `retrieve`. Raises ValueError where there is none.
        """
        from lclm_rag.retrieval import as_filter

        condition = as_filter(filters)
        if condition is None:
            raise ValueError("Say what to find: {'lang': 'en'}, or field('year') >= 2000.")
        return self.index.keys(condition)

    def expand(self, key: PassageKey, before: int = 0, after: int = 0) -> list[Passage]:
        """A passage verbatim, with so many of its neighbours in the document, in reading order.

        Raises KnowledgeBaseError where there is no such passage.
        """
        if before < 0 or after < 0:
            raise ValueError("before and after count passages; they cannot be negative.")
        document_id, ordinal = key
        keys = [
            PassageKey(document_id, i)
            for i in range(max(0, ordinal - before), ordinal + after + 1)
            if i == ordinal or PassageKey(document_id, i) in self.store
        ]
        try:
            return [row.passage for row in self.store.read(keys)]
        except KeyError as error:
            raise KnowledgeBaseError(f"There is no passage {key} in {self.path}.") from error

    def assemble(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        form: PassageForm = "latents",
        space: Space = "decoder",
        max_tokens: int = 256,
    ) -> SoftPrompt:
        """What the decoder would be given.

        form: "latents"; "text", the same passages pasted; "none", no passages. space: "decoder", which
        every decoder takes; "encoder", as a store in encoder space keeps latents, for decoders that have
        the adapter.
        """
        from lclm_rag.asking import ask

        return ask(self, question, top_k, filters, form, space, max_tokens).assembled.prompt

    def assemble_chat(
        self,
        messages: Sequence[ChatMessage],
        passages: Sequence[GivenPassage],
        *,
        max_tokens: int = 256,
    ) -> AssembledPrompt:
        """The prompt of a chat in which passages stand that something else has picked, best first.

        messages: (role, words); in one of them stands `lclm_rag.prompting.PASSAGES`, once. passages: those
        of the store go in as latents, others as text; they are taken while they fit into the decoder's
        context, which is loaded here. Give the prompt to `decoder`.
        Raises ValueError, ContextLengthError, or KeyError for a key that the store does not hold.
        """
        from lclm_rag.asking import assemble_chat

        space: Space = "encoder" if self.decoder.takes_encoder_space else "decoder"
        return assemble_chat(self, messages, passages, space, max_tokens)

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
        sampling, decoder = _or_default(sampling), self.decoder
        asked = self._ask(question, top_k, filters, form, sampling)
        return asked.answer(decoder.complete([asked.prompt], sampling))

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
        from lclm_rag.decoding import stripped

        sampling, decoder = _or_default(sampling), self.decoder
        asked = self._ask(question, top_k, filters, form, sampling)
        yield from stripped(decoder.stream(asked.prompt, sampling))

    async def aquery(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        form: PassageForm = "latents",
        sampling: Sampling | None = None,
    ) -> Answer:
        """As `query`; the event loop stays free. On vLLM any number of questions is decoded together, and
        cancelling one ends its generation."""
        sampling = _or_default(sampling)
        decoder = await asyncio.to_thread(lambda: self.decoder)
        asked = await asyncio.to_thread(self._ask, question, top_k, filters, form, sampling)
        return asked.answer(await decoder.acomplete([asked.prompt], sampling))

    async def astream(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        form: PassageForm = "latents",
        sampling: Sampling | None = None,
    ) -> AsyncIterator[str]:
        """As `stream`; the event loop stays free, and closing it ends the generation."""
        from lclm_rag.decoding import astripped

        sampling = _or_default(sampling)
        decoder = await asyncio.to_thread(lambda: self.decoder)
        asked = await asyncio.to_thread(self._ask, question, top_k, filters, form, sampling)
        async with aclosing(decoder.astream(asked.prompt, sampling)) as pieces:
            async for piece in astripped(pieces):
                yield piece

    def _ask(
        self,
        question: str,
        top_k: int,
        filters: Filter | Mapping[str, Any] | None,
        form: PassageForm,
        sampling: Sampling,
    ) -> Asked:
        """For the decoder that is loaded: one that has the adapter gets latents as they are stored."""
        from lclm_rag.asking import ask

        space: Space = "encoder" if self.decoder.takes_encoder_space else "decoder"
        return ask(self, question, top_k, filters, form, space, sampling.max_tokens)


def _or_default(sampling: Sampling | None) -> Sampling:
    from lclm_rag.decoding import Sampling

    return sampling or Sampling()


def _lasting_name(checkpoint: Checkpoint) -> str:
    """A folder as an absolute path, so that it is found from elsewhere; a hub id as it is."""
    path = Path(checkpoint.name).expanduser()
    return str(path.resolve()) if path.is_dir() else checkpoint.name
