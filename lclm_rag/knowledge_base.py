"""KnowledgeBase: a folder with a latent store and a passage index, and a decoder that answers from it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

from lclm_rag.checkpoint import BUNDLED, Checkpoint, Space
from lclm_rag.checks import check_wait, check_whole
from lclm_rag.config import (
    SETTINGS,
    Settings,
    check_qdrant,
    check_qdrant_url,
    is_knowledge_base,
    read_settings,
    remove_unfinished_settings,
    write_settings,
)
from lclm_rag.creation import Made, discard, finished_already, make, require_free
from lclm_rag.errors import (
    ContextLengthError,
    KnowledgeBaseError,
    LclmRagError,
    LockedError,
    NoPassagesError,
)
from lclm_rag.forking import keep_for_ever, watch
from lclm_rag.prompting import (
    AssembledPrompt,
    ChatMessage,
    Context,
    Frame,
    Order,
    PromptPassage,
    PromptTemplate,
    SoftPrompt,
    check_order,
    frame_of,
    load_frame,
)
from lclm_rag.querying.query import Query, Ranking, each_checked
from lclm_rag.querying.reader import Reader, Retrieved
from lclm_rag.remotes import announce_remotes, remember_remotes
from lclm_rag.retrieval.embedders import GIVEN
from lclm_rag.retrieval.language import AUTO, check_language
from lclm_rag.storage import Folder, LocalFolder, open_folder
from lclm_rag.types import (
    DEFAULT_TOP_K,
    AddReport,
    Answer,
    Document,
    DocumentParts,
    Documents,
    Hit,
    MetadataField,
    Passage,
    PassageKey,
    StoredDocument,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import torch

    from lclm_rag.compression import Compressor
    from lclm_rag.compression.adapter import Adapter
    from lclm_rag.decoding import Decoder, Sampling
    from lclm_rag.ingestion.ray import RayEngine
    from lclm_rag.querying.expansion import Expand
    from lclm_rag.querying.prompts import PromptBuilder
    from lclm_rag.querying.rounds import Rounds
    from lclm_rag.retrieval import Embedder, Filter, PassageIndex
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

_KEPT_LATENTS = 1_000
"""Turns of conversations whose latents are kept in memory."""

_TOGETHER = 64
"""Questions whose prompts, with all their latents, are in memory at once."""


class KnowledgeBase:
    """The one object that ties store, passage index, prompt and decoder together.

    Make one with `create` or `open`. Models are loaded when they are first needed: `add` loads the encoder,
    `query` loads the decoder (and the adapter, if the decoder does not have it), `retrieve` loads neither.

    It is a context manager, with `async` too, that closes itself. It can be pickled if its decoder was given
    by name: the copy opens the same folder at the same version. After a fork, the child opens its own store,
    index and models.
    """

    def __init__(
        self,
        folder: Folder,
        settings: Settings,
        checkpoint: Checkpoint,
        store: LatentStore,
        *,
        frame: Frame | None = None,
        order: Order = "key",
        decoder: str | Decoder = "transformers",
        decoder_options: Mapping[str, Any] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        compressor_options: Mapping[str, Any] | None = None,
        wait: float = 0.0,
        read_only: bool = False,
        embedder: Embedder | None = None,
    ) -> None:
        """Use `create` or `open` instead.

        Args:
            folder: The folder that holds the knowledge base.
            settings: What was chosen when the knowledge base was created (`kb.json`).
            checkpoint: The checkpoint that the latents were made with.
            store: The latent store, open at the version to read.
            frame: Used in place of the frame in `settings`.
            order: The order of passages in prompts.
            decoder: "transformers", "vllm", the URL of a vLLM server, or a `Decoder`. The caller closes a
                `Decoder` that it passes.
            decoder_options: Keyword arguments for `load_decoder`, if the decoder is given by name.
            device: "auto", "cpu", "cuda" or "cuda:1" and so on; "auto" is CUDA if there is any.
            dtype: "auto", "float32", "bfloat16" or "float16"; "auto" is bfloat16 on CUDA, float32 on a CPU.
            compressor_options: `token_budget` and `compile`, as for `Compressor.from_pretrained`.
            wait: How many seconds to wait while another process writes, before LockedError is raised.
            read_only: Whether to refuse every method that writes.
            embedder: The embedder, if it is an object that the settings can only name.
        """
        self.folder = folder
        self.settings = settings
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        self.compressor_options = compressor_options or {}
        self.wait = wait
        self.read_only = read_only
        self.reader = Reader(folder, settings, store, embedder)
        self._given_embedder = embedder
        self.stored_frame = _stored_frame(folder, settings, checkpoint)
        self.frame = frame or self.stored_frame
        self.order = order
        self._templates: dict[Frame, PromptTemplate] = {}
        if self.frame.memory != self.stored_frame.memory:
            _log.warning(
                "The latents in %s were made in the frame %s: what the frame %s has inside the memory "
                "besides the text is not in them. Build with this frame for that.",
                folder,
                self.stored_frame.name,
                self.frame.name,
            )
        self._decoder_name = decoder if isinstance(decoder, str) else ""
        self._decoder_options = decoder_options or {}
        self._decoder = None if isinstance(decoder, str) else decoder
        # Reentrant, because a signal handler may close what is being loaded in its own thread.
        self._loading = threading.RLock()
        self._models_of: KnowledgeBase | None = None
        self._latents: dict[tuple[str, Space], torch.Tensor] = {}
        self._compressing = threading.Lock()
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
        frame: str | Path | Frame | None = None,
        instruction: str | None = None,
        embedder: str | Path | Embedder | None = None,
        qdrant_url: str | None = None,
        collection: str | None = None,
        qdrant_options: Mapping[str, Any] | None = None,
        filter_keys: Sequence[str] | None = None,
        language: str = AUTO,
        order: Order = "key",
        decoder: str | Decoder = "transformers",
        decoder_options: Mapping[str, Any] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        compressor_options: Mapping[str, Any] | None = None,
        wait: float = 0.0,
        resume: bool = False,
    ) -> Self:
        """Make an empty knowledge base in a folder that is empty or does not exist.

        Args:
            path: The folder: a path on this machine, or the URL of a folder in an object store.
            checkpoint: A checkpoint's folder or hub id, "english" or "bundled".
            codec: How latents are stored: "bf16", "fp16", "int8" or "int4", from large and exact to small
                (`lclm_rag.store.codecs`).
            space: The space of the stored latents: "encoder" takes less room and survives a new adapter;
                "decoder" leaves nothing to compute at query time.
            passage_tokens: Most encoder tokens in a passage, at least 1. Default: one encoder window.
            contextual_headers: Whether the document's title and headings ("Title > Heading") go in front of
                each passage when it is compressed, indexed and pasted.
            frame: The words around passages and question: the name of a frame (`lclm_rag.prompting.FRAMES`),
                the path of a .toml file, or a `Frame`. Default: the frame that the checkpoint names, in which
                its decoder was trained.
            instruction: The instruction in every prompt. Default: the frame's.
            embedder: Makes the dense vectors for hybrid retrieval: name or path of a sentence-transformers
                model, or an `Embedder`, which must then be given to `open`, too, and needs the embedded
                index. Default: BM25 alone.
            qdrant_url: URL of a Qdrant server that holds the passage index. Default: an embedded index in the
                folder.
            collection: Name of the collection on the Qdrant server. Default: "lclm-" and the folder's name.
                An empty one that was made beforehand is taken if its vectors are those of the index.
            qdrant_options: How the collection is made: shards, replicas, quantization, what is kept on disk
                (`lclm_rag.retrieval.collection_setup.check_options`). Default: as the server makes it.
            filter_keys: The metadata keys that filters can name on the Qdrant server: they alone go there,
                and their indexes are made before the first passage. Default: all keys that passages have.
            language: The language whose endings and common words BM25 knows: one of
                `lclm_rag.retrieval.LANGUAGES`, or "auto" for that of what is added first. Texts in other
                languages are found by the words as they stand in them.
            order: As for `open`.
            decoder: As for `open`.
            decoder_options: As for `open`.
            device: As for `open`.
            dtype: As for `open`.
            compressor_options: As for `open`.
            wait: As for `open`.
            resume: Whether to open a knowledge base that is already in the folder, if nothing was ever
                committed to it (its first `add` was killed) and it was made with the same settings. If
                another process commits to it in the meantime, the first `add` raises KnowledgeBaseError.

        Returns:
            The new knowledge base, open for writing.

        Raises:
            KnowledgeBaseError: When the folder is not empty, or the disk is full. With `resume`, when the
                knowledge base has a commit or was made with other settings.
            LockedError: When another process is making a knowledge base there and is not done after `wait`
                seconds.
            CheckpointError: When the checkpoint cannot be found, is incomplete or is not supported.
            ValueError: When `codec`, `space`, `passage_tokens`, `frame`, `language`, `order`, the URL or what
                is asked of the Qdrant server is not valid, or an `Embedder` is to go with a server.
            ImportError: When the library for the object store is not installed.
        """
        from lclm_rag.store import CODECS, Layout

        folder = open_folder(path)
        if not (resume and is_knowledge_base(folder)):
            require_free(folder)
        if codec not in CODECS:
            raise ValueError(f"Unknown codec {codec!r}; use {' or '.join(CODECS)}.")
        if space not in ("encoder", "decoder"):
            raise ValueError(f"Unknown space {space!r}; use encoder or decoder.")
        if passage_tokens is not None:
            check_whole(passage_tokens, "passage_tokens", 1)
        check_order(order)
        check_wait(wait)
        check_language(language)
        given = None if embedder is None or isinstance(embedder, str | Path) else embedder
        if given is not None and qdrant_url is not None:
            raise ValueError(
                "An embedder that is an object needs the embedded index; leave qdrant_url out, or name a "
                "sentence-transformers model."
            )
        embedder_name = str(embedder) if embedder is not None else None
        if given is not None:
            embedder_name = f"{GIVEN}{given.name}"
        check_qdrant(qdrant_url, qdrant_options, filter_keys)
        opened = Checkpoint.open(checkpoint)
        chosen = None if frame is None else load_frame(frame)
        settings = Settings(
            checkpoint=opened.lasting_name,
            passage_tokens=passage_tokens or opened.config.encoder_window_size,
            instruction=instruction,
            embedder=embedder_name,
            qdrant_url=qdrant_url,
            collection=(collection or f"lclm-{_name(folder)}") if qdrant_url else None,
            contextual_headers=contextual_headers,
            frame=None if chosen is None else chosen.to_json(),
            qdrant_options=None if qdrant_options is None else dict(qdrant_options),
            filter_keys=None if filter_keys is None else list(filter_keys),
            language=language,
        )
        layout = Layout(
            codec=codec,
            space=space,
            width=opened.width(space),
            fingerprint=opened.fingerprint(space),
            compression_ratio=opened.config.compression_ratio,
        )
        store, made = make(folder, settings, layout, wait=wait, resume=resume)
        if not made.contents:
            settings = read_settings(folder)  # It was begun with another id.
        knowledge_base = cls(
            folder,
            settings,
            opened,
            store,
            order=order,
            decoder=decoder,
            decoder_options=decoder_options,
            device=device,
            dtype=dtype,
            compressor_options=compressor_options,
            wait=wait,
            embedder=given,
        )
        remember_remotes(settings)
        knowledge_base._made, knowledge_base._to_be_first = made, resume
        return knowledge_base

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        version: int | None = None,
        checkpoint: str | Path | None = None,
        frame: str | Path | Frame | None = None,
        order: Order = "key",
        decoder: str | Decoder = "transformers",
        decoder_options: Mapping[str, Any] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        compressor_options: Mapping[str, Any] | None = None,
        embedder: Embedder | None = None,
        wait: float = 0.0,
        qdrant_url: str | None = None,
    ) -> Self:
        """Open a knowledge base.

        It keeps showing the version that was opened, even when other processes write new ones. If the passage
        index knows of a version that the store has lost, a warning is logged.

        Args:
            path: The folder: a path on this machine, or the URL of a folder in an object store.
            version: An earlier version, for reading only (`versions` lists them). Default: the newest, for
                reading and writing.
            checkpoint: Where the checkpoint is now, if it is no longer where it was when the knowledge base
                was created.
            frame: Words around passages and question to use now, in place of those that the knowledge base
                was created with; as for `create`.
            order: The order of passages in prompts: "key", by document and place in it, so that the same
                passages give the same prefix, which an engine has in its cache; "best_first"; "best_last"; or
                "given", which differs from "best_first" only for passages that a caller picks.
            decoder: "transformers", "vllm", the URL of a vLLM server, or a `Decoder`. The caller closes a
                `Decoder` that it passes.
            decoder_options: Keyword arguments for `load_decoder`, such as {"tensor_parallel_size": 2}.
            device: "auto", "cpu", "cuda" or "cuda:1" and so on; "auto" is CUDA if there is any.
            dtype: "auto", "float32", "bfloat16" or "float16"; "auto" is bfloat16 on CUDA and float32 on a
                CPU.
            compressor_options: `token_budget` and `compile`, as for `Compressor.from_pretrained`. On Ray they
                apply to each encoder.
            embedder: The `Embedder` that the knowledge base was created with, if it was an object. One that
                was named is loaded by its name.
            wait: How many seconds to wait while another process writes, before LockedError is raised.
            qdrant_url: Where the Qdrant server of the passage index is now, for this process; lclm-rag
                reindex --qdrant-url changes it for all. Default: where it was when the index was made.

        Returns:
            The knowledge base, read-only if a version was given.

        Raises:
            KnowledgeBaseError: When the folder is not a knowledge base or has another format, when it was
                built with another checkpoint or embedder, or when a version is given and the passage index is
                on a server, which shows the newest version only.
            StoreError: When there is no such version, or the store cannot be read.
            CheckpointError: When the checkpoint cannot be found, is incomplete or is not supported.
            ValueError: When `frame`, `order` or the URL is not valid.
            ImportError: When the library for the object store is not installed.
        """
        from lclm_rag.indexing.lost import lost_version
        from lclm_rag.store import LatentStore

        check_order(order)
        check_wait(wait)
        folder = open_folder(path)
        settings = read_settings(folder)
        if qdrant_url is not None:
            settings = _moved(folder, settings, qdrant_url)
        if embedder is not None and settings.embedder not in (
            embedder.name,
            f"{GIVEN}{embedder.name}",
        ):
            raise KnowledgeBaseError(
                f"{folder} was made with {_embedder_of(settings)}, and cannot be searched with "
                f"{embedder.name!r}."
            )
        announce_remotes(
            folder,
            replace(
                settings,
                checkpoint=str(checkpoint or settings.checkpoint),
                embedder=None if embedder is not None else settings.embedder,
            ),
        )
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
            frame=None if frame is None else load_frame(frame),
            order=order,
            decoder=decoder,
            decoder_options=decoder_options,
            device=device,
            dtype=dtype,
            compressor_options=compressor_options,
            wait=wait,
            embedder=embedder,
            read_only=version is not None,
        )

    @property
    def name(self) -> str:
        """The last part of the folder's path or URL."""
        return _name(self.folder)

    @property
    def path(self) -> Path | str:
        """The folder's path, or its URL if it is in an object store."""
        return self.folder.local or str(self.folder)

    @property
    def _lasting_path(self) -> str:
        """The path, valid from any working directory, or the URL."""
        return str(self.folder if self.folder.local is None else self.folder.local.resolve())

    def close(self) -> None:
        """Release the passage index and the version being read, and close the decoder if it was loaded here.

        A `Decoder` that was passed in stays open. Whoever waits for an answer from one loaded here gets a
        DecoderError. Closing twice does nothing; other methods of a closed knowledge base raise
        KnowledgeBaseError.
        """
        try:
            self.reader.close()
        finally:
            with self._loading:  # A decoder that is being loaded is closed, too.
                if self._decoder is not None and self._decoder_name:
                    self._decoder.close()
                    self._decoder = None

    def abandon(self) -> int:
        """Close the knowledge base after its first `add` failed, and clean up if nothing is worth keeping.

        What was compressed stays for the next `add`. If nothing was compressed, the files that `create` made
        are removed. They stay if `create` resumed an existing knowledge base, if another process writes,
        reads or has committed, or if the folder is in an object store. Other files in the folder are never
        touched.

        Returns:
            How many compressed passages stay for the next `add`.
        """
        self.close()
        stays = self.uncommitted_passages()
        if self._made.contents and not stays and isinstance(self.folder, LocalFolder):
            # The error that made `add` fail must reach the caller, not one from cleaning up.
            with suppress(LockedError, OSError):
                discard(self.folder, whole=self._made.folder)
        return stays

    def uncommitted_passages(self) -> int:
        """Count the passages that killed or failed runs compressed and did not commit.

        The next `add` of their documents reuses them; `vacuum` removes them.

        Returns:
            The number of passages.
        """
        from lclm_rag.store.writer import uncommitted_entries

        return sum(e.rows for e in uncommitted_entries(self.folder / "store", self.store.layout))

    def after_fork(self) -> None:
        """In a forked child, leave everything that the parent opened to the parent.

        The child opens its own store, index and models when it first needs them, at the same version. A
        `Decoder` that was passed in is kept, and stays the caller's.
        """
        keep_for_ever(dict(vars(self)))
        self._loading = threading.RLock()
        self._compressing = threading.Lock()
        self._made = Made(contents=False, folder=False)
        if self._decoder_name:
            self._decoder = None
        for part in ("compressor", "adapter"):
            vars(self).pop(part, None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as path, version and options; unpickling opens the knowledge base again.

        Raises:
            TypeError: When the decoder was given as an object, which cannot be pickled.
        """
        if not self._decoder_name:
            raise TypeError(
                f"{self.folder} cannot be pickled with a decoder that was given as an object; name it "
                "instead, as decoder='transformers' or by a server's URL."
            )
        options = {
            "checkpoint": self.checkpoint.lasting_name,
            "frame": None if self.frame == self.stored_frame else self.frame,
            "order": self.order,
            "decoder": self._decoder_name,
            "decoder_options": self._decoder_options,
            "device": self.device,
            "dtype": self.dtype,
            "compressor_options": self.compressor_options,
            "wait": self.wait,
            "qdrant_url": self.settings.qdrant_url,
            "embedder": self._given_embedder,
        }
        path = self._lasting_path
        # A server's passage index shows the newest version only, so no version can be asked for.
        version = None if self.settings.qdrant_url else self.store.version
        return _opened_again, (type(self), path, version, self.read_only, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except Exception as closing:
            if error is None:
                raise
            # What went wrong first is what the caller must see.
            error.add_note(f"Closing {self.folder} failed as well: {closing}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def __repr__(self) -> str:
        """Where it is, at which version, what is in it, and whether it is closed or read-only."""
        try:
            manifest = self.store.manifest
        except (LclmRagError, OSError) as error:  # In a forked child, the store may have gone.
            return f"<KnowledgeBase {str(self.folder)!r}: {error}>"
        parts = [
            f"version {manifest.version}",
            f"{manifest.totals.documents:,} documents",
            f"{manifest.totals.passages:,} passages",
            f"checkpoint {self.checkpoint.name}",
            *(["read-only"] if self.read_only else []),
            *(["closed"] if self.reader.closed else []),
        ]
        return f"<KnowledgeBase {str(self.folder)!r}: {', '.join(parts)}>"

    def __len__(self) -> int:
        """The number of passages in the version being read."""
        return len(self.store)

    # --- parts, loaded when first needed --------------------------------------------------------

    @property
    def store(self) -> LatentStore:
        """The latent store, at the version being read."""
        return self.reader.store

    @property
    def index(self) -> PassageIndex:
        """The passage index, at the store's version."""
        return self.reader.index

    def share_models(self, other: KnowledgeBase) -> None:
        """Use the decoder, the adapter and the compressor of another knowledge base, loaded there if needed.

        Args:
            other: Another knowledge base of the same checkpoint. It must be closed after this one.
        """
        self._models_of = other

    @cached_property
    def compressor(self) -> Compressor:
        """The encoder and the adapter, loaded on first use."""
        if self._models_of is not None:
            return self._models_of.compressor
        from lclm_rag.compression import Compressor

        options = self.compressor_options
        return Compressor.from_pretrained(self.checkpoint, self.device, self.dtype, **options)

    @property
    def decoder(self) -> Decoder:
        """The decoder, loaded on first use; threads that ask at the same time share one.

        Raises:
            KnowledgeBaseError: When the knowledge base is closed.
            DecoderError: When the decoder cannot be loaded or reached.
        """
        with self._loading:
            self.reader.require_open()
            if self._models_of is not None:
                return self._models_of.decoder
            if self._decoder is None:
                from lclm_rag.decoding import load_decoder

                self._decoder = load_decoder(
                    self._decoder_name,
                    self.checkpoint,
                    self.device,
                    self.dtype,
                    **self._decoder_options,
                )
                try:
                    self.reader.require_open()
                except KnowledgeBaseError:
                    self.close()
                    raise
            return self._decoder

    @property
    def decoder_options(self) -> Mapping[str, Any]:
        """The options that the decoder is loaded with, if it is given by name."""
        return self._decoder_options

    @property
    def context_length(self) -> int:
        """How many positions the decoder's context holds, prompt and answer together.

        Before the decoder is loaded this is the checkpoint's value; an engine option may shorten it on
        loading.
        """
        loaded = self._decoder if self._models_of is None else self._models_of._decoder
        return self.checkpoint.context_length if loaded is None else loaded.context_length

    def _query(self, *arguments: Any, **options: Any) -> Query:
        """The arguments of a question, checked: those of `Query.of`."""
        query = Query.of(*arguments, **options)
        query.require_room(self.context_length)
        return query

    @property
    def template(self) -> PromptTemplate:
        """The fixed parts of every prompt, with this knowledge base's frame and instruction."""
        return self._template(self.frame)

    def _template(self, frame: Frame) -> PromptTemplate:
        if frame not in self._templates:
            self._templates[frame] = PromptTemplate.of(
                self.checkpoint, frame, self.settings.instruction
            )
        return self._templates[frame]

    @cached_property
    def adapter(self) -> Adapter:
        """The adapter: the compressor's if that is loaded, else loaded alone on first use."""
        if self._models_of is not None:
            return self._models_of.adapter
        if "compressor" in self.__dict__:
            return self.compressor.adapter
        from lclm_rag.compression.adapter import load_adapter

        return load_adapter(self.checkpoint, self.device, self.dtype)

    # --- writing --------------------------------------------------------------------------------

    def add(
        self,
        documents: Documents,
        *,
        split: bool = True,
        resume: bool = True,
        engine: RayEngine | None = None,
        on_progress: Callable[[AddReport], None] = lambda report: None,
    ) -> AddReport:
        """Compress documents and commit them as one new version, replacing stored documents with the same id.

        A document whose text and metadata are unchanged is skipped. For a changed document, only the passages
        whose text changed are compressed. If an error ends the call, the last version stays as it is.
        Passages that were compressed before an error, or before the process was killed, are reused by the
        next `add` of the same documents.

        Args:
            documents: One document or many, as `Document` or as mappings with "id", "text" and maybe
                "metadata"; ids must be unique. A stream is read as it is compressed, so memory does not grow
                with it. `DocumentParts` are read by the workers of `engine`, and need one.
            split: Whether to split documents into passages. False makes each document one passage, however
                long and without a header; use it for text that was split elsewhere.
            resume: Whether to reuse passages that an earlier run compressed but did not commit, and to keep
                such passages for a later run. False compresses everything that is not committed.
            engine: A `RayEngine` compresses on a Ray cluster. Default: compress in this process.
            on_progress: Called with the running totals.

        Returns:
            What was added, updated, reused and skipped.

        Raises:
            ValueError: When there are no documents, something is no document, an id occurs twice,
                `passage_tokens` is smaller than one character takes, or `DocumentParts` are given without an
                engine.
            KnowledgeBaseError: When the knowledge base is open at an earlier version, when it was created
                with `resume` and another process has committed to it since, or when the Ray job fails.
            LockedError: When another process still writes after `wait` seconds.
            StoreError: When the disk is full, or the store is in an object store and another writer committed
                first.
            CompressionError: When memory does not suffice for one encoder window.
            PassageIndexError: When the passage index cannot follow the new version, for example on a full
                disk. The version is committed all the same.
            ImportError: When an engine is given and Ray is not installed.
        """
        return self._write(documents, "add", split, resume, engine, on_progress)

    async def aadd(
        self,
        documents: Documents,
        *,
        split: bool = True,
        resume: bool = True,
        engine: RayEngine | None = None,
        on_progress: Callable[[AddReport], None] = lambda report: None,
    ) -> AddReport:
        """Add documents as `add` does, without blocking the event loop.

        `documents` and `on_progress` are used in another thread. What has begun cannot be cancelled: it goes
        on, and commits.

        Args:
            documents: As for `add`.
            split: As for `add`.
            resume: As for `add`.
            engine: As for `add`.
            on_progress: As for `add`.

        Returns:
            As for `add`.

        Raises:
            ValueError: As for `add`; and so are the other errors.
        """
        return await asyncio.to_thread(
            self.add,
            documents,
            split=split,
            resume=resume,
            engine=engine,
            on_progress=on_progress,
        )

    def sync(
        self,
        documents: Documents,
        *,
        split: bool = True,
        resume: bool = True,
        engine: RayEngine | None = None,
        keep: Callable[[], bool] = lambda: False,
        on_progress: Callable[[AddReport], None] = lambda report: None,
    ) -> AddReport:
        """Add documents as `add` does, and delete every stored document that is not among them.

        Afterwards the knowledge base holds exactly `documents`. Nothing is deleted if the engine skipped a
        document.

        Args:
            documents: As for `add`.
            split: As for `add`.
            resume: As for `add`.
            engine: As for `add`.
            keep: Called after the documents were read. If it returns True, nothing is deleted; use it, for
                example, when part of the corpus could not be read.
            on_progress: As for `add`.

        Returns:
            What was added, updated, deleted, reused and skipped.

        Raises:
            KnowledgeBaseError: When none of the stored documents is among `documents`, which is probably
                another corpus; and as for `add`.
            ValueError: As for `add`.
            LockedError: When another process still writes after `wait` seconds.
            StoreError: When the disk is full, or the store is in an object store and another writer committed
                first.
            CompressionError: As for `add`.
            PassageIndexError: As for `add`.
            ImportError: As for `add`.
        """
        return self._write(documents, "sync", split, resume, engine, on_progress, keep)

    def _write(
        self,
        documents: Documents,
        operation: Literal["add", "sync"],
        split: bool,
        resume: bool,
        engine: RayEngine | None,
        on_progress: Callable[[AddReport], None],
        keep: Callable[[], bool] = lambda: True,
    ) -> AddReport:
        from lclm_rag.ingestion.given import as_documents
        from lclm_rag.ingestion.sync import MissingFromCorpus

        given = as_documents(documents)
        with self._writing(operation, resumable=resume) as writer:
            self.reader.require_server(None if engine is None else engine.reach)
            others = MissingFromCorpus(writer.base)
            on_document = others.note if operation == "sync" else lambda _: None
            report = self._compress(writer, given, split, engine, on_progress, on_document)
            if operation == "sync" and not keep() and not report.skipped:
                report = replace(report, deleted=others.delete(writer))
            committed = writer.commit()
            self._note_language(committed)
            if engine is None:
                self.reader.show(committed)
            else:
                self.reader.show(committed, engine.upsert)
        return report

    def _note_language(self, store: LatentStore) -> None:
        """Note the language of what was added first, if none was chosen, so that it stays the same."""
        from lclm_rag.indexing.versions import language_of

        if self.settings.language != AUTO or not len(store):
            return
        # Another process may have noted it.
        settings = read_settings(self.folder)
        if settings.language == AUTO:
            settings = replace(settings, language=language_of(store))
            write_settings(self.folder, settings)
        self.settings = settings
        self.reader.use_settings(settings)

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
        memory = self.stored_frame.memory
        # What the frame has inside the memory takes part of the passage's tokens.
        (around,) = self.checkpoint.encoder_token_ids([memory.replace("{text}", "")])
        longest = max(1, settings.passage_tokens - len(around)) if split else None
        splitting = Splitting(longest, settings.contextual_headers, memory)
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
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = None,
    ) -> int:
        """Delete documents, by id or by filter, as one new version.

        If an error is raised before the commit, nothing is deleted.

        Args:
            document_ids: Ids of the documents to delete. Give either ids or filters.
            filters: Metadata conditions, as for `retrieve`; a document is deleted if any of its passages
                matches.

        Returns:
            How many passages were deleted.

        Raises:
            KnowledgeBaseError: When one of the ids is not stored, nothing matches the filters, or the filters
                name a key (or a kind of value) that no passage has: with `!=` or `~` it would match every
                document. Also when the knowledge base is open at an earlier version.
            ValueError: When both ids and filters are given, or neither is.
            LockedError: When another process still writes after `wait` seconds.
            StoreError: When the disk is full, or the store is in an object store and another writer committed
                first.
            PassageIndexError: When the passage index cannot be searched, or cannot follow the new version.
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

    def matching_documents(self, filters: Filter | Mapping[str, Any] | Sequence[str]) -> list[str]:
        """List the documents that `delete` would delete for these filters.

        Args:
            filters: As for `delete`.

        Returns:
            The document ids, sorted; empty if nothing matches.

        Raises:
            KnowledgeBaseError: When the filters name a key (or a kind of value) that no passage has.
            ValueError: When the filters are empty or not valid.
        """
        condition = _condition(filters)
        self.reader.check_keys(condition)
        return sorted({key.document_id for key in self.reader.find(condition)})

    def compact(self, *, on_row: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Merge small fragments, leave deleted passages out, and optimize the passage index.

        The result is a new version; `vacuum` then frees the disk space of the earlier ones. Only other
        writers have to wait; readers do not.

        Args:
            on_row: Called with the number of rows done and the total.

        Raises:
            KnowledgeBaseError: When the knowledge base is open at an earlier version.
            LockedError: When another process still writes after `wait` seconds.
            StoreError: When the disk is full, or the store is in an object store and another writer committed
                first.
        """
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
        """Rewrite the latents in another codec, without the encoder, as a new version.

        Converting from a smaller codec to a larger one does not bring back what the smaller one lost.

        Args:
            codec: The codec to write: "bf16", "fp16", "int8" or "int4".
            on_row: Called with the number of rows done and the total.

        Raises:
            KnowledgeBaseError: When the knowledge base is open at an earlier version.
            LockedError: When another process still writes after `wait` seconds.
            StoreError: When the latents are in this codec already, the disk is full, or the store is in an
                object store and another writer committed first.
        """
        from lclm_rag.store import convert

        self._refuse_reading()
        self.reader.show(convert(self.folder / "store", codec, wait=self.wait, on_row=on_row))

    def vacuum(self, *, keep: int = 1) -> Vacuumed:
        """Remove old versions and every file that no remaining version needs.

        The newest `keep` versions stay, and so do versions that are open in any process. What killed runs
        left behind is removed too, so unfinished builds then start from nothing. In an object store, where
        readers cannot be seen, versions that were the newest within the last day stay, and so do files
        younger than a day.

        Args:
            keep: How many of the newest versions to keep, at least 1.

        Returns:
            The versions kept, the versions removed, and the bytes freed on disk.

        Raises:
            ValueError: When `keep` is less than 1.
            KnowledgeBaseError: When the knowledge base is open at an earlier version.
            LockedError: When another process still writes after `wait` seconds.
        """
        from lclm_rag.errors import PassageIndexError
        from lclm_rag.indexing.snapshots import SnapshotFolder
        from lclm_rag.store import vacuum
        from lclm_rag.store.locks import write_lock

        self._refuse_reading()
        # First publish an index snapshot of the newest version: a snapshot of a version that vacuum then
        # removes would be of no use. On a full disk this fails, and vacuum, which makes room, goes on.
        with self.reader.session(), suppress(PassageIndexError):
            self.reader.show_newest()
            with self.reader.session() as session:
                if session is not None:
                    session.publish()
        vacuumed = vacuum(self.folder / "store", keep=keep, wait=self.wait)
        if self.settings.qdrant_url is None:
            freed = SnapshotFolder(self.folder / "index", self.settings.id).remove_superseded()
            vacuumed = replace(vacuumed, bytes=vacuumed.bytes + freed)
        if self.folder.local is not None:
            # A writer that came meanwhile may be writing the settings: the next vacuum has time, too.
            with suppress(LockedError), write_lock(self.folder.local / "store", 0.0):
                freed = remove_unfinished_settings(self.folder)
                vacuumed = replace(vacuumed, bytes=vacuumed.bytes + freed)
        return vacuumed

    def versions(self) -> list[Manifest]:
        """List the versions that can be opened.

        Returns:
            The manifest of each version, oldest first.

        Raises:
            StoreError: When there is none any more, because the knowledge base was moved or removed.
        """
        from lclm_rag.store import newest_version, read_versions

        newest_version(self.folder / "store")
        return read_versions(self.folder / "store")

    @contextmanager
    def _writing(self, operation: Operation, *, resumable: bool = False) -> Iterator[StoreWriter]:
        from lclm_rag.store import writing

        self._refuse_reading()
        self.reader.require_embedder()
        with writing(
            self.folder / "store", operation, wait=self.wait, resumable=resumable
        ) as writer:
            if self._to_be_first and writer.base.version:
                raise finished_already(self.folder, writer.base)
            self._to_be_first = False
            yield writer

    def follow_server(self) -> bool:
        """Move to the newest version if the passage index is on a server.

        A server's index shows the newest version only.

        Returns:
            Whether the version changed; False if it was the newest already, or the index is not on a server.
        """
        return self.reader.follow_server()

    def follow(self) -> bool:
        """Move to the newest version that any process has committed.

        Questions that are being answered go on. A version that was asked for in `open` stays.

        Returns:
            Whether the version changed.

        Raises:
            KnowledgeBaseError: When the knowledge base is closed.
            StoreError: When the newest version cannot be read; the one before stays.
            PassageIndexError: When the passage index cannot follow.
        """
        return False if self.read_only else self.reader.follow()

    def _refuse_reading(self) -> None:
        self.reader.require_open()
        if self.read_only:
            raise KnowledgeBaseError(
                f"{self.folder} is open at version {self.store.version}, for reading; open it without a "
                "version to write."
            )

    # --- reading --------------------------------------------------------------------------------

    @overload
    def retrieve(
        self,
        question: str,
        top_k: int = ...,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = ...,
        **ranking: Unpack[Ranking],
    ) -> list[Hit]: ...
    @overload
    def retrieve(
        self,
        question: list[str] | tuple[str, ...],
        top_k: int = ...,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = ...,
        **ranking: Unpack[Ranking],
    ) -> list[list[Hit]]: ...
    def retrieve(
        self,
        question: str | list[str] | tuple[str, ...],
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = None,
        **ranking: Unpack[Ranking],
    ) -> list[Hit] | list[list[Hit]]:
        """Find the best passages for a question. Loads neither encoder nor decoder.

        Args:
            question: The question, or a list of questions that are searched together.
            top_k: The most passages to return for a question, at least 1.
            filters: Metadata conditions: {"lang": "en"} for equality (a list means any of its values), or an
                expression made with `lclm_rag.retrieval.field`. A condition that no passage can meet, such as
                a misspelt key, is logged as a warning. None searches all passages.
            **ranking: `rerank`, the name of a cross-encoder that looks at the best passages again; `mmr`, how
                much relevance counts against diversity; `neighbours`, how many passages before and after each
                hit come with it. See `lclm_rag.querying.query.Ranking`.

        Returns:
            The hits, best first; for a list of questions, a list of them for each.

        Raises:
            ValueError: When a question is empty, `top_k` is less than 1, the filters are not valid, or the
                ranking is not valid or possible here.
            StoreError: When the store is damaged, or does not hold a passage that the index names.
            PassageIndexError: When the passage index cannot be opened or searched.
            CheckpointError: When the reranker cannot be loaded, or is no cross-encoder.
            ImportError: When there is a reranker and sentence-transformers is not installed.
        """
        queries = each_checked(question, lambda q: self._query(q, top_k, filters, **ranking))
        found = [retrieved.hits for retrieved in self.reader.search_all(queries)]
        if queries:
            self.reader.warn_of(queries[0].filters)
        return found[0] if isinstance(question, str) else found

    @overload
    async def aretrieve(
        self,
        question: str,
        top_k: int = ...,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = ...,
        **ranking: Unpack[Ranking],
    ) -> list[Hit]: ...
    @overload
    async def aretrieve(
        self,
        question: list[str] | tuple[str, ...],
        top_k: int = ...,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = ...,
        **ranking: Unpack[Ranking],
    ) -> list[list[Hit]]: ...
    async def aretrieve(
        self,
        question: str | list[str] | tuple[str, ...],
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = None,
        **ranking: Unpack[Ranking],
    ) -> list[Hit] | list[list[Hit]]:
        """Find passages as `retrieve` does, without blocking the event loop.

        Args:
            question: As for `retrieve`.
            top_k: As for `retrieve`.
            filters: As for `retrieve`.
            **ranking: As for `retrieve`.

        Returns:
            As for `retrieve`.

        Raises:
            ValueError: As for `retrieve`; and so are the other errors.
        """
        return await asyncio.to_thread(lambda: self.retrieve(question, top_k, filters, **ranking))

    # --- contents -------------------------------------------------------------------------------

    def documents(
        self, filters: Filter | Mapping[str, Any] | Sequence[str] | None = None
    ) -> Iterator[StoredDocument]:
        """List the documents of the version being read. Neither texts nor latents are read.

        Args:
            filters: Metadata conditions, as for `retrieve`. None lists all documents.

        Returns:
            The documents, one by one: in the order in which they lie in the store, or, with filters, by id.

        Raises:
            ValueError: When the filters are not valid.
            PassageIndexError: When there are filters, and the passage index cannot be opened or searched.
            DamagedError: When the store is damaged.
        """
        from lclm_rag.querying.contents import describe, document_ids

        store, keys = self.reader.matching(filters)
        ids = document_ids(store) if keys is None else dict.fromkeys(k.document_id for k in keys)
        return (found for i in ids if (found := describe(store, i)) is not None)

    def get(self, document_id: str) -> Document | None:
        """Read a document as it was added. Latents are not read.

        Args:
            document_id: The document's id.

        Returns:
            The document; None if there is none with this id.

        Raises:
            DamagedError: When the store is damaged.
        """
        from lclm_rag.querying.contents import read_document

        self.reader.require_open()
        return read_document(self.store, document_id)

    def __contains__(self, document_id: object) -> bool:
        """Whether there is a document with this id."""
        self.reader.require_open()
        return isinstance(document_id, str) and PassageKey(document_id, 0) in self.store

    def __iter__(self) -> Iterator[str]:
        """The ids of all documents, in the order in which they lie in the store."""
        from lclm_rag.querying.contents import document_ids

        self.reader.require_open()
        return document_ids(self.store)

    def metadata_fields(self) -> list[MetadataField]:
        """List the metadata keys that filters can name. Reads the metadata of all documents once.

        Returns:
            The keys, sorted, with the kinds of their values and the number of documents that have them.

        Raises:
            DamagedError: When the store is damaged.
        """
        return self.reader.metadata_fields()

    def to_arrow(
        self,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = None,
        *,
        latents: bool = False,
    ) -> pa.Table:
        """Read passages as an Arrow table, all of it in memory.

        Args:
            filters: Metadata conditions, as for `retrieve`. None reads all passages.
            latents: Whether to read the latents, too; they are most of the bytes.

        Returns:
            A row for each passage: document_id, ordinal, start and end (characters of the document), tokens
            (source tokens), header, text, metadata (JSON); and with `latents` a list of float32 vectors, in
            the space of `store.layout`. In the order in which they lie in the store, or, with filters, by
            key.

        Raises:
            ValueError: When the filters are not valid.
            PassageIndexError: When there are filters, and the passage index cannot be opened or searched.
            DamagedError: When the store is damaged.
        """
        from lclm_rag.querying.contents import passage_table

        store, keys = self.reader.matching(filters)
        return passage_table(store, keys, latents=latents)

    def to_pandas(
        self,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = None,
        *,
        latents: bool = False,
    ) -> pd.DataFrame:
        """Read passages as a DataFrame of pandas, all of it in memory.

        Args:
            filters: As for `to_arrow`.
            latents: As for `to_arrow`; each cell is a float32 array, [n_latents, width].

        Returns:
            The columns of `to_arrow`, with the metadata as dicts.

        Raises:
            ImportError: When pandas is not installed.
            ValueError: As for `to_arrow`; and so are the other errors.
        """
        from lclm_rag.querying.contents import passage_frame

        store, keys = self.reader.matching(filters)
        return passage_frame(store, keys, latents=latents)

    # --- questions ------------------------------------------------------------------------------

    def why_no_passages(
        self, filters: Filter | Mapping[str, Any] | Sequence[str] | None = None
    ) -> str:
        """Explain why `retrieve` returned no hits for these filters.

        Args:
            filters: The filters given to `retrieve`.

        Returns:
            One sentence, or one for each condition that no passage can meet.
        """
        from lclm_rag.retrieval import as_filter

        return self.reader.why_none(as_filter(filters))

    def find(self, filters: Filter | Mapping[str, Any] | Sequence[str]) -> list[PassageKey]:
        """Find all passages whose metadata match a filter.

        Args:
            filters: As for `retrieve`; required here.

        Returns:
            The keys of the passages, sorted.

        Raises:
            ValueError: When the filters are empty or not valid.
            PassageIndexError: When the passage index cannot be opened or searched.
        """
        return self.reader.find(_condition(filters))

    def read_passages(self, key: PassageKey, before: int = 0, after: int = 0) -> list[Passage]:
        """Read a passage verbatim, with its neighbors in the document.

        Args:
            key: The passage.
            before: How many passages before it to include, if the document has them.
            after: How many passages after it to include, if the document has them.

        Returns:
            The passages, in reading order.

        Raises:
            KnowledgeBaseError: When there is no such passage.
            ValueError: When `before` or `after` is negative.
            StoreError: When a passage is damaged.
        """
        check_whole(before, "before", 0)
        check_whole(after, "after", 0)
        return self.reader.read_passages(key, before, after)

    def holds(self, key: PassageKey, text: str) -> bool:
        """Check whether the store holds a passage with exactly this text, so its latents can stand for it.

        Args:
            key: The passage.
            text: The text that the passage must have, without its header.

        Returns:
            Whether the store holds the passage with this text.
        """
        self.reader.require_open()
        store = self.store
        return key in store and store.read([key])[0].passage.text == text

    def assemble(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = None,
        *,
        context: Context = "latents",
        expand: Expand = "auto",
        space: Space = "decoder",
        max_tokens: int = 256,
        **ranking: Unpack[Ranking],
    ) -> SoftPrompt:
        """Assemble the first prompt that `query` would give the decoder, without decoding it.

        If no passage is found, the prompt has no passages and a warning in the log says why; `query` would
        not decode anything then. The decoder is not loaded for this.

        Args:
            question: The question.
            top_k: How many passages to retrieve, at least 1.
            filters: Metadata conditions, as for `retrieve`. None searches all passages.
            context: What the prompt answers from: "latents"; "text", the same passages pasted; or "none", no
                passages.
            expand: Which passages go in verbatim instead of as latents, as for `query`.
            space: "decoder" for latents that every decoder takes; "encoder" for decoders that have the
                adapter, which then get the latents as a store in encoder space keeps them.
            max_tokens: Positions to leave for the answer.
            **ranking: `rerank`, `mmr` and `neighbours`, as for `retrieve`.

        Returns:
            The prompt: token ids and latents.

        Raises:
            ValueError: When an argument is not valid, the empty question included.
            ContextLengthError: When the question alone, or with the best passage, does not fit into the
                context.
            CheckpointError: When `expand` is "tool" and the decoder's chat template offers no tools.
            StoreError: When the store is damaged, or does not hold a passage that the index names.
            PassageIndexError: When the passage index cannot be opened or searched.
        """
        from lclm_rag.decoding import Sampling

        query = self._query(
            question, top_k, filters, context, expand, Sampling(max_tokens), **ranking
        )
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
        order: Order | None = None,
    ) -> AssembledPrompt:
        """Assemble the prompt of a chat around passages that the caller has picked.

        Give the prompt to `decoder`, which is loaded here because its context length counts.

        Args:
            messages: The chat, as (role, words). Exactly one message contains `lclm_rag.prompting.PASSAGES`,
                once, where the passages go.
            passages: The passages, best first; as many as fit are taken. Those with a key in the store
                (`PromptPassage.stored`) go in as latents, the others as text.
            question: What `expand="auto"` judges by.
            expand: Which passages go in verbatim instead of as latents, as for `query`; "auto" goes by
                `question` alone, "model" and "tool" are refused.
            max_tokens: Positions to leave for the answer.
            order: The order of the passages in the prompt; default: `self.order`.

        Returns:
            The prompt, with the keys of the passages that are in it and of those that did not fit.

        Raises:
            ValueError: When there are no messages, PASSAGES does not occur exactly once, or `expand` or
                `order` is not valid here.
            ContextLengthError: When the messages alone, or with the best passage, do not fit into the
                context.
            CheckpointError: When the decoder's chat template does not take these roles in this order.
            KeyError: When a `stored` key is not in the store.
        """
        builder = self.prompt_builder(self.decoder.space)
        return builder.build_chat(
            messages,
            passages,
            self.store,
            question=question,
            expand=expand,
            max_tokens=max_tokens,
            order=order,
        )

    @overload
    def query(
        self,
        question: str,
        top_k: int = ...,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = ...,
        *,
        context: Context = ...,
        expand: Expand = ...,
        sampling: Sampling | None = ...,
        history: Sequence[ChatMessage] = ...,
        compress_history: bool = ...,
        **ranking: Unpack[Ranking],
    ) -> Answer: ...
    @overload
    def query(
        self,
        question: list[str] | tuple[str, ...],
        top_k: int = ...,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = ...,
        *,
        context: Context = ...,
        expand: Expand = ...,
        sampling: Sampling | None = ...,
        history: Sequence[ChatMessage] = ...,
        compress_history: bool = ...,
        **ranking: Unpack[Ranking],
    ) -> list[Answer]: ...
    def query(
        self,
        question: str | list[str] | tuple[str, ...],
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = None,
        *,
        context: Context = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
        history: Sequence[ChatMessage] = (),
        compress_history: bool = False,
        **ranking: Unpack[Ranking],
    ) -> Answer | list[Answer]:
        """Answer a question: retrieve passages, assemble the prompt and decode it.

        This is repeated, with a longer prompt, if passages must be read verbatim after a first reply. If no
        passage is found, nothing is decoded: `Answer.no_passages` is true and `Answer.reason` says why.

        Args:
            question: The question, or a list of questions that are answered together: searched at once, and
                decoded in batches. An error ends all of them; one that a question itself causes comes before
                any is decoded, and names its number.
            top_k: How many passages to retrieve, at least 1.
            filters: Metadata conditions, as for `retrieve`. None searches all passages.
            context: What to answer from: "latents"; "text", the same passages pasted; or "none", no passages:
                the decoder alone answers.
            expand: Which passages go in verbatim instead of as latents. "never": none. "always": all of them.
                A number: that many of the best. "auto": the best one if the question asks for a code, an id
                or an exact wording; and if the answer holds strings that its sources do not
                (`Answer.grounding`), the best three, with the question decoded once more. "model": those that
                the decoder asks for in words, in up to three rounds. "tool": the same, by a tool that the
                decoder calls. Has no effect unless `context` is "latents".
            sampling: How the answer is generated; default `Sampling()`.
            history: The conversation before the question, as ("user" or "assistant", words), oldest turn
                first. The question may refer to it.
            compress_history: Whether turns older than the last question and its answer go in as latents.
            **ranking: `rerank`, `mmr` and `neighbours`, as for `retrieve`.

        Returns:
            The answer, with its sources, and the transcript in `Answer.rounds`; for a list of questions, a
            list of answers.

        Raises:
            ValueError: When an argument is not valid, the empty question included.
            ContextLengthError: When the question alone, or with the best passage, does not fit into the
                decoder's context.
            PromptError: When the decoder refuses the prompt for another reason.
            DecoderError: When the decoder cannot be loaded or reached, or fails.
            StoreError: When the store is damaged, or does not hold a passage that the index names.
            PassageIndexError: When the passage index cannot be opened or searched.
            CheckpointError: When `expand` is "tool" or "model" and the decoder's chat template cannot render
                such a chat.
        """
        from lclm_rag.querying.rounds import drive_all

        queries = each_checked(
            question,
            lambda q: self._query(
                q, top_k, filters, context, expand, sampling, history, compress_history, **ranking
            ),
        )
        answers: list[Answer] = []
        for some in self._together(queries):
            answers += drive_all(some, self.decoder, queries[0].sampling)
        return answers[0] if isinstance(question, str) else answers

    def stream(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = None,
        *,
        context: Context = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
        history: Sequence[ChatMessage] = (),
        compress_history: bool = False,
        **ranking: Unpack[Ranking],
    ) -> Iterator[str]:
        """Answer as `query` does, in pieces of text as they are written.

        Text that was shown cannot be taken back. Therefore `expand="auto"` goes by the question alone and
        does not decode a second time, and "model" and "tool" are refused. If no passage is found there are no
        pieces, and a warning in the log says why. Errors are raised when the first piece is requested.

        Args:
            question: The question.
            top_k: How many passages to retrieve, at least 1.
            filters: Metadata conditions, as for `retrieve`. None searches all passages.
            context: What to answer from: "latents"; "text", the same passages pasted; or "none", no passages:
                the decoder alone answers.
            expand: Which passages go in verbatim instead of as latents, as for `query`. "model" and "tool"
                are refused.
            sampling: How the answer is generated; default `Sampling()`.
            history: The conversation before the question, as ("user" or "assistant", words), oldest turn
                first. The question may refer to it.
            compress_history: Whether turns older than the last question and its answer go in as latents.
            **ranking: `rerank`, `mmr` and `neighbours`, as for `retrieve`.

        Yields:
            Pieces of the answer; joined, they are its text.

        Raises:
            ValueError: When an argument is not valid, `expand` is "model" or "tool", or the question is
                empty.
            ContextLengthError: When the question alone, or with the best passage, does not fit into the
                decoder's context.
            PromptError: When the decoder refuses the prompt for another reason.
            DecoderError: When the decoder cannot be loaded or reached, or fails.
            StoreError: When the store is damaged, or does not hold a passage that the index names.
            PassageIndexError: When the passage index cannot be opened or searched.
        """
        from lclm_rag.decoding import answer_pieces

        query = self._query(
            question,
            top_k,
            filters,
            context,
            expand,
            sampling,
            history,
            compress_history,
            **ranking,
        )
        decoder, prompt = self.decoder, self._streamed(query)
        if prompt is not None:
            yield from answer_pieces(decoder, prompt, query.sampling)

    @overload
    async def aquery(
        self,
        question: str,
        top_k: int = ...,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = ...,
        *,
        context: Context = ...,
        expand: Expand = ...,
        sampling: Sampling | None = ...,
        history: Sequence[ChatMessage] = ...,
        compress_history: bool = ...,
        **ranking: Unpack[Ranking],
    ) -> Answer: ...
    @overload
    async def aquery(
        self,
        question: list[str] | tuple[str, ...],
        top_k: int = ...,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = ...,
        *,
        context: Context = ...,
        expand: Expand = ...,
        sampling: Sampling | None = ...,
        history: Sequence[ChatMessage] = ...,
        compress_history: bool = ...,
        **ranking: Unpack[Ranking],
    ) -> list[Answer]: ...
    async def aquery(
        self,
        question: str | list[str] | tuple[str, ...],
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = None,
        *,
        context: Context = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
        history: Sequence[ChatMessage] = (),
        compress_history: bool = False,
        **ranking: Unpack[Ranking],
    ) -> Answer | list[Answer]:
        """Answer as `query` does, without blocking the event loop.

        On vLLM any number of questions is decoded together, and cancelling one ends its generation.

        Args:
            question: The question, or a list of questions that are answered together, as for `query`.
            top_k: How many passages to retrieve, at least 1.
            filters: Metadata conditions, as for `retrieve`. None searches all passages.
            context: What to answer from: "latents"; "text", the same passages pasted; or "none", no passages:
                the decoder alone answers.
            expand: Which passages go in verbatim instead of as latents, as for `query`.
            sampling: How the answer is generated; default `Sampling()`.
            history: The conversation before the question, as ("user" or "assistant", words), oldest turn
                first. The question may refer to it.
            compress_history: Whether turns older than the last question and its answer go in as latents.
            **ranking: `rerank`, `mmr` and `neighbours`, as for `retrieve`.

        Returns:
            The answer, or the answers, as from `query`.

        Raises:
            ValueError: When an argument is not valid, the empty question included.
            ContextLengthError: When the question alone, or with the best passage, does not fit into the
                decoder's context.
            PromptError: When the decoder refuses the prompt for another reason.
            DecoderError: When the decoder cannot be loaded or reached, or fails.
            StoreError: When the store is damaged, or does not hold a passage that the index names.
            PassageIndexError: When the passage index cannot be opened or searched.
            CheckpointError: When `expand` is "tool" or "model" and the decoder's chat template cannot render
                such a chat.
        """
        from lclm_rag.querying.rounds import adrive_all

        queries = each_checked(
            question,
            lambda q: self._query(
                q, top_k, filters, context, expand, sampling, history, compress_history, **ranking
            ),
        )
        answers: list[Answer] = []
        together = self._together(queries)
        while some := await asyncio.to_thread(next, together, None):
            answers += await adrive_all(some, self.decoder, queries[0].sampling)
        return answers[0] if isinstance(question, str) else answers

    async def astream(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = None,
        *,
        context: Context = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
        history: Sequence[ChatMessage] = (),
        compress_history: bool = False,
        **ranking: Unpack[Ranking],
    ) -> AsyncIterator[str]:
        """Answer as `stream` does, without blocking the event loop.

        Closing the generator ends the generation. As in `stream`, errors are raised when the first piece is
        requested.

        Args:
            question: The question.
            top_k: How many passages to retrieve, at least 1.
            filters: Metadata conditions, as for `retrieve`. None searches all passages.
            context: What to answer from: "latents"; "text", the same passages pasted; or "none", no passages:
                the decoder alone answers.
            expand: Which passages go in verbatim instead of as latents, as for `query`. "model" and "tool"
                are refused.
            sampling: How the answer is generated; default `Sampling()`.
            history: The conversation before the question, as ("user" or "assistant", words), oldest turn
                first. The question may refer to it.
            compress_history: Whether turns older than the last question and its answer go in as latents.
            **ranking: `rerank`, `mmr` and `neighbours`, as for `retrieve`.

        Yields:
            Pieces of the answer; joined, they are its text.

        Raises:
            ValueError: When an argument is not valid, `expand` is "model" or "tool", or the question is
                empty.
            ContextLengthError: When the question alone, or with the best passage, does not fit into the
                decoder's context.
            PromptError: When the decoder refuses the prompt for another reason.
            DecoderError: When the decoder cannot be loaded or reached, or fails.
            StoreError: When the store is damaged, or does not hold a passage that the index names.
            PassageIndexError: When the passage index cannot be opened or searched.
        """
        from lclm_rag.decoding import aanswer_pieces

        query = self._query(
            question,
            top_k,
            filters,
            context,
            expand,
            sampling,
            history,
            compress_history,
            **ranking,
        )
        decoder = await asyncio.to_thread(lambda: self.decoder)
        prompt = await asyncio.to_thread(self._streamed, query)
        if prompt is None:
            return
        async with aclosing(aanswer_pieces(decoder, prompt, query.sampling)) as pieces:
            async for piece in pieces:
                yield piece

    async def astream_answer(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = None,
        *,
        context: Context = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
        history: Sequence[ChatMessage] = (),
        compress_history: bool = False,
        **ranking: Unpack[Ranking],
    ) -> AsyncGenerator[list[Hit] | str | Answer]:
        """Answer as `astream` does, and say what the answer rests on and what it took.

        Closing the generator ends the generation.

        Args:
            question: The question.
            top_k: How many passages to retrieve, at least 1.
            filters: Metadata conditions, as for `retrieve`. None searches all passages.
            context: What to answer from, as for `query`.
            expand: Which passages go in verbatim, as for `query`. With "model" and "tool", which take several
                rounds, the answer comes in one piece.
            sampling: How the answer is generated; default `Sampling()`.
            history: The conversation before the question, as ("user" or "assistant", words), oldest turn
                first. The question may refer to it.
            compress_history: Whether turns older than the last question and its answer go in as latents.
            **ranking: `rerank`, `mmr` and `neighbours`, as for `retrieve`.

        Yields:
            The hits, before anything is decoded; the pieces of the answer; last the answer, as from `query`.
            If no passage is found, there are no pieces, and the answer says why.

        Raises:
            ValueError: As for `query`; and so are the other errors.
        """
        from lclm_rag.querying.rounds import adrive, answer, astream_answer, no_answer, standalone

        query = self._query(
            question,
            top_k,
            filters,
            context,
            expand,
            sampling,
            history,
            compress_history,
            **ranking,
        )
        decoder = await asyncio.to_thread(lambda: self.decoder)
        builder = self.prompt_builder(decoder.space)
        started = time.perf_counter()

        def search() -> Retrieved:
            return self.reader.search_to_answer(query)

        await asyncio.to_thread(builder.require_room, query)
        query, before = await adrive(standalone(builder, query), decoder, query.sampling)
        try:
            retrieved = await asyncio.to_thread(search)
        except NoPassagesError as error:
            yield []
            yield no_answer(query.question, str(error), time.perf_counter() - started)
            return
        yield retrieved.hits
        if query.expand in ("model", "tool"):
            found = await adrive(answer(builder, query, retrieved, before), decoder, query.sampling)
            if found.text:
                yield found.text
            yield found
            return
        async with aclosing(astream_answer(builder, query, retrieved, decoder, before)) as pieces:
            async for piece in pieces:
                yield piece

    def rounds(
        self,
        question: str,
        top_k: int = DEFAULT_TOP_K,
        filters: Filter | Mapping[str, Any] | Sequence[str] | None = None,
        *,
        context: Context = "latents",
        expand: Expand = "auto",
        sampling: Sampling | None = None,
        history: Sequence[ChatMessage] = (),
        compress_history: bool = False,
        **ranking: Unpack[Ranking],
    ) -> Rounds:
        """Answer as `query` does, but let the caller do the decoding, perhaps of many questions together.

        Args:
            question: The question.
            top_k: How many passages to retrieve, at least 1.
            filters: Metadata conditions, as for `retrieve`. None searches all passages.
            context: What to answer from: "latents"; "text", the same passages pasted; or "none", no passages:
                the decoder alone answers.
            expand: Which passages go in verbatim instead of as latents, as for `query`.
            sampling: How the answer is generated; default `Sampling()`.
            history: The conversation before the question, as ("user" or "assistant", words), oldest turn
                first. The question may refer to it.
            compress_history: Whether turns older than the last question and its answer go in as latents.
            **ranking: `rerank`, `mmr` and `neighbours`, as for `retrieve`.

        Returns:
            A generator that yields prompts, is sent the completion of each, and returns the answer.

        Raises:
            ValueError: When an argument is not valid, the empty question included. The generator itself
                raises what `query` raises before decoding.
        """
        return self._rounds(
            self._query(
                question,
                top_k,
                filters,
                context,
                expand,
                sampling,
                history,
                compress_history,
                **ranking,
            )
        )

    def prompt_builder(self, space: Space, frame: Frame | None = None) -> PromptBuilder:
        """Make the builder for prompts of this knowledge base.

        Args:
            space: The space in which the decoder prefers latents (`Decoder.space`).
            frame: The words around passages and question; default: `self.frame`.

        Returns:
            The builder. It uses the loaded decoder's context length, or the checkpoint's if no decoder is
            loaded.
        """
        from lclm_rag.querying.prompts import PromptBuilder
        from lclm_rag.torch_setup import resolve_dtype

        return PromptBuilder(
            self.checkpoint,
            self.template if frame is None else self._template(frame),
            self.context_length,
            space,
            resolve_dtype(self.dtype, self.device),
            hashlib.sha256(self._lasting_path.encode()).hexdigest(),
            self.order,
            self._compressed,
            lambda latents, counts: self.adapter.project(latents, counts),
        )

    def _compressed(self, texts: Sequence[str], space: Space) -> list[torch.Tensor]:
        """The latents of texts that are not in the store; those of the last ones are kept."""
        from lclm_rag.torch_setup import resolve_dtype

        dtype = resolve_dtype(self.dtype, self.device)
        with self._compressing:
            new = []
            for text in dict.fromkeys(texts):
                if (kept := self._latents.pop((text, space), None)) is None:
                    new.append(text)
                else:
                    self._latents[text, space] = kept  # The last ones are at the end.
            if new:
                read = [self.stored_frame.memory.replace("{text}", text) for text in new]
                ids = self.checkpoint.encoder_token_ids(read)
                found = self.compressor.compress_token_ids(ids, space)
                for text, latents in zip(new, found, strict=True):
                    self._latents[text, space] = latents.to("cpu", dtype)
            while len(self._latents) > max(_KEPT_LATENTS, len(texts)):
                self._latents.pop(next(iter(self._latents)))
            return [self._latents[text, space] for text in texts]

    def _together(self, queries: Sequence[Query]) -> Iterator[list[Rounds]]:
        """The rounds of several questions with the same options, as many as are worked on at once."""
        if not queries:
            return
        builder = self.prompt_builder(self.decoder.space)
        for number, query in enumerate(queries, start=1):
            try:
                builder.require_room(query)
            except ContextLengthError as error:
                if len(queries) == 1:
                    raise
                raise ContextLengthError(f"Question {number}: {error}") from error
        for start in range(0, len(queries), _TOGETHER):
            some = queries[start : start + _TOGETHER]
            # A question that follows others is put so that it can be searched for, before it is searched.
            alone = len(some) == 1 or some[0].history
            found = [None] * len(some) if alone else self.reader.search_all(some)
            yield [self._rounds(query, each) for query, each in zip(some, found, strict=True)]

    def _rounds(self, query: Query, found: Retrieved | None = None) -> Rounds:
        from lclm_rag.querying.rounds import answer, no_answer, standalone

        builder = self.prompt_builder(self.decoder.space)
        builder.require_room(query)
        query, before = yield from standalone(builder, query)
        started = time.perf_counter()
        try:
            retrieved = self.reader.search_to_answer(query, found)
        except NoPassagesError as error:
            return no_answer(query.question, str(error), time.perf_counter() - started)
        return (yield from answer(builder, query, retrieved, before))

    def _first_prompt(self, query: Query, builder: PromptBuilder) -> SoftPrompt:
        builder.require_room(query)
        return builder.build(query, self.reader.search_to_answer(query)).prompt

    def _streamed(self, query: Query) -> SoftPrompt | None:
        """The prompt to stream; None if no passage is found, which is logged."""
        if query.expand in ("model", "tool"):
            raise ValueError(
                f"expand={query.expand!r} takes several rounds, which no stream shows; query."
            )
        from lclm_rag.querying.rounds import drive, standalone

        builder = self.prompt_builder(self.decoder.space)
        try:
            builder.require_room(query)
            query, _ = drive(standalone(builder, query), self.decoder, query.sampling)
            return self._first_prompt(query, builder)
        except NoPassagesError as error:
            _log.warning("%s", error)
            return None


def _stored_frame(folder: Folder, settings: Settings, checkpoint: Checkpoint) -> Frame:
    """The frame that the settings name; KnowledgeBaseError if there is no such frame."""
    if settings.frame is None:
        return frame_of(checkpoint)
    try:
        return load_frame(settings.frame)
    except (ValueError, TypeError, OSError) as error:
        raise KnowledgeBaseError(
            f"The frame in {folder / SETTINGS} cannot be used: {error} Restore the file from a backup, or "
            "build the knowledge base anew."
        ) from error


def _embedder_of(settings: Settings) -> str:
    name = settings.embedder
    return "no embedder" if name is None else f"the embedder {name.removeprefix(GIVEN)!r}"


def _name(folder: Folder) -> str:
    return str(folder).rpartition("/")[2] if folder.local is None else folder.local.resolve().name


def _condition(filters: Filter | Mapping[str, Any] | Sequence[str]) -> Filter:
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


def _moved(folder: Folder, settings: Settings, qdrant_url: str) -> Settings:
    """The settings with the server's present URL."""
    if settings.qdrant_url is None:
        raise ValueError(
            f"The passage index of {folder} is embedded: lclm-rag reindex --qdrant-url puts it on a server."
        )
    return replace(settings, qdrant_url=check_qdrant_url(qdrant_url))
