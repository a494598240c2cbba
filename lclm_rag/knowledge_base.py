"""KnowledgeBase: a folder with a latent store and a passage index, and a decoder to answer from it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from lclm_rag.checkpoint import BUNDLED, Checkpoint, Space
from lclm_rag.config import Settings, is_knowledge_base, read_settings
from lclm_rag.creation import Made, discard, finished_already, make, require_free
from lclm_rag.errors import KnowledgeBaseError, LockedError, NoPassagesError
from lclm_rag.forking import keep_for_ever, watch
from lclm_rag.prompting import (
    DEFAULT_INSTRUCTION,
    AssembledPrompt,
    ChatMessage,
    Context,
    PromptPassage,
    PromptTemplate,
    SoftPrompt,
)
from lclm_rag.querying.query import Query
from lclm_rag.querying.reader import Reader
from lclm_rag.storage import Folder, LocalFolder, open_folder
from lclm_rag.types import (
    DEFAULT_TOP_K,
    AddReport,
    Answer,
    Document,
    DocumentParts,
    Hit,
    Passage,
    PassageKey,
)

if TYPE_CHECKING:
    from lclm_rag.compression import Compressor
    from lclm_rag.compression.adapter import Adapter
    from lclm_rag.decoding import Decoder, Sampling
    from lclm_rag.ingestion.ray import RayEngine
    from lclm_rag.querying.expansion import Expand
    from lclm_rag.querying.prompts import PromptBuilder
    from lclm_rag.querying.rounds import Rounds
    from lclm_rag.retrieval import Filter, PassageIndex
    from lclm_rag.store import (
        CodecName,
        LatentStore,
        Manifest,
        Operation,
        StoreWriter,
        Vacuumed,
    )

__all__ = ["KnowledgeBase"]

_log = logging.getLogger(__name__)


class KnowledgeBase:
    """The one object that ties store, index, prompt and decoder together.

    Make one with `create` or `open`. Models are loaded when they are first needed: `add` loads the
    encoder, `query` the decoder (and the adapter), `retrieve` neither.
    """

    def __init__(
        self,
        folder: Folder,
        settings: Settings,
        checkpoint: Checkpoint,
        store: LatentStore,
        *,
        decoder: str | Decoder = "transformers",
        decoder_options: Mapping[str, Any] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        compressor_options: Mapping[str, Any] | None = None,
        wait: float = 0.0,
        read_only: bool = False,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        self.compressor_options = compressor_options or {}
        self.wait = wait
        self.read_only = read_only
        self.reader = Reader(folder, settings, store)
        self._decoder_name = decoder if isinstance(decoder, str) else ""
        self._decoder_options = decoder_options or {}
        self._decoder = None if isinstance(decoder, str) else decoder
        self._loading = threading.Lock()
        self._made = Made(contents=False, folder=False)
        self._to_be_first = False
        watch(self)

    # --- making and opening ---------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        checkpoint: str | Path = BUNDLED,
        *,
        codec: CodecName = "int4",
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
        compressor_options: Mapping[str, Any] | None = None,
        wait: float = 0.0,
        resume: bool = False,
    ) -> Self:
        """Make an empty knowledge base in a folder that is empty or does not exist, on this machine or, named
        by a URL, in an object store.

        checkpoint: folder, hub id, or "bundled". codec: "bf16", "fp16", "int8" or "int4", from large and
        exact to small (`lclm_rag.store.codecs`). space: "encoder" (smaller, survives a new adapter) or
        "decoder" (nothing to compute at query time). passage_tokens: default one encoder window.
        contextual_headers: title and headings, "Title > Heading", go in front of each passage where it is
        compressed, indexed and pasted. embedder: a sentence-transformers model for hybrid retrieval (default:
        BM25 alone). qdrant_url, collection: a Qdrant server in place of the embedded index. decoder,
        decoder_options, device, dtype, compressor_options, wait: as for `open`. resume: a knowledge base to
        which nothing was ever committed, because the first `add` was killed, is opened, where it was made
        with the same settings; its first `add` raises KnowledgeBaseError where another process has committed
        one meanwhile.
        Raises KnowledgeBaseError where the folder holds something, LockedError where another process is
        making a knowledge base there.
        """
        from lclm_rag.store import CODECS, Layout

        folder = open_folder(path)
        if not (resume and is_knowledge_base(folder)):
            require_free(folder)
        if codec not in CODECS:
            raise ValueError(f"Unknown codec {codec!r}; use {' or '.join(CODECS)}.")
        if space not in ("encoder", "decoder"):
            raise ValueError(f"Unknown space {space!r}; use encoder or decoder.")
        if passage_tokens is not None and passage_tokens < 1:
            raise ValueError(f"passage_tokens must be at least 1, not {passage_tokens}.")
        opened = Checkpoint.open(checkpoint)
        settings = Settings(
            checkpoint=opened.lasting_name,
            passage_tokens=passage_tokens or opened.config.encoder_window_size,
            instruction=instruction,
            embedder=embedder,
            qdrant_url=qdrant_url,
            collection=(collection or f"lclm-{_name(folder)}") if qdrant_url else None,
            contextual_headers=contextual_headers,
        )
        layout = Layout(
            codec=codec,
            space=space,
            width=opened.width(space),
            fingerprint=opened.fingerprint(space),
            compression_ratio=opened.config.compression_ratio,
        )
        store, made = make(folder, settings, layout, wait=wait, resume=resume)
        knowledge_base = cls(
            folder,
            settings,
            opened,
            store,
            decoder=decoder,
            decoder_options=decoder_options,
            device=device,
            dtype=dtype,
            compressor_options=compressor_options,
            wait=wait,
        )
        knowledge_base._made, knowledge_base._to_be_first = made, resume
        return knowledge_base

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        version: int | None = None,
        checkpoint: str | Path | None = None,
        decoder: str | Decoder = "transformers",
        decoder_options: Mapping[str, Any] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        compressor_options: Mapping[str, Any] | None = None,
        wait: float = 0.0,
    ) -> Self:
        """Open a knowledge base; it shows the version opened, whatever other processes write.

        version: an earlier one, for reading (`versions` lists them). checkpoint: where it lies now, if not
        where it lay when the knowledge base was made. decoder: "transformers", "vllm", the URL of a vLLM
        server, or a Decoder (which the caller then closes). decoder_options: see `load_decoder`;
        {"tensor_parallel_size": 2}, say. device: "auto", "cpu", "cuda". dtype: "auto", "float32", "bfloat16",
        "float16". compressor_options: token_budget, compile, as for `Compressor.from_pretrained`; on Ray for
        each encoder. wait: seconds to wait for another process that writes, before LockedError.
        Raises KnowledgeBaseError where the folder is none, or was built with another checkpoint; StoreError
        where there is no such version.
        """
        from lclm_rag.indexing.lost import lost_version
        from lclm_rag.store import LatentStore

        folder = open_folder(path)
        settings = read_settings(folder)
        opened = Checkpoint.open(checkpoint or settings.checkpoint)
        store = LatentStore.open(folder / "store", version)
        if version is None and (sentence := lost_version(folder / "index", store)):
            _log.warning("%s", sentence)
        if version is not None and settings.qdrant_url is not None:
            raise KnowledgeBaseError(
                f"The passage index of {folder} is on a server, which shows the newest version only; open "
                "it without a version."
            )
        found, wanted = opened.fingerprint(store.layout.space), store.layout.fingerprint
        if found != wanted:
            raise KnowledgeBaseError(
                f"{folder} was built with checkpoint {settings.checkpoint} (fingerprint {wanted}); "
                f"{opened.name} has fingerprint {found}, and cannot read its latents."
            )
        return cls(
            folder,
            settings,
            opened,
            store,
            decoder=decoder,
            decoder_options=decoder_options,
            device=device,
            dtype=dtype,
            compressor_options=compressor_options,
            wait=wait,
            read_only=version is not None,
        )

    @property
    def path(self) -> Path | str:
        """The folder: a path, or the URL of one in an object store."""
        return self.folder.local or str(self.folder)

    def close(self) -> None:
        """Release the passage index, the version that is read, and the decoder that was loaded here."""
        self.reader.close()
        if self._decoder is not None and self._decoder_name:
            self._decoder.close()
            self._decoder = None

    def abandon(self) -> int:
        """Close it after its first `add` has failed; returns how many passages stay for the next one.

        What was compressed stays. Where that is nothing, what `create` made is removed: not where it went on
        with what was there, where another process writes, reads, or has committed, nor anything else in the
        folder. In an object store all stays.
        """
        self.close()
        stays = self.uncommitted_passages()
        if self._made.contents and not stays and isinstance(self.folder, LocalFolder):
            # What made it fail is to be heard, not what keeps it from being removed.
            with suppress(LockedError, OSError):
                discard(self.folder, whole=self._made.folder)
        return stays

    def uncommitted_passages(self) -> int:
        """Passages that killed or failed runs have compressed: the next `add` of their documents takes them
        over, and `vacuum` removes them."""
        from lclm_rag.store.writer import uncommitted_entries

        return sum(e.rows for e in uncommitted_entries(self.folder / "store", self.store.layout))

    def after_fork(self) -> None:
        """In a forked child: what the parent has opened stays the parent's, and is opened anew when it is
        first needed, at the same version. A decoder that was given stays the caller's."""
        keep_for_ever(dict(vars(self)))
        self._loading = threading.Lock()
        self._made = Made(contents=False, folder=False)
        if self._decoder_name:
            self._decoder = None
        for part in ("compressor", "adapter"):
            vars(self).pop(part, None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it is a path, a version and options: it is opened again where it is unpickled."""
        if not self._decoder_name:
            raise TypeError(
                f"{self.folder} cannot be pickled with a decoder that was given as an object; name it "
                "instead, as decoder='transformers' or by a server's URL."
            )
        options = {
            "checkpoint": self.checkpoint.lasting_name,
            "decoder": self._decoder_name,
            "decoder_options": self._decoder_options,
            "device": self.device,
            "dtype": self.dtype,
            "compressor_options": self.compressor_options,
            "wait": self.wait,
        }
        path = str(self.folder if self.folder.local is None else self.folder.local.resolve())
        # A server's passage index shows the newest version only.
        version = None if self.settings.qdrant_url else self.store.version
        return _opened_again, (type(self), path, version, self.read_only, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Passages."""
        return len(self.store)

    # --- parts, loaded when first needed --------------------------------------------------------

    @property
    def store(self) -> LatentStore:
        """The version that is read."""
        return self.reader.store

    @property
    def index(self) -> PassageIndex:
        """The passage index, at the store's version."""
        return self.reader.index

    @cached_property
    def compressor(self) -> Compressor:
        from lclm_rag.compression import Compressor

        options = self.compressor_options
        return Compressor.from_pretrained(self.checkpoint, self.device, self.dtype, **options)

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

    @cached_property
    def adapter(self) -> Adapter:
        if "compressor" in self.__dict__:
            return self.compressor.adapter
        from lclm_rag.compression.adapter import load_adapter

        return load_adapter(self.checkpoint, self.device, self.dtype)

    # --- writing --------------------------------------------------------------------------------

    def add(
        self,
        documents: Iterable[Document] | DocumentParts,
        *,
        split: bool = True,
        resume: bool = True,
        engine: RayEngine | None = None,
        on_progress: Callable[[AddReport], None] = lambda report: None,
    ) -> AddReport:
        """Compress documents and commit them as one new version; upsert by document id.

        A document whose text and metadata are unchanged is skipped; of a changed one only the passages whose
        text has changed are compressed. An error, a duplicate id among them too, leaves the last version as
        it stands; what was compressed until then, or until the process was killed, is taken over by the next
        `add` of the same documents. split: False makes each document one passage, however long and without a
        header: for what was split elsewhere. resume: False compresses everything that is not committed.
        engine: None compresses in this process; a `RayEngine` on a Ray cluster, whose workers also read the
        documents where these are given as parts. `on_progress` gets the running totals.
        """
        return self._write(documents, "add", split, resume, engine, on_progress)

    def sync(
        self,
        documents: Iterable[Document] | DocumentParts,
        *,
        split: bool = True,
        resume: bool = True,
        engine: RayEngine | None = None,
        keep: Callable[[], bool] = lambda: False,
        on_progress: Callable[[AddReport], None] = lambda report: None,
    ) -> AddReport:
        """As `add`, and delete every other document: then the knowledge base holds `documents` and no others.

        keep: asked at the end; True deletes nothing (because some of the corpus could not be read, say; what
        the engine skips counts, too).
        Raises KnowledgeBaseError where none of the documents was there before: that is another corpus.
        """
        return self._write(documents, "sync", split, resume, engine, on_progress, keep)

    def _write(
        self,
        documents: Iterable[Document] | DocumentParts,
        operation: Literal["add", "sync"],
        split: bool,
        resume: bool,
        engine: RayEngine | None,
        on_progress: Callable[[AddReport], None],
        keep: Callable[[], bool] = lambda: True,
    ) -> AddReport:
        from lclm_rag.ingestion.sync import MissingFromCorpus

        with self._writing(operation, resumable=resume) as writer:
            others = MissingFromCorpus(writer.base)
            on_document = others.note if operation == "sync" else lambda _: None
            report = self._compress(writer, documents, split, engine, on_progress, on_document)
            if operation == "sync" and not keep() and not report.skipped:
                report = replace(report, deleted=others.delete(writer))
            committed = writer.commit()
            if engine is None:
                self.reader.show(committed)
            else:
                self.reader.show(committed, engine.upsert)
        return report

    def _compress(
        self,
        writer: StoreWriter,
        documents: Iterable[Document] | DocumentParts,
        split: bool,
        engine: RayEngine | None,
        on_progress: Callable[[AddReport], None],
        on_document: Callable[[str], None],
    ) -> AddReport:
        from lclm_rag.ingestion.passages import Splitting

        settings = self.settings
        splitting = Splitting(
            settings.passage_tokens if split else None, settings.contextual_headers
        )
        if engine is None:
            from lclm_rag.ingestion.local import add_documents

            if isinstance(documents, DocumentParts):
                raise ValueError("Only an engine's workers read parts of a corpus; give documents.")
            return add_documents(
                writer,
                documents,
                self.checkpoint,
                lambda: self.compressor,
                splitting,
                on_progress=on_progress,
                on_document=on_document,
            )
        from lclm_rag.ingestion.ray.engine import add_documents_on_ray

        return add_documents_on_ray(
            writer,
            documents,
            self.checkpoint,
            splitting,
            engine,
            device=self.device,
            dtype=self.dtype,
            compressor_options=self.compressor_options,
            on_progress=on_progress,
            on_document=on_document,
        )

    def delete(
        self,
        document_ids: Sequence[str] = (),
        *,
        filters: Filter | Mapping[str, Any] | None = None,
    ) -> int:
        """Delete documents by id, or all of which a passage matches `filters` (as for `retrieve`); returns
        how many passages went.

        Raises KnowledgeBaseError, and deletes nothing, where one of the ids is not there, nothing matches, or
        the filters ask for a key that no passage has: `!=` and `~` would match everything.
        """
        if bool(document_ids) == (filters is not None):
            raise ValueError("Say what to delete: either ids or filters.")
        with self._writing("delete") as writer:
            if filters is not None:
                self.reader.show_newest()
                document_ids = self.matching_documents(filters)
                if not document_ids:
                    raise KnowledgeBaseError(f"No document of {self.folder} matches the filter.")
            unknown = [i for i in document_ids if writer.base.document_hash(i) is None]
            if unknown:
                raise KnowledgeBaseError(f"There is no document {unknown[0]!r} in {self.folder}.")
            gone = sum(writer.delete_document(i) for i in document_ids)
            self.reader.show(writer.commit())
        return gone

    def matching_documents(self, filters: Filter | Mapping[str, Any]) -> list[str]:
        """The ids of the documents that `delete` would delete by these filters. Raises as `delete`, but for
        none."""
        condition = _condition(filters)
        self.reader.check_keys(condition)
        return sorted({key.document_id for key in self.reader.find(condition)})

    def compact(self, *, on_row: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Merge small fragments and leave deleted passages out, as a new version; optimize the passage index.
        `vacuum` then frees the disk that the versions before it took. Nobody waits meanwhile but other
        writers. on_row: rows done, rows in all."""
        from lclm_rag.store import compact

        self._refuse_reading()
        self.reader.show(compact(self.folder / "store", wait=self.wait, on_row=on_row))
        with self.reader.session() as session:
            if session is not None:
                session.optimize()

    def convert(
        self,
        codec: CodecName,
        *,
        on_row: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Write the latents in another codec, without the encoder, as a new version. From a smaller codec to
        a larger one nothing comes back that the smaller one had lost. on_row: as for `compact`."""
        from lclm_rag.store import convert

        self._refuse_reading()
        self.reader.show(convert(self.folder / "store", codec, wait=self.wait, on_row=on_row))

    def vacuum(self, *, keep: int = 1) -> Vacuumed:
        """Remove all versions but the newest `keep` and those that are open anywhere, and every file that no
        version needs, such as what killed runs left behind (unfinished builds then start from nothing)."""
        from lclm_rag.errors import PassageIndexError
        from lclm_rag.indexing.snapshots import SnapshotFolder
        from lclm_rag.store import vacuum

        self._refuse_reading()
        # A snapshot of a version that is removed would be of no use. On a full disk it goes all the same.
        with self.reader.session(), suppress(PassageIndexError):
            self.reader.show_newest()
            with self.reader.session() as session:
                if session is not None:
                    session.publish()
        vacuumed = vacuum(self.folder / "store", keep=keep, wait=self.wait)
        if self.settings.qdrant_url is None:
            freed = SnapshotFolder(self.folder / "index").remove_superseded()
            vacuumed = replace(vacuumed, bytes=vacuumed.bytes + freed)
        return vacuumed

    def versions(self) -> list[Manifest]:
        """Every version that can be opened, oldest first."""
        from lclm_rag.store import read_versions

        return read_versions(self.folder / "store")

    @contextmanager
    def _writing(self, operation: Operation, *, resumable: bool = False) -> Iterator[StoreWriter]:
        from lclm_rag.store import writing

        self._refuse_reading()
        with writing(
            self.folder / "store", operation, wait=self.wait, resumable=resumable
        ) as writer:
            if self._to_be_first and writer.base.version:
                raise finished_already(self.folder, writer.base)
            self._to_be_first = False
            yield writer

    def follow_server(self) -> bool:
        """Turn to the newest version where the passage index is on a server, which shows that one only.
        False where this is it already, or the index is not on a server."""
        return self.reader.follow_server()

    def _refuse_reading(self) -> None:
        if self.read_only:
            raise KnowledgeBaseError(
                f"{self.folder} is open at version {self.store.version}, for reading; open it without a "
                "version to write."
            )

    # --- reading --------------------------------------------------------------------------------

    def retrieve(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
    ) -> list[Hit]:
        """The best passages for a question, best first.

        filters: {"lang": "en"} for equality, or an expression made with `lclm_rag.retrieval.field`. What of
        it cannot hold for any passage, such as a misspelt key, is logged as a warning.
        """
        query = Query.of(question, top_k, filters)
        hits = self.reader.search(query).hits
        self.reader.warn_of(query.filters)
        return hits

    def why_no_passages(self, filters: Filter | Mapping[str, Any] | None = None) -> str:
        """For who got no hits of `retrieve` with these filters: why, in a sentence."""
        from lclm_rag.retrieval import as_filter

        return self.reader.why_none(as_filter(filters))

    def find(self, filters: Filter | Mapping[str, Any]) -> list[PassageKey]:
        """All passages whose metadata match, in the order of their keys.

        filters: as for `retrieve`. Raises ValueError where there is none.
        """
        return self.reader.find(_condition(filters))

    def read_passages(self, key: PassageKey, before: int = 0, after: int = 0) -> list[Passage]:
        """A passage verbatim, with so many of its neighbours in the document, in reading order.

        Raises KnowledgeBaseError where there is no such passage.
        """
        if before < 0 or after < 0:
            raise ValueError("before and after count passages; they cannot be negative.")
        return self.reader.read_passages(key, before, after)

    def holds(self, key: PassageKey, text: str) -> bool:
        """Whether a passage is in the store, with just this text: then its latents stand for it."""
        store = self.store
        return key in store and store.read([key])[0].passage.text == text

    def assemble(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        context: Context = "latents",
        expand: Expand = "auto",
        space: Space = "decoder",
        max_tokens: int = 256,
    ) -> SoftPrompt:
        """What the decoder would be given first.

        context: "latents"; "text", the same passages pasted; "none", no passages. expand: as for `query`.
        space: "decoder", which every decoder takes; "encoder", as a store in encoder space keeps latents, for
        decoders that have the adapter.
        Where nothing is found it is a prompt without passages, and a warning in the log says why: `query`
        would not have it decoded.
        """
        from lclm_rag.decoding import Sampling

        query = Query.of(question, top_k, filters, context, expand, Sampling(max_tokens))
        builder = self.prompt_builder(space)
        try:
            return self._first_prompt(query, builder)
        except NoPassagesError as error:
            _log.warning("%s", error)
            return self._first_prompt(replace(query, context="none"), builder)

    def assemble_chat(
        self,
        messages: Sequence[ChatMessage],
        passages: Sequence[PromptPassage],
        *,
        question: str = "",
        expand: Expand = "never",
        max_tokens: int = 256,
    ) -> AssembledPrompt:
        """The prompt of a chat with passages that something else has picked, best first.

        messages: (role, words); one of them holds `lclm_rag.prompting.PASSAGES`, once. passages: those with a
        key in the store (`stored`) go in as latents, others as text; they are taken while they fit into the
        decoder's context, which is loaded here. Give the prompt to `decoder`. expand: as for `stream`; "auto"
        goes by `question`.
        Raises ValueError, ContextLengthError, or KeyError for a key that the store does not hold.
        """
        builder = self.prompt_builder(self.decoder.space)
        return builder.build_chat(
            messages, passages, self.store, question=question, expand=expand, max_tokens=max_tokens
        )

    def query(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        context: Context = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
    ) -> Answer:
        """Retrieve, assemble, decode; and again where passages are to be read verbatim.

        expand: which of the passages go in verbatim, not as latents. "never"; "always", all of them; a
        number, so many of the best; "auto", the best where the question asks for a code, an id or an exact
        wording, and, where the answer holds strings that its sources do not have (`Answer.grounding`), the
        best three and once more; "model", those that the decoder asks for, in up to three rounds; "tool", the
        same by a tool that it calls. `Answer.rounds` is the transcript.

        Where no passage is found, nothing is decoded: `Answer.no_passages` is true, `Answer.reason` says why.
        context: as for `assemble`; "none" asks the decoder alone.
        """
        from lclm_rag.querying.rounds import decode

        query = Query.of(question, top_k, filters, context, expand, sampling)
        return decode(self._rounds(query), self.decoder, query.sampling)

    def stream(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        context: Context = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
    ) -> Iterator[str]:
        """As `query`, in pieces of text as they are written; joined, they are its text.

        What is shown cannot be taken back: "auto" goes by the question alone, and does not decode once more;
        "model" and "tool" are refused by ValueError. Where no passage is found there is no piece, and a
        warning in the log says why.
        """
        from lclm_rag.decoding import stripped

        query = Query.of(question, top_k, filters, context, expand, sampling)
        decoder, prompt = self.decoder, self._streamed(query)
        if prompt is not None:
            yield from stripped(decoder.stream(prompt, query.sampling))

    async def aquery(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        context: Context = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
    ) -> Answer:
        """As `query`; the event loop stays free. On vLLM any number of questions is decoded together, and
        cancelling one ends its generation."""
        from lclm_rag.querying.rounds import adecode

        query = Query.of(question, top_k, filters, context, expand, sampling)
        decoder = await asyncio.to_thread(lambda: self.decoder)
        return await adecode(self._rounds(query), decoder, query.sampling)

    async def astream(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        context: Context = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
    ) -> AsyncIterator[str]:
        """As `stream`; the event loop stays free, and closing it ends the generation."""
        from lclm_rag.decoding import astripped

        query = Query.of(question, top_k, filters, context, expand, sampling)
        decoder = await asyncio.to_thread(lambda: self.decoder)
        prompt = await asyncio.to_thread(self._streamed, query)
        if prompt is None:
            return
        async with aclosing(decoder.astream(prompt, query.sampling)) as pieces:
            async for piece in astripped(pieces):
                yield piece

    def rounds(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | None = None,
        *,
        context: Context = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
    ) -> Rounds:
        """`query` without the decoding: a generator that gives prompts, takes the completion of each, and
        returns the answer. For who decodes many questions together."""
        return self._rounds(Query.of(question, top_k, filters, context, expand, sampling))

    def prompt_builder(self, space: Space) -> PromptBuilder:
        """What makes the prompts of this knowledge base. space: in which the decoder takes latents best."""
        from lclm_rag.querying.prompts import PromptBuilder
        from lclm_rag.torch_setup import resolve_dtype

        return PromptBuilder(
            self.checkpoint,
            self.template,
            self.context_length,
            space,
            resolve_dtype(self.dtype, self.device),
            lambda latents: self.adapter.project(latents),
        )

    def _rounds(self, query: Query) -> Rounds:
        from lclm_rag.querying.rounds import answer, no_answer

        builder = self.prompt_builder(self.decoder.space)
        builder.require_room(query)
        started = time.perf_counter()
        try:
            retrieved = self.reader.search_to_answer(query)
        except NoPassagesError as error:
            return no_answer(query.question, str(error), time.perf_counter() - started)
        return (yield from answer(builder, query, retrieved))

    def _first_prompt(self, query: Query, builder: PromptBuilder) -> SoftPrompt:
        builder.require_room(query)
        return builder.build(query, self.reader.search_to_answer(query)).prompt

    def _streamed(self, query: Query) -> SoftPrompt | None:
        """None where no passage is found, which is logged."""
        if query.expand in ("model", "tool"):
            raise ValueError(
                f"expand={query.expand!r} takes several rounds, which no stream shows; query."
            )
        try:
            return self._first_prompt(query, self.prompt_builder(self.decoder.space))
        except NoPassagesError as error:
            _log.warning("%s", error)
            return None


def _name(folder: Folder) -> str:
    return str(folder).rpartition("/")[2] if folder.local is None else folder.local.resolve().name


def _condition(filters: Filter | Mapping[str, Any]) -> Filter:
    from lclm_rag.retrieval import as_filter

    condition = as_filter(filters)
    if condition is None:
        raise ValueError("Say what to find: {'lang': 'en'}, or field('year') >= 2000.")
    return condition


def _opened_again(
    cls: type[KnowledgeBase],
    path: str,
    version: int | None,
    read_only: bool,
    options: dict[str, Any],
) -> KnowledgeBase:
    opened = cls.open(path, version=version, **options)
    opened.read_only = read_only
    return opened
