"""Documents → passages with latents, in the steps that all engines share: split, tokenize, compress."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lclm_rag.checkpoint import Checkpoint
from lclm_rag.chunking.splitting import split_document
from lclm_rag.chunking.tokens import TextTokens
from lclm_rag.store import Encoding, Layout, StoredPassage
from lclm_rag.store.store import Place
from lclm_rag.types import Document, Passage, PassageKey

if TYPE_CHECKING:
    from lclm_rag.compression import Compressor
    from lclm_rag.store.codecs import Bytes

__all__ = [
    "CHARACTERS_AT_ONCE",
    "PassageWork",
    "Splitting",
    "batched",
    "compress_passages",
    "passage_work",
    "split_documents",
    "tokenized",
    "with_token_ids",
]

_DOCUMENTS_AT_ONCE = 64
_PASSAGES_AT_ONCE = 512
CHARACTERS_AT_ONCE = 1 << 19
"""The characters of text and metadata that are split, tokenized or compressed together.

They are enough for nearly all batches of the encoder to be full, and few enough that neither long texts nor
large metadata fill the memory.
"""

_BATCHES_AHEAD = 4
"""The batches that may wait for a GPU. They keep it busy for a second or more while a fragment is written."""


@dataclass(frozen=True)
class PassageWork:
    """A passage on its way into the store.

    Attributes:
        passage: The passage.
        document_hash: The hash of its document's content.
        last: Whether it is its document's last passage.
        known: Where a passage with the same content is stored, whose latents are reused; None if the passage
            has to be compressed.
        token_ids: What the encoder reads, as ids of its tokenizer; empty until that is known.
    """

    passage: Passage
    document_hash: bytes
    last: bool
    known: Place | None
    token_ids: Sequence[int] = ()


@dataclass(frozen=True)
class Splitting:
    """How documents become passages.

    Attributes:
        passage_tokens: The most tokens in a passage; None makes each document one passage, without a header.
        contextual_headers: Whether passages begin with the document's title and headings.
        memory: What the encoder reads of a passage, as in `Frame`.
    """

    passage_tokens: int | None
    contextual_headers: bool
    memory: str = "{text}"


def split_documents(
    documents: Iterable[tuple[Document, bytes, dict[str, Place]]],
    checkpoint: Checkpoint,
    splitting: Splitting,
) -> Iterator[PassageWork]:
    """Split documents into passages. Groups of documents are tokenized together, on all cores.

    Args:
        documents: Each document with the hash of its content and the places of its known passages, by their
            content.
        checkpoint: The checkpoint, for the encoder's tokenizer.
        splitting: How documents become passages.

    Yields:
        The passages of all documents, in order: see `passage_work`.
    """
    group: list[tuple[Document, bytes, dict[str, Place]]] = []
    characters = 0
    for each in documents:
        group.append(each)
        characters += len(each[0].text)
        if len(group) >= _DOCUMENTS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield from _split_group(group, checkpoint, splitting)
            group, characters = [], 0
    yield from _split_group(group, checkpoint, splitting)


def _split_group(
    group: list[tuple[Document, bytes, dict[str, Place]]],
    checkpoint: Checkpoint,
    splitting: Splitting,
) -> Iterator[PassageWork]:
    texts = [] if splitting.passage_tokens is None else [document.text for document, _, _ in group]
    tokens = iter(TextTokens.of_all(texts, checkpoint.encoder_tokenizer))
    for document, digest, known in group:
        yield from passage_work(
            document, digest, known, checkpoint, splitting, tokens=next(tokens, None)
        )


def passage_work(
    document: Document,
    document_hash: bytes,
    known: dict[str, Place],
    checkpoint: Checkpoint,
    splitting: Splitting,
    *,
    tokens: TextTokens | None = None,
) -> Iterator[PassageWork]:
    """Split one document into passages. They stream, so that memory does not grow with a long document.

    Args:
        document: The document.
        document_hash: The hash of its content.
        known: The places of stored passages, by their content. Passages with the same content keep these
            latents.
        checkpoint: The checkpoint, for the encoder's tokenizer.
        splitting: How documents become passages.
        tokens: The tokens of the document's text; None if it is not tokenized yet.

    Yields:
        The document's passages, in order; with token ids where splitting has found what the encoder reads.
    """
    if tokens is None and splitting.passage_tokens is not None:
        (tokens,) = TextTokens.of_all([document.text], checkpoint.encoder_tokenizer)
    passages = _passages(document, checkpoint, splitting, tokens)
    held = next(passages, None)
    while held is not None:  # One passage is held back to tell which is the last.
        token_ids: Sequence[int] = ()
        if tokens is not None and splitting.memory == "{text}":
            token_ids = tokens.ids(held)
        following = next(passages, None)
        place = known.get(held.content)
        yield PassageWork(held, document_hash, following is None, place, token_ids)
        held = following


def _passages(
    document: Document, checkpoint: Checkpoint, splitting: Splitting, tokens: TextTokens | None
) -> Iterator[Passage]:
    if splitting.passage_tokens is None:
        key = PassageKey(document.id, 0)
        return iter([Passage(key, 0, len(document.text), document.text, document.metadata)])
    return split_document(
        document,
        checkpoint.token_offsets,
        splitting.passage_tokens,
        contextual_headers=splitting.contextual_headers,
        tokens=tokens,
    )


def tokenized(
    work: Iterable[PassageWork], checkpoint: Checkpoint, memory: str = "{text}"
) -> Iterator[list[PassageWork]]:
    """Tokenize passages: the same passages in the same order, in batches, with token ids.

    Args:
        work: The passages.
        checkpoint: The checkpoint whose encoder reads them.
        memory: What the encoder reads of a passage, as in `Frame`.

    Yields:
        The batches.
    """
    for batch in batched(work):
        yield with_token_ids(batch, checkpoint, memory)


def with_token_ids(
    batch: list[PassageWork], checkpoint: Checkpoint, memory: str = "{text}"
) -> list[PassageWork]:
    """Tokenize the passages of a batch that have no token ids yet: the same passages in the same order.

    Known passages, too: what is stored may turn out to be damaged when it is read.

    Args:
        batch: The passages.
        checkpoint: The checkpoint whose encoder reads them.
        memory: What the encoder reads of a passage, as in `Frame`.

    Returns:
        The passages.
    """
    without = [item for item in batch if not item.token_ids]
    texts = [memory.replace("{text}", item.passage.content) for item in without]
    token_ids = iter(checkpoint.encoder_token_ids(texts) if texts else [])
    return [item if item.token_ids else replace(item, token_ids=next(token_ids)) for item in batch]


def batched(work: Iterable[PassageWork]) -> Iterator[list[PassageWork]]:
    """The passages in batches, each of which is tokenized, and compressed, at once."""
    batch: list[PassageWork] = []
    characters = 0
    for item in work:
        batch.append(item)
        characters += item.passage.characters
        if len(batch) >= _PASSAGES_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def compress_passages(
    batches: Iterable[list[PassageWork]],
    load: Callable[[], Compressor],
    layout: Layout,
    read: Callable[[Place], StoredPassage | None],
) -> Iterator[tuple[list[PassageWork], list[StoredPassage]]]:
    """Compress batches of tokenized passages.

    On a GPU, batches are compressed ahead while the caller reads, tokenizes and writes: one thread does
    nothing but hand work to the GPU. On a CPU this would gain nothing, so batches are compressed one by one.

    Args:
        batches: The batches of `tokenized`.
        load: Loads the encoder; called only for batches with something to compress, and must return the same
            compressor each time.
        layout: The store's layout.
        read: Reads a known passage; None if it is damaged, which is then compressed again.

    Yields:
        Each batch with its rows for the store, in the order given. `known` is None for the passages that
        were compressed.
    """
    waiting: deque[_Batch] = deque()
    ahead = 0
    with ThreadPoolExecutor(1, "encoder") as encoder:
        try:
            for items in batches:
                batch = [_checked(item, read) for item in items]
                new = [item.token_ids for item, stored in batch if stored is None]
                started: _Latents | Future[_Latents] | None = None
                if new:
                    compressor = load()
                    if compressor.device.type == "cpu":
                        started = _Latents.start(new, compressor, layout)
                    else:
                        ahead = _BATCHES_AHEAD
                        started = encoder.submit(_Latents.start, new, compressor, layout)
                waiting.append(_Batch(batch, started))
                while len(waiting) > ahead:
                    yield waiting.popleft().rows(layout)
            while waiting:
                yield waiting.popleft().rows(layout)
        finally:
            encoder.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Latents:
    """The latents of some passages, perhaps still being computed.

    Attributes:
        counts: The number of latents of each passage.
        encoding: The latents of all of them, being encoded with the store's codec.
    """

    counts: list[int]
    encoding: Encoding

    @classmethod
    def start(
        cls, token_ids: list[Sequence[int]], compressor: Compressor, layout: Layout
    ) -> _Latents:
        latents, counts = compressor.compress_together(token_ids, layout.space)
        return cls(counts, Encoding.start(latents, layout.codec))

    def result(self) -> list[Bytes]:
        return np.split(self.encoding.result(), np.cumsum(self.counts)[:-1])


def _checked(
    item: PassageWork, read: Callable[[Place], StoredPassage | None]
) -> tuple[PassageWork, StoredPassage | None]:
    """A passage with what is stored of it; if that is damaged, it is new."""
    stored = None if item.known is None else read(item.known)
    return (item, stored) if stored is not None else (replace(item, known=None), None)


@dataclass(frozen=True)
class _Batch:
    """A batch whose new passages are being compressed.

    Attributes:
        items: The passages, each with what is stored of it; None if it is new.
        started: The latents of the new ones; None if there are none.
    """

    items: list[tuple[PassageWork, StoredPassage | None]]
    started: _Latents | Future[_Latents] | None

    def rows(self, layout: Layout) -> tuple[list[PassageWork], list[StoredPassage]]:
        started = self.started
        latents = started.result() if isinstance(started, Future) else started
        encoded = iter(latents.result() if latents is not None else [])
        rows = []
        for item, stored in self.items:
            tokens = len(item.token_ids) if stored is None else stored.tokens
            data = next(encoded) if stored is None else stored.encoded
            rows.append(
                StoredPassage(item.passage, tokens, item.document_hash, item.last, data, layout)
            )
        return [item for item, _ in self.items], rows
