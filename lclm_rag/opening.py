"""Making, finding and opening a knowledge base; its parts, loaded when they are first needed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lclm_rag.checkpoint import BUNDLED, Checkpoint, Space
from lclm_rag.config import Settings, is_knowledge_base, read_settings, write_settings
from lclm_rag.creation import Made, discard, making, require_free
from lclm_rag.errors import KnowledgeBaseError, LockedError
from lclm_rag.forking import keep_for_ever, watch
from lclm_rag.prompting import DEFAULT_INSTRUCTION, PromptTemplate
from lclm_rag.storage import Folder, LocalFolder, open_folder

if TYPE_CHECKING:
    from lclm_rag.compression import Compressor
    from lclm_rag.compression.adapter import Adapter
    from lclm_rag.decoding import Decoder
    from lclm_rag.indexing.passage_index import OpenIndex, Spread
    from lclm_rag.retrieval import Embedder, PassageIndex
    from lclm_rag.store import CodecName, LatentStore, Layout

__all__ = ["OpenKnowledgeBase"]

_log = logging.getLogger(__name__)


class OpenKnowledgeBase:
    """A folder with settings, store and passage index, open at one version; and what answers from it.

    `lclm_rag.KnowledgeBase` is this, with what can be done with it.
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
        self._version = store.version
        self._store: LatentStore | None = store
        self.device = device
        self.dtype = dtype
        self.compressor_options = compressor_options or {}
        self.wait = wait
        self.read_only = read_only
        self._decoder_name = decoder if isinstance(decoder, str) else ""
        self._decoder_options = decoder_options or {}
        self._decoder = None if isinstance(decoder, str) else decoder
        self._loading = threading.Lock()
        self._index: OpenIndex | None = None
        self._opening = threading.RLock()
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
        from lclm_rag.store import CODECS, LatentStore, Layout

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
            checkpoint=_lasting_name(opened),
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
        with making(folder, wait, resume) as made:
            if made.contents:
                store = LatentStore.create(folder / "store", layout)
                # Last, so that a folder with kb.json is always whole.
                write_settings(folder, settings)
            else:
                store = LatentStore.open(folder / "store")
                _check_unfinished(folder, store, read_settings(folder), settings, layout)
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
        with self._opening:
            if self._index is not None:
                self._index.close(self.store)
                self._index = None
            if self._store is not None:
                self._store.close()
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
        self._loading, self._opening = threading.Lock(), threading.RLock()
        if self._store is not None and not self._store.closed:
            self._version, self._store = self._store.version, None
        self._index = None
        self._made = Made(contents=False, folder=False)
        if self._decoder_name:
            self._decoder = None
        for part in ("compressor", "adapter", "_embedder"):
            vars(self).pop(part, None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it is a path, a version and options: it is opened again where it is unpickled."""
        if not self._decoder_name:
            raise TypeError(
                f"{self.folder} cannot be pickled with a decoder that was given as an object; name it "
                "instead, as decoder='transformers' or by a server's URL."
            )
        options = {
            "checkpoint": _lasting_name(self.checkpoint),
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
        if (store := self._store) is not None:
            return store
        from lclm_rag.store import LatentStore

        with self._opening:
            if self._store is None:
                self._store = LatentStore.open(self.folder / "store", self._version)
            return self._store

    @store.setter
    def store(self, store: LatentStore) -> None:
        self._store = store

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

    @property
    def index(self) -> PassageIndex:
        """The passage index, at the store's version: built or brought up to date where it is not. Opened
        once, whichever thread asks first."""
        return self.index_and_store()[0]

    def index_and_store(self, spread: Spread | None = None) -> tuple[PassageIndex, LatentStore]:
        """Both at the same version, whatever another thread is writing. spread: what is to be put on a Qdrant
        server is put there by several machines."""
        with self._opening:
            if self._index is None:
                from lclm_rag.indexing.passage_index import open_index

                self._index = open_index(
                    self.folder / "index",
                    self.store,
                    embedder=self._embedder,
                    qdrant_url=self.settings.qdrant_url,
                    collection=self.settings.collection,
                    spread=spread,
                )
            return self._index.index, self.store

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


def _check_unfinished(
    folder: Folder, store: LatentStore, found: Settings, wanted: Settings, layout: Layout
) -> None:
    """Raise KnowledgeBaseError where a build cannot be gone on with."""
    if store.version:
        raise finished_already(folder, store)
    there, given = vars(found) | vars(store.layout), vars(wanted) | vars(layout)
    other = [name for name in given if there[name] != given[name]]
    if other:
        name = other[0]
        raise KnowledgeBaseError(
            f"{folder} was begun with {name} {there[name]!r}, not {given[name]!r}: use the same, choose "
            "another folder, or remove this one."
        )


def finished_already(folder: Folder, store: LatentStore) -> KnowledgeBaseError:
    return KnowledgeBaseError(
        f"{folder} is finished already: {store.count_documents():,} documents, version {store.version}. "
        "Bring it up to date with lclm-rag add or sync, or choose another folder."
    )


def _name(folder: Folder) -> str:
    return str(folder).rpartition("/")[2] if folder.local is None else folder.local.resolve().name


def _lasting_name(checkpoint: Checkpoint) -> str:
    """A folder as an absolute path, so that it is found from elsewhere; a hub id as it is."""
    path = Path(checkpoint.name).expanduser()
    is_folder = checkpoint.name != BUNDLED and path.is_dir()
    return str(path.resolve()) if is_folder else checkpoint.name


def _opened_again(
    cls: type[OpenKnowledgeBase],
    path: str,
    version: int | None,
    read_only: bool,
    options: dict[str, Any],
) -> OpenKnowledgeBase:
    opened = cls.open(path, version=version, **options)
    opened.read_only = read_only
    return opened
