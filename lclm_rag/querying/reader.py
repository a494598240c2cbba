"""The store and the passage index of a knowledge base, open at one version: search, read, follow."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lclm_rag.errors import KnowledgeBaseError, NoPassagesError, PassageIndexError, StoreError
from lclm_rag.forking import keep_for_ever, watch
from lclm_rag.indexing.collection import check_server
from lclm_rag.indexing.points import PutPoints
from lclm_rag.indexing.server import SharedIndex, Task
from lclm_rag.indexing.session import IndexSession, open_index
from lclm_rag.querying.contents import fields
from lclm_rag.querying.ranking import around, by_score, diverse, joined, stretches
from lclm_rag.retrieval import (
    Filter,
    Missing,
    PassageIndex,
    ScoredKey,
    as_filter,
    load_embedder,
)
from lclm_rag.retrieval.filter_check import filter_keys
from lclm_rag.store import LatentStore, StoredPassage, newest_version
from lclm_rag.types import Hit, MetadataField, Passage, PassageKey, RowPlace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lclm_rag.config import Settings
    from lclm_rag.querying.query import Query
    from lclm_rag.retrieval import Embedder
    from lclm_rag.retrieval.reranker import CrossEncoderReranker
    from lclm_rag.storage import Folder

__all__ = ["Reader", "Retrieved", "hits_of"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retrieved:
    """What a search found.

    Attributes:
        hits: The hits, best first.
        rows: The store's row of each hit.
        seconds: How long it took to find and read them.
    """

    hits: list[Hit]
    rows: list[StoredPassage]
    seconds: float


class Reader:
    """Reads a knowledge base at one version.

    Threads may share it. A forked child opens its own store and index, at the same version.

    Args:
        folder: The knowledge base's folder.
        settings: The knowledge base's settings.
        store: The store, open at the version to read.
        embedder: The embedder of the settings, if its user gives it as an object.
    """

    def __init__(
        self,
        folder: Folder,
        settings: Settings,
        store: LatentStore,
        embedder: Embedder | None = None,
    ) -> None:
        self._given_embedder = embedder
        self._folder = folder
        self._settings = settings
        self._version = store.version
        self._store: LatentStore | None = store
        self._session: IndexSession | None = None
        self._opening = threading.RLock()
        self._closed = False
        self._fields: tuple[LatentStore, list[MetadataField]] | None = None
        self._rerankers: dict[str, CrossEncoderReranker] = {}
        watch(self)

    def after_fork(self) -> None:
        """In a forked child, leave the store and the index that the parent opened to the parent."""
        keep_for_ever(dict(vars(self)))
        self._opening = threading.RLock()
        if self._store is not None and not self._store.closed:
            self._version, self._store = self._store.version, None
        self._session, self._fields, self._rerankers = None, None, {}
        vars(self).pop("_embedder", None)

    @property
    def store(self) -> LatentStore:
        """The latent store, at the version being read."""
        if (store := self._store) is not None:
            return store
        with self._opening:
            if self._store is None:
                self.require_open()
                self._store = LatentStore.open(self._folder / "store", self._version)
            return self._store

    @property
    def closed(self) -> bool:
        """Whether the knowledge base is closed."""
        return self._closed

    def require_open(self) -> None:
        """Raise KnowledgeBaseError if the knowledge base is closed."""
        if self._closed:
            raise KnowledgeBaseError(f"{self._folder} is closed; open it again.")

    @property
    def index(self) -> PassageIndex:
        """The passage index, at the store's version.

        An embedded index is built or brought up to date if it is not; one on a server only by who writes. It
        is opened once, whichever thread asks first.
        """
        return self.at_one_version()[0]

    def at_one_version(self) -> tuple[PassageIndex, LatentStore]:
        """The index and the store at the same version, even while another thread writes."""
        with self._opening:
            self.require_open()
            if self._session is None:
                self._session = self._open_index(None, "read")
            return self._session.index, self.store

    @cached_property
    def _embedder(self) -> Embedder | None:
        return self._given_embedder or load_embedder(self._settings.embedder)

    def require_embedder(self) -> None:
        """Load the embedder, so that a write fails before it has cost anything if there is none."""
        _ = self._embedder

    # --- searching and reading ----------------------------------------------------------------------

    def search(self, query: Query) -> Retrieved:
        """Find the best passages for a question.

        Args:
            query: The question and its options.

        Returns:
            The hits and their rows; none for the context "none".

        Raises:
            ValueError: When the ranking that the query wants is not possible.
            StoreError: When the store is damaged, or does not hold a passage that the index names.
            PassageIndexError: When the passage index cannot be opened or searched.
        """
        return self.search_all([query])[0]

    def search_all(self, queries: Sequence[Query]) -> list[Retrieved]:
        """Find the best passages for several questions together.

        Args:
            queries: The questions, which have all their options in common.

        Returns:
            As `search`, for each question; `seconds` is how long all of them took.

        Raises:
            ValueError: As for `search`.
            StoreError: As for `search`.
            PassageIndexError: As for `search`.
        """
        if not queries or queries[0].context == "none":
            return [Retrieved([], [], 0.0) for _ in queries]
        if queries[0].mmr is not None and self._settings.embedder is None:
            raise ValueError(
                "mmr compares dense vectors, and there are none; create the knowledge base with an embedder."
            )
        started = time.perf_counter()
        while True:
            index, store = self.at_one_version()
            try:
                found = self._ranked(queries, index, store)
            except (PassageIndexError, KeyError) as error:
                # Another thread (or another process, if the index is on a server) may have made a new version
                # since index and store were taken; then search again, in the new version.
                if self.at_one_version()[1] is store and not self.follow_server():
                    if isinstance(error, PassageIndexError):
                        raise
                    raise StoreError(
                        f"The passage index names a passage that is not in the store: {error.args[0]} "
                        "Run lclm-rag verify."
                    ) from error
            else:
                if self.at_one_version()[1] is store:
                    seconds = time.perf_counter() - started
                    return [Retrieved(hits, rows, seconds) for hits, rows in found]

    def _ranked(
        self, queries: Sequence[Query], index: PassageIndex, store: LatentStore
    ) -> list[tuple[list[Hit], list[StoredPassage]]]:
        """The hits and rows of each question, by the steps of `Ranking`, at one version."""
        first = queries[0]
        asked = [query.searched for query in queries]
        found = index.search_all(
            asked, first.candidates, first.filters, words_only=first.words_only
        )
        if first.rerank is not None:
            found = self._reranked(first.rerank, asked, found, store)
        if first.mmr is not None:
            found = [_diverse(index, hits, first.top_k, first.mmr) for hits in found]
        chosen = [stretches(store, hits[: first.top_k], first.neighbours) for hits in found]
        wanted = [key for each in chosen for part in each for key in part.keys]
        rows = iter(store.read(wanted, _places(found)))
        results = []
        for parts in chosen:
            whole = [joined(part.best.key, [next(rows) for _ in part.keys]) for part in parts]
            hits = hits_of(whole, [part.best.score for part in parts])
            beside = (tuple(k for k in part.keys if k != part.best.key) for part in parts)
            hits = [replace(hit, neighbours=keys) for hit, keys in zip(hits, beside, strict=True)]
            results.append((hits, whole))
        return results

    def _reranked(
        self,
        model: str,
        questions: Sequence[str],
        found: Sequence[Sequence[ScoredKey]],
        store: LatentStore,
    ) -> list[list[ScoredKey]]:
        places = _places(found)
        texts = [
            [passage.content for passage in store.read_texts((hit.key for hit in hits), places)]
            for hits in found
        ]
        scores = self.reranker(model).scores(questions, texts)
        return [by_score(hits, of_hits) for hits, of_hits in zip(found, scores, strict=True)]

    def share_rerankers(self, other: Reader) -> None:
        """Let another reader use the cross-encoders that this one has loaded, or will load."""
        other._rerankers = self._rerankers

    def reranker(self, model: str) -> CrossEncoderReranker:
        """A cross-encoder, loaded when it is first asked for.

        Args:
            model: Its name or folder.

        Raises:
            ImportError: When sentence-transformers is not installed.
            CheckpointError: When the model cannot be loaded, or is no cross-encoder.
        """
        with self._opening:
            if model not in self._rerankers:
                from lclm_rag.retrieval.reranker import CrossEncoderReranker

                self._rerankers[model] = CrossEncoderReranker(model)
            return self._rerankers[model]

    def search_to_answer(self, query: Query, found: Retrieved | None = None) -> Retrieved:
        """Search as `search` does, for passages to answer from.

        Conditions of the filter that no passage can meet are logged as a warning.

        Args:
            query: The question and its options.
            found: What a search has found already.

        Returns:
            The hits and their rows; none for the context "none".

        Raises:
            NoPassagesError: When no passage is found; the message says why.
            StoreError: As for `search`.
            PassageIndexError: As for `search`.
        """
        retrieved = found or self.search(query)
        if query.context != "none":
            if not retrieved.hits:
                raise NoPassagesError(self.why_none(query.filters))
            self.warn_of(query.filters)
        return retrieved

    def matching(
        self, filters: Filter | Mapping[str, Any] | Sequence[str] | None
    ) -> tuple[LatentStore, list[PassageKey] | None]:
        """The passages that a filter keeps, at one version.

        Conditions of the filter that no passage can meet are logged as a warning.

        Args:
            filters: The filter.

        Returns:
            The store, and the keys of the passages, sorted; None for all of them: then the passage index is
            not opened.

        Raises:
            ValueError: When the filters are not valid.
        """
        self.require_open()
        if (condition := as_filter(filters)) is None:
            return self.store, None
        self.warn_of(condition)
        index, store = self.at_one_version()
        return store, index.keys(condition)

    def metadata_fields(self) -> list[MetadataField]:
        """The metadata keys of the version being read, gathered once for each version."""
        self.require_open()
        store = self.store
        if self._fields is None or self._fields[0] is not store:
            self._fields = store, fields(store)
        return self._fields[1]

    def find(self, condition: Filter) -> list[PassageKey]:
        """Find all passages whose metadata match a filter.

        Args:
            condition: The filter.

        Returns:
            The keys of the passages, sorted.
        """
        return self.index.keys(condition)

    def read_passages(self, key: PassageKey, before: int, after: int) -> list[Passage]:
        """Read a passage with its neighbors in the document.

        Args:
            key: The passage.
            before: How many passages before it to include.
            after: How many passages after it to include.

        Returns:
            The passages, in reading order.

        Raises:
            KnowledgeBaseError: When there is no such passage, or the knowledge base is closed.
            StoreError: When a passage is damaged.
        """
        self.require_open()
        try:
            rows = self.store.read(around(self.store, key, before, after))
            return [row.passage for row in rows]
        except KeyError as error:
            raise KnowledgeBaseError(f"There is no passage {key} in {self._folder}.") from error

    # --- filters --------------------------------------------------------------------------------------

    def unmatchable(self, condition: Filter | None) -> list[str]:
        """Find the conditions of a filter that no passage can meet.

        Args:
            condition: The filter.

        Returns:
            One sentence for each such condition; none if there is no filter or the store is empty.
        """
        index, store = self.at_one_version()
        return index.unmatchable(condition) if condition is not None and len(store) else []

    def warn_of(self, condition: Filter | None) -> None:
        """Log a warning for each condition of a filter that no passage can meet."""
        for sentence in self.unmatchable(condition):
            _log.warning("%s", sentence)

    def check_keys(self, condition: Filter) -> None:
        """Check that passages have the keys that a filter names.

        Args:
            condition: The filter.

        Raises:
            KnowledgeBaseError: When the filter names a key, or a kind of value, that no passage has.
        """
        if sentences := self.unmatchable(condition):
            raise KnowledgeBaseError(" ".join(sentences))
        if (key := _missing_key(self.index, condition)) is not None:
            raise KnowledgeBaseError(f"No passage has the metadata key {key!r} any more.")

    def why_none(self, condition: Filter | None) -> str:
        """Explain why a search found nothing.

        Args:
            condition: The filter of the search.

        Returns:
            One sentence, or one for each condition that no passage can meet.
        """
        index, store = self.at_one_version()
        if not len(store):
            return f"{self._folder} has no passages in version {store.version}."
        if sentences := self.unmatchable(condition):
            return " ".join(sentences)
        if condition is not None and not index.has(condition):
            if (key := _missing_key(index, condition)) is not None:
                return f"No passage has the metadata key {key!r} any more."
            return "No passage matches the filter."
        which = "that matches the filter " if condition is not None else ""
        return (
            f"No passage {which}shares a word with the question; words such as who, is and the are not "
            "searched for."
        )

    # --- versions -------------------------------------------------------------------------------------

    def require_server(self, reach: Callable[[str], None] | None = None) -> None:
        """Check that a writer's Qdrant server can be reached, if there is one, before anything is compressed.

        Args:
            reach: Checks the same from a cluster, given the URL.

        Raises:
            KnowledgeBaseError: If the collection is there, and is not this knowledge base's or does not fit.
            PassageIndexError: If the server cannot be reached, or the collection is lost.
        """
        if (url := self._settings.qdrant_url) is not None:
            check_server(self._folder / "index", self._settings, lambda: self._embedder)
            if reach is not None:
                reach(url)

    def show(self, store: LatentStore, put_points: PutPoints | None = None) -> None:
        """Move to another version, together with the passage index.

        Args:
            store: The store, open at that version. The store shown before is closed.
            put_points: Puts new points on a server from other machines; None puts them from this process.
        """
        with self._opening:
            if self._closed:
                store.close()
                self.require_open()
            old, self._store = self.store, store
            try:
                if self._session is None:
                    self._session = self._open_index(put_points, "write")
                else:
                    if isinstance(self._session, SharedIndex):
                        self._session.put_points = put_points
                    self._session.follow(store)
            except BaseException:
                # The index may be between two versions, so it is opened again when it is next needed.
                self._session = None
                raise
            finally:
                old.close()

    def use_settings(self, settings: Settings) -> None:
        """Go on with other settings; the passage index is opened anew when it is next needed."""
        with self._opening:
            self._settings = settings
            if self._session is not None:
                self._session.close()
                self._session = None

    def show_newest(self) -> None:
        """Move to the newest version."""
        self.show(LatentStore.open(self._folder / "store"))

    def follow_server(self) -> bool:
        """Move to the newest version if the passage index is on a server.

        A server's index shows the newest version only.

        Returns:
            Whether the version changed; False if it was the newest already, or the index is not on a server.
        """
        with self._opening:
            self.require_open()
            folder = self._folder / "store"
            if self._settings.qdrant_url is None or newest_version(folder) == self.store.version:
                return False
            old, self._store = self.store, LatentStore.open(folder)
            old.close()
            if self._session is not None:
                # Opened again when it is needed, because the collection may be another, or the first.
                self._session.close()
                self._session = None
            return True

    def follow(self) -> bool:
        """Move to the newest version, wherever the passage index is.

        Returns:
            Whether the version changed.
        """
        self.require_open()
        if self._settings.qdrant_url is not None:
            return self.follow_server()
        # Without the lock: in an object store a look takes a while, and searches go on.
        if newest_version(self._folder / "store") <= self.store.version:
            return False
        with self._opening:  # Of two threads that follow, none moves back to what it saw first.
            self.show_newest()
        return True

    @contextmanager
    def session(self) -> Iterator[IndexSession | None]:
        """Keep other threads from opening or moving the passage index while it is in use.

        Yields:
            The session of the passage index; None if it is not open.
        """
        with self._opening:
            yield self._session

    def close(self) -> None:
        """Release the passage index and the version being read. Closing twice does nothing.

        What the version's manifest says can still be asked for; searching and reading raise
        KnowledgeBaseError.
        """
        with self._opening:
            self._closed = True
            try:
                if self._session is not None:
                    self._session.close()
                    self._session = None
            finally:
                if self._store is not None:
                    self._store.close()

    def _open_index(self, put_points: PutPoints | None, task: Task) -> IndexSession:
        return open_index(
            self._folder / "index",
            self.store,
            self._settings,
            embedder=self._embedder,
            put_points=put_points,
            task=task,
        )


def hits_of(rows: Sequence[StoredPassage], scores: Sequence[float]) -> list[Hit]:
    """Turn rows of the store and their scores into hits."""
    return [
        Hit(
            key=row.passage.key,
            score=score,
            text=row.passage.text,
            start=row.passage.start,
            end=row.passage.end,
            metadata=row.passage.metadata,
        )
        for row, score in zip(rows, scores, strict=True)
    ]


def _places(found: Sequence[Sequence[ScoredKey]]) -> dict[PassageKey, RowPlace]:
    """Where the index says that passages are."""
    return {hit.key: hit.place for hits in found for hit in hits if hit.place is not None}


def _diverse(
    index: PassageIndex, hits: Sequence[ScoredKey], count: int, relevance: float
) -> list[ScoredKey]:
    vectors = index.dense_vectors([hit.key for hit in hits]) if hits else None
    return [] if vectors is None else diverse(hits, vectors, count, relevance)


def _missing_key(index: PassageIndex, condition: Filter) -> str | None:
    """A key that the index knows and no passage has any more, because those that had it were deleted."""
    return next((key for key in filter_keys(condition) if not index.has(~Missing(key))), None)
